"""Figures, one file each: to add a figure, add a file whose ``FIGURE`` is a ``Figure``."""
