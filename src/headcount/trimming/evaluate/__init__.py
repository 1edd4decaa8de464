"""The evaluation: quality, cache, speed and memory of dense and trimmed models, side by side."""
