"""Heads against dimensions: how well heads single out lags, the exact split of a budget, and softmax saturation."""
