"""Groups of inputs that begin alike: they do, they save tokens, and what is left is left."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.data.sample import Sample
from fedfuse.tokenizers.beginnings import Group, containing, groups, pack
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
    assert found == [Group(6, (3, 1), 16), Group(8, (2, 0), 19)]
    assert [group.read for group in found] == [10, 11]
    # Neither with one that is too long, nor where little is shared.
    assert groups([np.array(ids) for ids in inputs], 8) == []
    assert groups([np.arange(11), np.array([0, *range(12, 22)])], 100) == []


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
        assert 0 < group.length < min(sizes) <= max(sizes) <= longest
        assert group.tokens == sum(sizes)
        assert group.read == group.length + sum(size - group.length for size in sizes)
        assert group.read <= 0.9 * group.tokens


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
    if all(group.read <= 0.9 * group.tokens for group in found) and not alone:
        assert sum(group.read for group in found) == least[-1]


@given(INPUTS)
def test_packed_groups_hold_every_token_once(inputs: list[list[int]]) -> None:
    ids = kept(inputs)
    found = groups(ids, 100)
    if not found:
        return
    whole = [ids[place] for group in found for place in group.inputs]
    packed = pack(found, [np.array([len(ids[place]) for place in g.inputs]) for g in found])
    assert packed.input.shape[1] == max(group.read for group in found)
    for number, mine in enumerate(whole):
        group, length, size = packed.group[number], packed.length[number], len(mine)
        row = np.arange(size)
        row += np.where(row >= length, packed.moved[number], 0)
        assert packed.position[group, row].tolist() == list(range(size))
        source = packed.input[group, row]
        assert [whole[one][place] for place, one in enumerate(source)] == mine.tolist()
        branch = packed.branch[group]
        assert not branch[row[:length]].any()
        # What follows is a branch of its own, and no padding is in it.
        assert set(np.flatnonzero(branch == branch[row[-1]])) == set(row[length:])


def test_batches_read_what_inputs_share_once(tiny_tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tiny_tokenizers["byte-level-bpe"]
    options = ["a red lamp", "the window of a house", "nothing at all", "two"]
    prompts = ["Where was it then, and why? ", "Who told you about the lamp? ", "And? "]
    samples = [Sample(prompt, option) for prompt in prompts for option in options]
    data = TokenizedDataset(tokenizer, samples, 64)
    plain = list(data.batches(10_000))
    found = list(data.batches(10_000, pass_cost=8, longest=100))
    assert all(batch.layout is None for batch in plain)
    rows = {(batch.index[i], int(batch.label[i])) for batch in found for i in range(len(batch.row))}
    assert rows == {(i, int(token)) for i, token in enumerate(data.rows.token)}
    read = 0
    for batch in found:
        for sample, row, index in zip(batch.sample, batch.row, batch.index, strict=True):
            ids = batch.input_ids[sample]
            if batch.layout:
                branch = batch.layout.branch[sample]
                seen = (branch == 0) | (branch == branch[row])
                assert batch.layout.position[sample, row] == data.rows.row[index]
            else:
                seen = torch.ones(len(ids), dtype=torch.bool)
            seen[row + 1 :] = False
            before = data.input_ids(data.rows.sample_of_row[index])[: data.rows.row[index] + 1]
            assert ids[seen].tolist() == before.tolist()
        read += batch.input_ids.numel()
    assert sum(batch.layout is not None for batch in found) > 0
    assert read < 0.7 * sum(batch.input_ids.numel() for batch in plain)
