"""What names on the Hugging Face hub look like, and the errors of its libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedfuse.errors import FedfuseError


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean something on disk; a hub id has at most one slash."""
    return name.startswith((".", "/", "~")) or name.endswith(".jsonl") or name.count("/") > 1


@contextmanager
def library_errors(what: str, expected: str, logging: Any) -> Iterator[None]:
    """Turn any error of a hub library into one clear line; keep its bars off the terminal.

    Args:
        what: what is loaded.
        expected: what it should be.
        logging: the library's ``utils.logging``.
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except FedfuseError:
        raise
    except Exception as error:  # these libraries raise a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise FedfuseError(
            f"{what} cannot be loaded: expected {expected}, got {type(error).__name__}: {reason}"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
