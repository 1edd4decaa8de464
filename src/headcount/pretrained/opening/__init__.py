"""Opening a pretrained model: where it lies, whether it may be opened, what it is tied to."""
