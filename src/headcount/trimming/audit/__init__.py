"""The audit: what a pretrained model's attention uses, per layer, side and head."""
