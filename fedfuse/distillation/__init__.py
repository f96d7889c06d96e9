"""Joint loss of labels and teacher, its fused form, elastic weight consolidation, training loop."""
