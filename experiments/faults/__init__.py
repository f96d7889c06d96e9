"""Runs among failures: a server that is killed at any point, and clients that fail in every way."""
