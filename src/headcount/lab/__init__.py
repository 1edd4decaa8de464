"""Experiments and figures: one file a figure."""
