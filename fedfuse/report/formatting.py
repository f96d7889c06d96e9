"""Numbers and names as a reader sees them."""

from __future__ import annotations

import math

# Prints as a number's sign should; the hyphen is too short to be seen.
MINUS = "\N{MINUS SIGN}"
# Between a number and its unit, which no line break should part.
GAP = "\N{NO-BREAK SPACE}"


def loss_text(loss: float | None) -> str:
    """A loss or an excess in nats/byte: 0.412."""
    if loss is None:
        return ""
    if not math.isfinite(loss):
        return "diverged"
    # Rounding first keeps a tiny negative excess from reading as minus nothing.
    return f"{round(loss, 3) + 0.0:.3f}".replace("-", MINUS)


def change_text(change: float | None) -> str:
    """A change of a loss, always with its sign."""
    shown = loss_text(change)
    return f"+{shown}" if change is not None and round(change, 3) > 0 else shown


def percent(share: float | None) -> str:
    """A share as a percentage: 61%."""
    if share is None:
        return ""
    return "diverged" if not math.isfinite(share) else f"{share:.0%}".replace("-", MINUS)


def bytes_text(size: float) -> str:
    """A size in bytes, decimal units: 12.3 MB."""
    divisor, unit = byte_unit(size)
    return f"{size / divisor:.{0 if divisor == 1 else 1}f}{GAP}{unit}"


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit in which ``largest`` bytes read best, and its size in bytes."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, unit) for size, unit in units if largest >= size), (1.0, "bytes"))


def seconds_text(seconds: float) -> str:
    """A duration: 0.42 s, 12.3 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 1:
        return f"{seconds:.2f}{GAP}s"
    if seconds < 60:
        return f"{seconds:.1f}{GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{GAP}min{GAP}{rest:02d}{GAP}s"
    return f"{minutes // 60}{GAP}h{GAP}{minutes % 60:02d}{GAP}min"


def shorten(text: str, length: int) -> str:
    """A name of at most ``length`` characters, cut in its middle: both ends tell names apart."""
    text = text or "(no name)"
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[head + 1 - length :]}"


def count(number: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
