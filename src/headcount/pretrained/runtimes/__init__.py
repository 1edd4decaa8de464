"""The models that headcount makes: code that travels with each checkpoint."""
