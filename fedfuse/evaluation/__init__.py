"""Loss per byte and multiple-choice accuracy, per domain."""
