"""Discrete prompts for a black-box LLM, tuned together (FedDTPT)."""
