"""Refuting concrete models: two inputs on which a model cannot be right both times, found by running it."""
