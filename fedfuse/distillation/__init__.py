"""Encoded data sets, the joint loss of labels and teacher, and the training loop."""
