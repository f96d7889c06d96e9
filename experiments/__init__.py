"""Experiments: settings, and one folder of committed results each."""
