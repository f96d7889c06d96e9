"""A file of knowledge gives back what was put into it, in any order; other files are refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.archive import InputKnowledge, KnowledgeArchive, entries_of, input_keys
from fedfuse.knowledge.extract import extract_with_contexts
from tests.conftest import Tiny

K = 5


@pytest.fixture
def model(tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny("llama")


@pytest.fixture
def file(model: Tiny, public: list[Sample], tmp_path: Path) -> Path:
    data = model.encode(public)
    archive = KnowledgeArchive(tmp_path / "file", "tiny", model.tokenizer)
    archive.put(entries_of(data, *extract_with_contexts(model, data, K), K))
    return tmp_path / "file"


def test_it_answers_for_any_of_its_samples_in_any_order(
    model: Tiny, public: list[Sample], file: Path
) -> None:
    archive = KnowledgeArchive.read(file)
    assert archive.model == "tiny"
    assert archive.tokenizer.fingerprint == model.tokenizer.fingerprint
    data = model.encode([public[4], public[1], public[4]])
    found, losses = archive.knowledge(data, K)
    right, contexts = extract_with_contexts(model, data, K)
    assert found.public == right.public
    np.testing.assert_array_equal(found.indices, right.indices)
    for name in ("logprobs", "tail_logprob", "label_logprob"):
        np.testing.assert_allclose(getattr(found, name), getattr(right, name), atol=1e-4)
    np.testing.assert_allclose(losses, contexts, atol=1e-5)


def test_entries_beyond_k_are_in_the_tail(model: Tiny, public: list[Sample], file: Path) -> None:
    data = model.encode(public)
    found, right = (
        KnowledgeArchive.read(file).knowledge(data, 2)[0],
        extract_with_contexts(model, data, 2)[0],
    )
    np.testing.assert_array_equal(found.indices, right.indices)
    np.testing.assert_allclose(found.tail_logprob, right.tail_logprob, atol=1e-4)
    more = KnowledgeArchive.read(file).knowledge(data, 9)[0]
    assert more.k == K


def test_what_a_model_is_given_decides_not_what_the_sample_is_called(
    model: Tiny, public: list[Sample], file: Path
) -> None:
    """A cut prompt is another input; another place where the answer begins is another question."""
    archive, first = KnowledgeArchive.read(file), public[0]
    for data in (
        model.encode([first], max_length=8),
        model.encode([Sample(first.prompt[:-4], first.prompt[-4:] + first.answer)]),
    ):
        with pytest.raises(FedfuseError, match="got none of 1, such as"):
            archive.knowledge(data, K)
    archive.knowledge(model.encode([Sample(first.prompt, first.answer, "elsewhere")]), K)


def test_samples_that_are_taken_are_as_they_were(model: Tiny, public: list[Sample]) -> None:
    data, which = model.encode(public), np.array([3, 0, 5])
    taken, alone = data.take(which), model.encode([public[i] for i in which])
    assert input_keys(taken) == input_keys(alone)
    assert taken.fingerprint == alone.fingerprint
    for name in ("offsets", "token", "row", "byte_start", "byte_end", "begin"):
        np.testing.assert_array_equal(getattr(taken.rows, name), getattr(alone.rows, name))
    both = [part.batch(np.arange(3)) for part in (taken, alone)]
    np.testing.assert_array_equal(both[0].input_ids, both[1].input_ids)
    ids = data.input_ids(3).tolist()
    (text,) = model.tokenizer.encode([public[3].text])
    assert ids == [model.tokenizer.bos_id, *text.ids.tolist()][: len(ids)]
    assert ids[-1] == data.rows.token[data.rows.offsets[4] - 1]


def test_an_entry_is_the_same_as_bytes() -> None:
    rng = np.random.default_rng(0)
    logprobs, tail, label = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=3)
    floats = [values.astype(np.float32) for values in (logprobs, tail, label)]
    entry = InputKnowledge(rng.integers(0, 1 << 20, (3, 2)), *floats, 0.5, 7)
    found = InputKnowledge.from_bytes(entry.to_bytes(), 7)
    for name in ("indices", "logprobs", "tail_logprob", "label_logprob"):
        np.testing.assert_array_equal(getattr(found, name), getattr(entry, name))
    assert (found.context_loss, found.asked) == (0.5, 7)
    for broken in (b"", entry.to_bytes()[:-1], entry.to_bytes() + b"x"):
        with pytest.raises(FedfuseError, match="entry: expected"):
            InputKnowledge.from_bytes(broken, 7)


def test_another_model_or_tokenizer_cannot_be_added(
    tiny: Callable[[str], Tiny], model: Tiny, file: Path
) -> None:
    with pytest.raises(FedfuseError, match="model: expected 'other', got 'tiny'"):
        KnowledgeArchive(file, "other", model.tokenizer)
    with pytest.raises(FedfuseError, match="tokenizer: expected the model's own"):
        KnowledgeArchive(file, "tiny", tiny("gpt2").tokenizer)
    with pytest.raises(FedfuseError, match=r"cannot be written|can be written"):
        KnowledgeArchive(file / "below", "tiny", model.tokenizer)


def test_other_files_are_refused(model: Tiny, file: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE a (b)").connection.close()
    newer = sqlite3.connect(file)
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    for name in ("text", "other", "file"):
        with pytest.raises(FedfuseError, match=f"{name}'.*a file that fedfuse extract wrote"):
            KnowledgeArchive.read(tmp_path / name)
    with pytest.raises(FedfuseError, match="fedfuse extract wrote, got none"):
        KnowledgeArchive.read(tmp_path / "nothing")


def test_values_that_are_no_distribution_are_refused(
    model: Tiny, public: list[Sample], file: Path
) -> None:
    """Whoever wrote the file: what it says is looked at before it is used."""
    data = model.encode(public[:1])
    connection = sqlite3.connect(file)
    [key] = input_keys(data)
    [(content,)] = connection.execute("SELECT content FROM inputs WHERE key = ?", (key,))
    entry = InputKnowledge.from_bytes(content, K)
    entry.tail_logprob[:] = 0.0
    connection.execute("UPDATE inputs SET content = ? WHERE key = ?", (entry.to_bytes(), key))
    connection.commit()
    connection.close()
    with pytest.raises(FedfuseError, match="mass"):
        KnowledgeArchive.read(file).knowledge(data, K)
