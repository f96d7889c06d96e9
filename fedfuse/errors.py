"""The error that every part of fedfuse raises for input it cannot accept."""


class FedfuseError(ValueError):
    """Bad input: the message names the file or key, the value, and what is expected."""


def check(name: str, found: object, expected: object, good: object) -> None:
    """Raise ``FedfuseError`` unless ``good``: "NAME: expected EXPECTED, got FOUND"."""
    if not good:
        raise FedfuseError(f"{name}: expected {expected}, got {found}")
