"""Figures, one file each: a file whose ``FIGURE`` is a ``Figure`` is all that a new one needs."""
