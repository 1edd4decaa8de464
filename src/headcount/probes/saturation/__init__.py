"""Softmax saturation: how many dimensions of queries and keys the heads of each layer need."""
