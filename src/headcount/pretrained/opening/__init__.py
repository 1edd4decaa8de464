"""Opening a pretrained model: locating it, checking that it is safe to open, loading and fingerprinting it."""
