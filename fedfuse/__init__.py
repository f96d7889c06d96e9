"""Federated knowledge exchange between different language models: the library."""
