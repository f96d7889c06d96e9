"""Whole federations on one machine: in one process, or with Ray."""
