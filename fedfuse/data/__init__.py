"""Samples, real data sets, splits among clients, and the built-in world."""
