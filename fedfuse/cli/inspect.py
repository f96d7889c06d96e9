"""The command ``fedfuse inspect``: content and bytes of a saved knowledge message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def inspect(
    file: Annotated[Path, typer.Argument(help="File written by fedfuse.knowledge.storage.")],
) -> None:
    """Show the content of a saved knowledge message, and its bytes by field."""
    from fedfuse.knowledge.storage import read_message

    for line in describe(read_message(file)):
        print(line)


def describe(message: bytes) -> Iterator[str]:
    """The lines of the command's output.

    Raises:
        FedfuseError: when ``codec.decode`` refuses the message.
    """
    import numpy as np

    from fedfuse.knowledge.codec import decode
    from fedfuse.knowledge.container import FIELDS, VERSION, unpack

    knowledge = decode(message)
    header, fields = unpack(message)
    rows = max(header.num_rows, 1)
    mass = float(np.exp(knowledge.logprobs.astype(np.float64)).sum() / rows)
    about = {
        "version": VERSION,
        "logprob bits": header.logprob_bits,
        "tokenizer": header.tokenizer,
        "public set": header.public,
        "samples": header.num_samples,
        "rows": header.num_rows,
        "k": header.k,
        "mean kept k": f"{header.num_entries / rows:.2f}",
        "mean kept mass": f"{mass:.4f}",
        "distinct tokens": header.num_tokens,
    }
    yield from (f"{name:16}{value}" for name, value in about.items())
    sizes = {name: len(fields[name]) for name in FIELDS}
    sizes["header, checksum"] = len(message) - sum(sizes.values())
    yield f"\n{'field':16}{'bytes':>12}{'per row':>10}"
    for name, size in {**sizes, "all": len(message)}.items():
        yield f"{name:16}{size:>12,}{size / rows:>10.2f}"
