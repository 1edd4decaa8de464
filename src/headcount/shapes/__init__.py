"""Models planned from scratch: heads, dimensions and MLP widths under budgets."""
