"""The plan: from evidence and a budget to ranks, layer by layer."""
