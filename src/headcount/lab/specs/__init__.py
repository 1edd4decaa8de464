"""Specifications of training runs as flat fields."""
