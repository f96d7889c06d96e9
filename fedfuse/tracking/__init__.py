"""The run folder: records, checkpoints, events, metrics."""
