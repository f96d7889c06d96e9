"""The vocabulary table against its oracle, its ties, and its cache."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from fedfuse.alignment import vocabulary_map as vocabulary
from fedfuse.alignment.table_cache import save_arrays
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.workers import build_table
from tests.oracles import mined
from tests.tokenizer_kinds import KINDS, by_hand


def texts_by_id(tokenizer: TextTokenizer) -> dict[int, bytes]:
    """The candidates, by id; of equal texts only the one in use."""
    found = tokenizer.vocabulary_bytes
    twins = {found.bytes[i] for i in found.used - found.special - found.fallback}
    return {
        i: found.bytes[i]
        for i in found.used - found.special
        if found.bytes[i] and not (i in found.fallback and found.bytes[i] in twins)
    }


def test_table_by_hand() -> None:
    source = by_hand("wordpiece", ["[U]", "cat", "##s", "dog", "cart", "##sat"])
    target = by_hand("wordpiece", ["[U]", "##sit", "cut", "cat", "##at", "##s", "bat", "car"])
    table = minimum_edit_distance_table(source, target, None)
    # [U] by role; cat and s are there; " dog" is 3 from " bat", " car", " cat" and " cut";
    # " cart" is 1 from " car" and " cat", and " car" is smaller; "sat" is 1 from "at" and "sit".
    assert table.best.tolist() == [0, 3, 5, 6, 7, 4]
    assert table.distance[:, 0].tolist() == [0, 0, 0, 3, 1, 1]
    assert table.target.dtype == np.int64
    assert table.distance.dtype == np.int32


@pytest.mark.parametrize(("source", "target"), list(permutations(KINDS, 2)))
def test_table_equals_oracle(
    tokenizers: dict[str, TextTokenizer], source: str, target: str
) -> None:
    from_, to = tokenizers[source], tokenizers[target]
    table = minimum_edit_distance_table(from_, to, None)
    candidates = texts_by_id(to)
    special = from_.vocabulary_bytes.special
    for token_id in range(4, from_.vocab_size, 37):  # the oracle is slow
        assert token_id not in special
        text = from_.token_bytes[token_id]
        found = (int(table.best[token_id]), int(table.distance[:, 0][token_id]))
        assert found == mined.nearest(text, candidates)
    # Every token against a faster check of the same rule.
    for token_id in range(4, from_.vocab_size):
        text = from_.token_bytes[token_id]
        best = min((Levenshtein.distance(text, b), b, i) for i, b in candidates.items())
        assert (table.distance[:, 0][token_id], table.best[token_id]) == (best[0], best[2])


some_bytes = st.lists(st.sampled_from([b"a", b"b", b" ", b"\xe6", b"ab"]), max_size=6).map(b"".join)


@pytest.mark.parametrize("kind", KINDS)
def test_own_table_is_the_identity(tokenizers: dict[str, TextTokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    table = minimum_edit_distance_table(tokenizer, tokenizer, None)
    assert table.best.tolist() == list(range(tokenizer.vocab_size))
    assert not table.distance.any()


def test_equal_vocabularies_of_different_tokenizers_agree(
    tokenizers: dict[str, TextTokenizer],
) -> None:
    """Other special roles, so another fingerprint: the search itself finds every token."""
    for kind in ("byte-level", "unigram", "wordpiece"):
        other = TextTokenizer.from_json(tokenizers[kind].to_json(), {"bos": "<s>", "eos": "</s>"})
        table = minimum_edit_distance_table(tokenizers[kind], other, None)
        assert np.delete(table.best, 2).tolist() == [i for i in range(other.vocab_size) if i != 2]
        assert table.best[2] == 1  # pad, which has no role there, ends the text


def test_byte_tokens_are_second_choice(tokenizers: dict[str, TextTokenizer]) -> None:
    """SentencePiece has "e" twice, also as <0x65> with the smaller id; no text gives that."""
    target = tokenizers["sentencepiece"]
    table = minimum_edit_distance_table(tokenizers["byte-level"], target, None)
    e = tokenizers["byte-level"].vocabulary["e"]
    assert table.best[e] == target.vocabulary["e"] > target.vocabulary["<0x65>"]
    # Half a character is only a byte token.
    half = tokenizers["byte-level"].vocabulary["ð"]
    assert table.best[half] == target.vocabulary["<0xF0>"]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ({"bos": "x", "eos": "y", "pad": "z"}, {"bos": "x", "eos": "y", "pad": "z"}, [1, 2, 3]),
        ({"bos": "x", "eos": "y", "pad": "z"}, {"cls": "y", "sep": "z"}, [2, 3, 3]),
        ({"cls": "x", "sep": "y", "mask": "z"}, {"bos": "z", "eos": "y", "mask": "x"}, [3, 2, 1]),
        # One token for everything is predicted as an end.
        ({"bos": "z", "eos": "z", "pad": "z"}, {"bos": "x", "eos": "y"}, [4, 5, 2]),
    ],
)
def test_special_tokens_map_by_role(
    source: dict[str, str], target: dict[str, str], expected: list[int]
) -> None:
    tokens = ["[U]", "x", "y", "z"]
    table = minimum_edit_distance_table(
        by_hand("wordpiece", tokens, **source),
        by_hand("wordpiece", [*tokens, "xx", "yy"], **target),
        None,
    )
    assert table.best[1:].tolist() == expected


def test_special_token_without_a_partner_goes_by_its_text() -> None:
    source = by_hand("wordpiece", ["[U]", "[MASK]", "a"], mask="[MASK]")
    target = by_hand("wordpiece", ["[U]", "a", "MASK"])
    assert minimum_edit_distance_table(source, target, None).best.tolist() == [0, 2, 1]


def test_special_tokens_are_nobodys_neighbour() -> None:
    source = by_hand("wordpiece", ["[U]", "end"])
    target = by_hand("wordpiece", ["[U]", "ends", "endings"], eos="ends")
    assert minimum_edit_distance_table(source, target, None).best.tolist() == [0, 2]


def test_target_without_text_is_refused() -> None:
    with pytest.raises(FedfuseError, match="at least one token for text"):
        minimum_edit_distance_table(
            by_hand("wordpiece", ["[U]", "a"]), by_hand("wordpiece", ["[U]"]), None
        )


def test_cache(
    tokenizers: dict[str, TextTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tokenizers["wordpiece"], tokenizers["unigram"]
    folder = tmp_path / "new" / "cache"
    first = minimum_edit_distance_table(source, target, folder)
    (file,) = folder.iterdir()
    assert source.fingerprint[:32] in file.name
    monkeypatch.setattr(vocabulary, "_build", lambda *_: pytest.fail("built again"))
    second = minimum_edit_distance_table(source, target, folder)
    np.testing.assert_array_equal(first.target, second.target)
    np.testing.assert_array_equal(first.distance, second.distance)
    assert second.target.dtype == np.int64


def _pickled(path: Path, size: int) -> None:
    with path.open("wb") as file:
        np.savez(
            file, target=np.array([[None]] * size), distance=np.zeros((size, 1), dtype=np.int32)
        )


def _out_of_range(path: Path, size: int) -> None:
    save_arrays(path, target=np.full((size, 1), 10**6), distance=np.zeros((size, 1), np.int32))


def _too_short(path: Path, size: int) -> None:
    save_arrays(path, target=np.zeros((3, 1), np.int64), distance=np.zeros((3, 1), np.int32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, size: path.write_bytes(b""),
        lambda path, size: path.write_bytes(b"not an archive"),
        lambda path, size: path.write_bytes(path.read_bytes()[:100]),
        _pickled,
        _out_of_range,
        _too_short,
    ],
)
def test_damaged_cache_is_replaced(
    tokenizers: dict[str, TextTokenizer], tmp_path: Path, damage: object
) -> None:
    source, target = tokenizers["wordpiece"], tokenizers["unigram"]
    good = minimum_edit_distance_table(source, target, tmp_path)
    (file,) = tmp_path.iterdir()
    damage(file, source.vocab_size)  # type: ignore[operator]
    again = minimum_edit_distance_table(source, target, tmp_path)
    np.testing.assert_array_equal(good.target, again.target)
    reread = vocabulary._load(file, source.vocab_size, target.vocab_size)
    assert reread is not None
    np.testing.assert_array_equal(good.target, reread.target)


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FedfuseError, match="disk full"):
        save_arrays(tmp_path / "table.npz", target=np.zeros((3, 1)))
    assert list(tmp_path.iterdir()) == []


def test_nearest_targets_share_by_inverse_distance() -> None:
    source = by_hand("wordpiece", ["[U]", "[END]", "ab", "abcd"], eos="[END]")
    target = by_hand("wordpiece", ["[U]", "ab", "abc", "end"], eos="end")
    table = minimum_edit_distance_table(source, target, None, m=2)
    assert table.target.tolist()[1:] == [[3, 3], [1, 2], [2, 1]]
    assert table.distance.tolist()[2:] == [[0, 1], [1, 2]]
    np.testing.assert_allclose(table.weight[1:], [[1, 0], [1, 0], [2 / 3, 1 / 3]])
    assert minimum_edit_distance_table(source, target, None, m=9).target.shape == (4, 2)


def test_unit_of_the_distance() -> None:
    """One letter is two bytes."""
    source = by_hand("byte-level", ["<s>", "\u00c3\u00a9"])
    target = by_hand("byte-level", ["<s>", "e"])
    for unit, expected in (("bytes", 2), ("characters", 1)):
        table = minimum_edit_distance_table(source, target, None, unit=unit)
        assert table.distance[1, 0] == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"unit": "words"}, "unit of edit distance: expected bytes, characters, got 'words'"),
        ({"m": 0}, "nearest targets per token: expected 1 or more, got 0"),
    ],
)
def test_bad_settings_are_refused(
    tokenizers: dict[str, TextTokenizer], setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(FedfuseError, match=message):
        minimum_edit_distance_table(tokenizers["wordpiece"], tokenizers["unigram"], None, **setting)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(
    cached: tuple[TextTokenizer, TextTokenizer, Path, VocabularyTable], place: float, bit: int
) -> None:
    source, target, file, good = cached
    damaged = bytearray(file.read_bytes())
    damaged[int(place * (len(damaged) - 1))] ^= 1 << bit
    copy = file.with_name("damaged.npz")
    copy.write_bytes(damaged)
    found = vocabulary._load(copy, source.vocab_size, target.vocab_size)
    if found is not None:
        np.testing.assert_array_equal(found.target, good.target)
        np.testing.assert_array_equal(found.distance, good.distance)


@pytest.fixture(scope="module")
def cached(
    tokenizers: dict[str, TextTokenizer], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextTokenizer, TextTokenizer, Path, VocabularyTable]:
    folder = tmp_path_factory.mktemp("cache")
    source, target = tokenizers["wordpiece"], tokenizers["unigram"]
    table = minimum_edit_distance_table(source, target, folder)
    (file,) = folder.iterdir()
    return source, target, file, table


def test_concurrent_writers_leave_one_good_table(tmp_path: Path) -> None:
    """Eight processes want the same table at the same time."""
    source = by_hand("wordpiece", ["[U]", "ab", "abcd"])
    target = by_hand("wordpiece", ["[U]", "ab", "abc"])
    arguments = [(source.to_json(), target.to_json(), tmp_path)] * 8
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(build_table, arguments))
    assert found == [found[0]] * 8
    (file,) = tmp_path.iterdir()
    table = vocabulary._load(file, source.vocab_size, target.vocab_size)
    assert table is not None
    assert table.best.tolist() == found[0]
