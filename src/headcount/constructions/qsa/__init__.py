"""Explicit weights for sparse averaging."""
