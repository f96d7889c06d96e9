"""Knowledge of a model that does not learn, in one file: an entry for each input it was given.

An SQLite file of the model's name, its tokenizer, and an entry for each input, found by a hash of
the input's ids and label rows. It holds no text. So the file answers for exactly the inputs that it
holds, in whatever set and order they are asked for, and grows while a model is still being asked.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError, check
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

_APPLICATION, _VERSION = 0x46464B41, 1  # "FFKA"
_HEADER = struct.Struct("<IIf")  # rows, entries a row, context loss
_AT_ONCE = 500  # entries in one query
_MISSING_SHOWN = 60  # characters of a prompt in an error

Key = bytes


@dataclass(frozen=True, slots=True, eq=False)
class InputKnowledge:
    """A model's knowledge of one input with R label rows; see ``Knowledge`` for the arrays.

    Attributes:
        indices: ``[R, k]`` token ids.
        logprobs: ``[R, k]`` their log-probabilities, descending; -inf fills unused slots.
        tail_logprob: ``[R]`` log of the mass outside them.
        label_logprob: ``[R]`` log-probability of the label token.
        context_loss: loss of the prompt, nats per byte; NaN where unknown.
        asked: entries that the model was asked for; it may have given fewer.
    """

    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    tail_logprob: Float32[ndarray, " rows"]
    label_logprob: Float32[ndarray, " rows"]
    context_loss: float
    asked: int

    def to_bytes(self) -> bytes:
        """Header and arrays, little-endian."""
        header = _HEADER.pack(*self.logprobs.shape, self.context_loss)
        floats = (self.logprobs, self.tail_logprob, self.label_logprob)
        arrays = [self.indices.astype("<u4"), *(values.astype("<f4") for values in floats)]
        return header + b"".join(values.tobytes() for values in arrays)

    @classmethod
    def from_bytes(cls, content: bytes, asked: int) -> InputKnowledge:
        """The inverse of ``to_bytes``.

        Raises:
            FedfuseError: for bytes that are no entry.
        """
        good = len(content) >= _HEADER.size
        rows, k, context_loss = _HEADER.unpack_from(content) if good else (0, 0, 0.0)
        whole = _HEADER.size + 4 * rows * (2 * k + 2)
        check("entry", f"{len(content)} bytes", f"{whole} bytes", good and len(content) == whole)
        numbers = np.frombuffer(content, "<u4", offset=_HEADER.size)
        floats = numbers[rows * k :].view("<f4").astype(np.float32)
        logprobs, tail, label = np.split(floats, [rows * k, rows * k + rows])
        indices = numbers[: rows * k].astype(np.int64).reshape(rows, k)
        return cls(indices, logprobs.reshape(rows, k), tail, label, context_loss, asked)


class KnowledgeArchive:
    """A file of ``InputKnowledge``; threads may share it.

    Attributes:
        model: name of the model.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, path: Path, model: str, tokenizer: TextTokenizer) -> None:
        """Open a file to read and write; make it where there is none.

        Raises:
            FedfuseError: for a file of another model or tokenizer, or that cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FedfuseError(f"{str(path)!r} cannot be written: {error}") from error
        self._open(path, f"{path.resolve().as_uri()}?mode=rwc")
        self.model, self.tokenizer = model, tokenizer
        with self._errors("a file that can be written"), self._connection:
            if not self._number("application_id"):
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            self._connection.execute("CREATE TABLE IF NOT EXISTS facts (name PRIMARY KEY, value)")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS inputs (key PRIMARY KEY, asked, content) WITHOUT ROWID"
            )
            self._connection.executemany(
                "INSERT OR IGNORE INTO facts VALUES (?, ?)",
                [("model", model), ("tokenizer", tokenizer.to_json())],
            )
        known, own = self._fact("model"), TextTokenizer.from_json(self._fact("tokenizer"))
        check(f"{str(path)!r}: model", repr(known), repr(model), known == model)
        same = own.fingerprint == tokenizer.fingerprint
        check(f"{str(path)!r}: tokenizer", "another", "the model's own", same)

    @classmethod
    def read(cls, path: Path) -> KnowledgeArchive:
        """Open a file to read.

        Raises:
            FedfuseError: for a file that is no archive, or of another version.
        """
        archive = cls.__new__(cls)
        check(str(path), "none", "a file that fedfuse extract wrote", path.is_file())
        archive._open(path, f"{path.resolve().as_uri()}?mode=ro")
        archive.model = archive._fact("model")
        archive.tokenizer = TextTokenizer.from_json(archive._fact("tokenizer"))
        return archive

    def _open(self, path: Path, uri: str) -> None:
        self.path, self._mutex = path, threading.Lock()
        with self._errors("a file that fedfuse extract wrote"):
            connect = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=30)
            self._connection = connect
            weakref.finalize(self, connect.close)
            connect.execute("PRAGMA trusted_schema = OFF")
            found = self._number("application_id"), self._number("user_version")
            new = found == (0, 0) and "mode=rwc" in uri
        expected = f"version {_VERSION} of a file that fedfuse extract wrote"
        good = new or found == (_APPLICATION, _VERSION)
        check(f"{str(path)!r}", "another file", expected, good)

    def _number(self, pragma: str) -> int:
        return int(self._connection.execute(f"PRAGMA {pragma}").fetchone()[0])

    def _fact(self, name: str) -> str:
        with self._errors("a whole file"):
            query = "SELECT value FROM facts WHERE name = ?"
            found = self._connection.execute(query, (name,)).fetchone()
        check(f"{str(self.path)!r}: {name}", "none", "one", found)
        return str(found[0])

    @contextmanager
    def _errors(self, expected: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise FedfuseError(f"{str(self.path)!r}: expected {expected}, got {error}") from error

    def get(self, keys: Sequence[Key]) -> dict[Key, InputKnowledge]:
        """The entries that there are among ``keys``.

        Raises:
            FedfuseError: for a file that is damaged.
        """
        found: dict[Key, InputKnowledge] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            query = f"SELECT * FROM inputs WHERE key IN ({','.join('?' * len(part))})"
            with self._errors("a whole file"), self._mutex:
                rows = self._connection.execute(query, part).fetchall()
            for key, asked, content in rows:
                found[key] = InputKnowledge.from_bytes(content, asked)
        return found

    def put(self, entries: Mapping[Key, InputKnowledge]) -> None:
        """Keep entries, on disk when this returns.

        Raises:
            FedfuseError: when they cannot be written.
        """
        rows = [(key, entry.asked, entry.to_bytes()) for key, entry in entries.items()]
        with self._errors("a file that can be written"), self._mutex, self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?)", rows)

    def clear(self) -> None:
        """Forget all entries."""
        with self._errors("a file that can be written"), self._mutex, self._connection:
            self._connection.execute("DELETE FROM inputs")

    def __len__(self) -> int:
        """Number of entries."""
        with self._errors("a whole file"), self._mutex:
            return int(self._connection.execute("SELECT COUNT(*) FROM inputs").fetchone()[0])

    def knowledge(
        self, data: TokenizedDataset, k: int
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """As ``KnowledgeSource.knowledge``.

        Raises:
            FedfuseError: for samples that the file does not hold, saying how many.
        """
        keys = input_keys(data)
        held = self.get(keys)
        missing = [i for i, key in enumerate(keys) if has_rows(data, i) and key not in held]
        if missing:
            example = data.samples[missing[0]].text[:_MISSING_SHOWN]
            raise FedfuseError(
                f"{str(self.path)!r}: expected knowledge of all {len(data)} samples that the model "
                f"is asked about, got none of {len(missing)}, such as {example!r}; it answers for "
                "what it was extracted from alone: fedfuse extract with the run's own config "
                "(data, seed, data.max-length, fusion.evidence), or fusion.evidence = 'open' where "
                "blind questions are missing"
            )
        return collect(data, [held.get(key) for key in keys], k)


def has_rows(data: TokenizedDataset, number: int) -> bool:
    """Whether anything of a sample is scored."""
    return bool(data.rows.offsets[number + 1] > data.rows.offsets[number])


def input_keys(data: TokenizedDataset) -> list[Key]:
    """Hash (SHA-256) of each sample's input and of which rows of it are label rows."""
    offsets = data.rows.offsets
    return [
        hashlib.sha256(
            data.input_ids(i).astype("<i8").tobytes()
            + b"|"
            + data.rows.row[offsets[i] : offsets[i + 1]].astype("<i8").tobytes()
        ).digest()
        for i in range(len(data))
    ]


