"""What the operators are made of: layouts, masks, tiles, autograd rules, the float64 reference."""
