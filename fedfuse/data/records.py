"""Raw records of a data set: JSON lines from disk, or a Hugging Face data set by id or folder."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedfuse.data.hub import library_errors, looks_like_path
from fedfuse.errors import FedfuseError

Record = dict[str, Any]
# "file:line" or "data set[split]:row", and the record found there.
Origin = tuple[str, Record]


def source_name(source: str) -> str:
    """The short name of a source: its last path component, or the configuration of a hub id."""
    last = source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".jsonl")
    return last.rsplit(":", 1)[-1]


def local_path(source: str) -> Path | None:
    """The file or folder a source names, None for a hub id.

    Raises:
        FedfuseError: for a path that does not exist.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if looks_like_path(source):
        raise FedfuseError(
            f"data source {source!r} does not exist: expected a .jsonl file, a folder with one "
            ".jsonl file a split, or the id of a data set on the Hugging Face hub"
        )
    return None


def available_splits(source: str) -> list[str]:
    """Names of a source's splits; empty for a single file, which has none.

    Raises:
        FedfuseError: for a source that does not exist.
    """
    path = local_path(source)
    if path is not None and path.is_file():
        return []
    if path is not None and (files := sorted(path.glob("*.jsonl"))):
        return [file.stem for file in files]
    import datasets

    with _hub_errors(source):
        return list(datasets.get_dataset_split_names(*_hub_name(source, path)))


def load_records(source: str, split: str) -> list[Origin]:
    """Read one split of a data set.

    Args:
        source: a ``.jsonl`` file (read whatever the split), a folder with ``{split}.jsonl``, a
            folder in the hub's format, or a hub id (``id:configuration`` where it has several).
        split: the split's name.

    Returns:
        Each record with where it stands, for error messages. A hub column of class labels brings
        its class names along as ``options``.

    Raises:
        FedfuseError: for a source or split that does not exist, or a line that is no JSON object.
    """
    path = local_path(source)
    if path is not None and path.is_file():
        return _read_lines(path)
    splits = available_splits(source)
    if split not in splits:
        raise FedfuseError(
            f"data source {source!r} has no split {split!r}; it has: {', '.join(splits) or 'none'}"
        )
    if path is not None and (file := path / f"{split}.jsonl").is_file():
        return _read_lines(file)
    return _read_hub(source, path, split)


def _read_lines(path: Path) -> list[Origin]:
    records: list[Origin] = []
    # Only the newline ends a record: other Unicode line ends may stand inside a string.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        origin = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise FedfuseError(f"{origin}: not valid JSON ({error}): {line[:80]!r}") from error
        if not isinstance(record, dict):
            raise FedfuseError(f"{origin}: a record must be a JSON object, not {line[:80]!r}")
        records.append((origin, record))
    return records


def _read_hub(source: str, path: Path | None, split: str) -> list[Origin]:
    import datasets

    with _hub_errors(source):
        loaded = datasets.load_dataset(*_hub_name(source, path), split=split)
    label = loaded.features.get("label")
    names = {"options": label.names} if isinstance(label, datasets.ClassLabel) else {}
    return [(f"{source}[{split}]:{row}", names | record) for row, record in enumerate(loaded)]


def _hub_name(source: str, path: Path | None) -> tuple[str, str | None]:
    """Id or folder, and configuration."""
    if path is not None:
        return str(path), None
    name, _, config = source.partition(":")
    return name, config or None


def _hub_errors(source: str) -> AbstractContextManager[None]:
    from datasets.utils import logging

    return library_errors(f"data source {source!r}", "a Hugging Face data set", logging)
