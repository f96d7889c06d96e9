"""The command ``fedfuse align``: how two tokenizers align, without any federation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedfuse.alignment.positions import MODES
from fedfuse.alignment.vocabulary_map import UNITS
from fedfuse.builtin.models import cache_root
from fedfuse.errors import FedfuseError, check
from fedfuse.files import atomic_write
from fedfuse.report import tokenizer_alignment
from fedfuse.report.alignment import WIDTH
from fedfuse.report.tokenizer_alignment import TokenizerAlignment

SAMPLE = (
    "The quick brown fox tokenizes 1,234.5 unbelievable words!",
    "Größe, naïve café: 3 \N{MULTIPLICATION SIGN} 7 = 21 🙂👍🏽",
    "日本語のテキスト and 中文 mixed.",
)
# Time warping holds a number for every pair of tokens.
MAX_WARPED_BYTES = 8192

_NAME = "Hub id, folder, or tokenizer.json."


def align(
    source: Annotated[str, typer.Argument(metavar="SRC", help=f"Source tokenizer. {_NAME}")],
    target: Annotated[str, typer.Argument(metavar="DST", help=f"Target tokenizer. {_NAME}")],
    text: Annotated[
        list[str] | None, typer.Option(help="A text to show side by side. May be repeated.")
    ] = None,
    text_file: Annotated[
        Path | None, typer.Option(help="UTF-8 file; every line that is not empty is a text.")
    ] = None,
    alignment: Annotated[
        str, typer.Option(help=f"How positions are paired: {', '.join(MODES)}.")
    ] = "events",
    unit: Annotated[
        str, typer.Option(help=f"What distances count: {' or '.join(UNITS)}.")
    ] = "bytes",
    export: Annotated[
        Path | None, typer.Option(help="JSON file to write: target and distance of every token.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="HTML file to write: a report.")] = None,
) -> None:
    """Show how the tokens of one tokenizer align with those of another.

    SRC and DST are each a Hugging Face hub id, a folder, or a tokenizer.json.
    """
    check("--alignment", repr(alignment), " or ".join(MODES), alignment in MODES)
    check("--unit", repr(unit), " or ".join(UNITS), unit in UNITS)
    for option, path in (("--export", export), ("--html", html)):
        _check_output(option, path)
    same = export is not None and html is not None and export.resolve() == html.resolve()
    check("--export and --html", f"{str(html)!r} for both", "two files", not same)
    texts = _texts(text or [], text_file, alignment)
    found = _align(source, target, unit)
    if export is not None:
        _write(export, _exported(found))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDTH)
    found.print(console, texts, alignment)
    if html is not None:
        _write(html, found.html(texts, alignment))


def _align(source: str, target: str, unit: str) -> TokenizerAlignment:
    """The two nearest targets of every token, with a bar; cached where the federation's are."""
    columns = (TextColumn("vocabulary table"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("", total=None)
        try:
            return tokenizer_alignment.align(
                source,
                target,
                unit=unit,
                cache=cache_root() / "tables",
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        except OSError as error:
            raise FedfuseError(
                f"cache folder: expected a writable folder, as FEDFUSE_CACHE names it, got "
                f"{str(cache_root())!r}: {error}"
            ) from error


def _exported(found: TokenizerAlignment) -> str:
    content = {
        "source": found.source.fingerprint,
        "target": found.target.fingerprint,
        "unit": found.unit,
        "map": found.table.best.tolist(),
        "distance": found.table.distance[:, 0].tolist(),
    }
    return json.dumps(content) + "\n"


def _texts(given: Sequence[str], file: Path | None, mode: str) -> list[str]:
    """The texts of the options, a sample where there are none.

    Raises:
        FedfuseError: for a text or file that is empty, not UTF-8, or too long for "dtw".
    """
    texts = list(given)
    if file is not None:
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise FedfuseError(
                f"--text-file: expected a UTF-8 file, got {str(file)!r}: {error}"
            ) from error
        found = [line.rstrip("\r") for line in lines if line.strip()]
        check("--text-file", repr(str(file)), "a line of text", found)
        texts += found
    for text in texts:
        _check_text(text, mode)
    return texts or list(SAMPLE)


def _check_text(text: str, mode: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise FedfuseError(f"--text: expected UTF-8, got {text[:40]!r}") from error
    check("--text", "''", "at least one character", size)
    expected = f"at most {MAX_WARPED_BYTES} bytes with --alignment dtw"
    check(f"text {text[:40]!r}...", size, expected, mode != "dtw" or size <= MAX_WARPED_BYTES)


def _check_output(option: str, path: Path | None) -> None:
    """Refuse, before the work, a file that could not be written."""
    if path is not None:
        parent = path.parent
        good = parent.is_dir() and not path.is_dir() and os.access(parent, os.W_OK)
        check(option, repr(str(path)), "a file in a folder that exists and is writable", good)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
