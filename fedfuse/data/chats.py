"""Chats as samples: one for each answer of the assistant, behind the turns before it."""

from __future__ import annotations

from typing import Any

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError, check

ROLES = ("system", "user", "assistant", "tool")


def chat_samples(origin: str, messages: Any, domain: str) -> list[Sample]:
    """Samples of a chat, in the form that chat services and trainers use.

    Args:
        origin: where it stands, for errors.
        messages: ``[{"role": ..., "content": ...}, ...]`` with texts; roles are those of ``ROLES``.
        domain: name of the data's domain.

    Raises:
        FedfuseError: for messages of another form, an empty answer, or no answer behind a turn.
    """
    good = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    check(f"{origin}: field 'messages'", repr(messages)[:80], "a list of objects", good)
    turns: list[tuple[str, str]] = []
    samples = []
    for number, message in enumerate(messages):
        place = f"{origin}: messages[{number}]"
        role, text = message.get("role"), message.get("content")
        check(f"{place}.role", repr(role), f"one of {', '.join(ROLES)}", role in ROLES)
        check(f"{place}.content", repr(text)[:80], "text", isinstance(text, str))
        text = text.strip()
        if role == "assistant":
            check(f"{place}.content", repr(text), "text that is not empty", text)
            if turns:
                samples.append(Sample(plain(turns), text, domain, turns=tuple(turns)))
        turns.append((role, text))
    if not samples:
        raise FedfuseError(
            f"{origin}: field 'messages': expected an answer of the assistant, got none"
        )
    return samples


def plain(turns: list[tuple[str, str]]) -> str:
    """Turns as text for models without a chat template, up to the answer."""
    return "".join(f"{role.capitalize()}: {text}\n" for role, text in turns) + "Assistant:\n"
