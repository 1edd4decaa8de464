"""The text that models are measured on: kinds, windows, calibration, samples."""
