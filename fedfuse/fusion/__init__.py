"""Whom to trust on which sample, and one teacher made of many."""
