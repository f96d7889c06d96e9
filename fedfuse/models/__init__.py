"""Causal language models with adapters, and the built-in small ones."""
