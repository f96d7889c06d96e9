"""One form for every refusal of knowledge: the field, what it holds, what is allowed."""

from __future__ import annotations

from fedfuse.errors import FedfuseError


def check(name: str, found: object, allowed: object, good: object) -> None:
    """Go on if it is good.

    Raises:
        FedfuseError: otherwise.
    """
    if not good:
        raise FedfuseError(f"knowledge.{name} is {found}; allowed: {allowed}")
