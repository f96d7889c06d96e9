"""Samples count bytes, and a set's fingerprint is that of its texts in their order."""

from __future__ import annotations

from fedfuse.data.sample import Sample, Splits, fingerprint, whole_fingerprint


def test_bytes_not_characters() -> None:
    sample = Sample("né", " zü😀.")
    assert sample.text == "né zü😀."
    assert (sample.prompt_bytes, sample.answer_bytes) == (3, 9)


def test_fingerprint() -> None:
    first, second = Sample("a", " b"), Sample("c", " d")
    base = fingerprint([first, second])
    assert len(base) == 64
    assert base == fingerprint(iter([Sample("a", " b", "domain"), second]))
    different = [
        [second, first],
        [first],
        [first, second, second],
        [Sample("a ", "b"), second],
        [Sample("a", ' b"], ["c'), second],
        [],
    ]
    assert len({base, *map(fingerprint, different)}) == 1 + len(different)
    more = [[Sample("a", " b", "domain"), second], [Sample("a", " b", "", ("x", " b"), 1), second]]
    whole = whole_fingerprint([first, second])
    assert len({whole, *map(whole_fingerprint, [*different, *more])}) == 1 + len(different) + 2


def test_domains_are_those_of_the_test() -> None:
    samples = [Sample("", "x", domain) for domain in ("b", "a", "b")]
    assert Splits([[Sample("", "x", "c")]], [], samples).domains == ["a", "b"]
