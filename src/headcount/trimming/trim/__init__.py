"""Trimming: a pretrained model becomes one whose attention keeps latents."""
