"""The page: one HTML file without external dependencies."""
