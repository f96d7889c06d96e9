"""Causal language models with their adapters, output heads and forward passes."""
