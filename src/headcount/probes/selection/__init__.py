"""Selection capacity: how many of its keys a head can select."""
