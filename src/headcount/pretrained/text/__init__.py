"""The text that models are measured on: kinds, token windows, calibration text, sampled text."""
