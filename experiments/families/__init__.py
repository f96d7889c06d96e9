"""Every family of causal language models that transformers knows, tiny and random."""
