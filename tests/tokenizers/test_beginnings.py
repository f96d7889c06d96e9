"""Groups of inputs that begin alike: they do, they save tokens, and what is left is left."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.data.sample import Sample
from fedfuse.tokenizers.beginnings import Group, Sharing, containing, groups, parts
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

INPUTS = st.lists(st.lists(st.sampled_from([0, 1, 256]), min_size=1, max_size=9), max_size=14)


def kept(inputs: list[list[int]]) -> list[np.ndarray]:
    """Those that no other begins with."""
    ids = [np.array(each, dtype=np.int64) for each in inputs]
    return [ids[place] for place in np.unique(containing(ids))]


def test_the_options_of_a_question_are_a_group() -> None:
    few, many = [1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9, 9, 9]
    inputs = [[*many, 7, 7], [*few, 8], [*many, 5], [*few, 7, 7, 7], [3, 3]]
    found = groups([np.array(ids) for ids in inputs], 100)
    assert found == [Group(6, (3, 1), 9, 16), Group(8, (2, 0), 10, 19)]
    assert [group.read for group in found] == [10, 11]
    # Neither with one that is too long, nor where little is shared.
    assert groups([np.array(ids) for ids in inputs], 8) == []
    assert groups([np.array([1, 2, 3]), np.array([1, 4, 5])], 100) == []


@given(INPUTS, st.integers(1, 12))
def test_groups_share_what_they_say(inputs: list[list[int]], longest: int) -> None:
    ids = kept(inputs)
    found = groups(ids, longest)
    places = [place for group in found for place in group.inputs]
    assert len(places) == len(set(places))
    for group in found:
        begin = ids[group.inputs[0]][: group.length]
        sizes = [len(ids[place]) for place in group.inputs]
        assert all(np.array_equal(ids[place][: group.length], begin) for place in group.inputs)
        assert 0 < group.length < min(sizes) <= max(sizes) == group.longest <= longest
        assert group.tokens == sum(sizes)
        assert group.read == group.length + sum(size - group.length for size in sizes)
        assert group.read <= 0.7 * group.tokens


@given(INPUTS)
def test_no_other_groups_read_less(inputs: list[list[int]]) -> None:
    """Of all ways to cut what is sorted, by the slow way."""
    ids = sorted(each.tolist() for each in kept(inputs))
    least = [0]
    for end in range(1, len(ids) + 1):
        ways = []
        for begin in range(end):
            part = ids[begin:end]
            alike = 0
            while alike < min(map(len, part)) - 1 and len({i[alike] for i in part}) == 1:
                alike += 1
            if len(part) == 1 or alike:
                ways.append(least[begin] + sum(map(len, part)) - (len(part) - 1) * alike)
        least.append(min(ways))
    found = groups([np.array(each) for each in ids], 100)
    alone = sum(map(len, ids)) - sum(group.tokens for group in found)
    # Groups that save little are read as they are.
    assert least[-1] <= sum(group.read for group in found) + alone
    if all(group.read <= 0.7 * group.tokens for group in found) and not alone:
        assert sum(group.read for group in found) == least[-1]


@given(INPUTS, st.integers(1, 40), st.integers(4, 12), st.booleans())
def test_parts_are_within_limits(
    inputs: list[list[int]], most: int, longest: int, mixed: bool
) -> None:
    found = groups(kept(inputs), 100)
    seen = list(parts(found, most, 3, Sharing(longest, mixed)))
    assert sorted(g.inputs for part in seen for g in part) == sorted(g.inputs for g in found)
    for part in seen:
        size = max(group.length for group in part) + max(group.rest for group in part)
        assert len(part) == 1 or sum(len(group.inputs) for group in part) * size <= most
        assert len(part) == 1 or size <= longest
        assert mixed or len({group.length for group in part}) == 1


def test_batches_tell_what_their_inputs_share(tiny_tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tiny_tokenizers["byte-level-bpe"]
    options = ["a red lamp", "the window of a house", "nothing at all", "two"]
    prompts = ["Where was it then, and why? ", "Who told you about the lamp? ", "And? "]
    samples = [Sample(prompt, option) for prompt in prompts for option in options]
    data = TokenizedDataset(tokenizer, samples, 64)
    plain = list(data.batches(10_000))
    found = list(data.batches(10_000, pass_cost=8, share=Sharing(100, mixed=True)))
    assert all(batch.shared is None for batch in plain)
    rows = {(batch.index[i], int(batch.label[i])) for batch in found for i in range(len(batch.row))}
    assert rows == {(i, int(token)) for i, token in enumerate(data.rows.token)}
    read = 0
    for batch in found:
        if batch.shared is None:
            read += batch.input_ids.numel()
            continue
        shared = batch.shared
        for number, group in enumerate(shared.group):
            length = int(shared.length[group])
            begin = batch.input_ids[:, :length]
            assert begin[number].equal(begin[shared.first[group]])
            assert shared.rest[number] > 0
            whole = length + int(shared.rest[number])
            assert batch.input_ids[number, whole:].eq(0).all()
            assert int(batch.row[batch.sample == number].max()) == whole - 1
        read += int(shared.length.sum()) + int(shared.rest.sum())
    assert read < 0.7 * sum(batch.input_ids.numel() for batch in plain)
