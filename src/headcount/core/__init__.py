"""Shared foundations of all packages: errors, seeds, progress, run folders, memory, the attention spec, figures."""
