"""The error that every part of fedfuse raises for input it cannot accept."""


class FedfuseError(ValueError):
    """Bad input: the message names the file or key, the value, and what is allowed."""
