"""Pretrained models: the families that headcount knows, how to open them, what they are measured on."""
