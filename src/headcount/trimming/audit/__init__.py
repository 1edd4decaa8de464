"""The audit: which directions a pretrained model's attention uses, per layer, side and head."""
