"""Clients that lie, and what comes of it."""
