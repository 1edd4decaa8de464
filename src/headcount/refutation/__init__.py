"""Refuting concrete models: two inputs on which a model cannot both be correct, found by running it."""
