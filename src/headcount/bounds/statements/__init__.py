"""The lower bounds, one file for each family of statements."""
