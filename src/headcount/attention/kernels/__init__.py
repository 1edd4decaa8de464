"""Compiled kernels: C++ sources, the code that builds them on first use, and the functions that call them."""
