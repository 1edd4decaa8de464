"""Explicit weights for matching tasks."""
