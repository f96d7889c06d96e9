"""Pairs of tokenizers: which positions and tokens of one stand for which of the other."""
