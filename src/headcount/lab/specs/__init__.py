"""Runs described by flat fields."""
