"""Discrete prompts for a black-box LLM (FedDTPT)."""