def entries_of(
    data: TokenizedDataset,
    knowledge: Knowledge,
    context_loss: Float32[ndarray, " samples"],
    asked: int,
) -> dict[Key, InputKnowledge]:
    """Entries of a data set's samples by key: the inverse of ``collect``."""
    found = {}
    for i, key in enumerate(input_keys(data)):
        rows = slice(knowledge.offsets[i], knowledge.offsets[i + 1])
        found[key] = InputKnowledge(
            knowledge.indices[rows],
            knowledge.logprobs[rows],
            knowledge.tail_logprob[rows],
            knowledge.label_logprob[rows],
            float(context_loss[i]),
            asked,
        )
    return found


def collect(
    data: TokenizedDataset, entries: Sequence[InputKnowledge | None], k: int
) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
    """Knowledge of a data set, and ``[N]`` context losses, from an entry for each sample.

    Args:
        data: N samples.
        entries: one each; None only where nothing is scored.
        k: entries of a row to keep at most; what is beyond is added to the tail.

    Raises:
        FedfuseError: for entries that are not of these samples, or no distributions.
    """
    known = [entry for entry in entries if entry is not None]
    width = min(k, max((entry.indices.shape[1] for entry in known), default=0))
    rows = len(data.rows.token)
    indices = np.zeros((rows, width), dtype=np.int64)
    logprobs = np.full((rows, width), -np.inf, dtype=np.float32)
    tail, label = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)
    context_loss = np.full(len(data), np.nan, dtype=np.float32)
    for i, entry in enumerate(entries):
        if entry is None or not has_rows(data, i):
            continue
        here = slice(data.rows.offsets[i], data.rows.offsets[i + 1])
        expected = here.stop - here.start
        found = len(entry.label_logprob)
        check("entry", f"{found} rows", f"{expected} rows", found == expected)
        kept = min(width, entry.indices.shape[1])
        indices[here, :kept] = entry.indices[:, :kept]
        logprobs[here, :kept] = entry.logprobs[:, :kept]
        beyond = np.logaddexp.reduce(entry.logprobs[:, kept:], axis=1, initial=-np.inf)
        tail[here] = np.logaddexp(entry.tail_logprob, beyond)
        label[here] = entry.label_logprob
        context_loss[i] = entry.context_loss
    knowledge = Knowledge(
        offsets=data.rows.offsets,
        indices=indices,
        logprobs=logprobs,
        tail_logprob=tail,
        label_logprob=label,
        label_bytes=data.label_bytes,
        tokenizer=data.tokenizer.fingerprint,
        public=data.fingerprint,
    )
    knowledge.validate(
        vocab_size=data.tokenizer.vocab_size,
        tokenizer=data.tokenizer.fingerprint,
        public=data.fingerprint,
        num_rows=rows,
    )
    return knowledge, context_loss
