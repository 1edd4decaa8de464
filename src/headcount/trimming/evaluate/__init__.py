"""What a model's attention costs and what trimming it did: quality, cache, speed and memory, side by side."""
