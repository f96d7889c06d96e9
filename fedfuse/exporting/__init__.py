"""What a run gives away for use: a model with its adapter merged, and its card."""
