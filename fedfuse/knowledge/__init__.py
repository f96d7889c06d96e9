"""Sparse next-token distributions: the record, its wire form, extraction, translation."""
