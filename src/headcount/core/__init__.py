"""What every room stands on: errors, seeds, progress, run folders, memory, the spec of attention, drawings."""
