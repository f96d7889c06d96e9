"""Teaching between tokens of different lengths: alignment mode merge, spelling, the chain rule."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from fedfuse.alignment.positions import align_rows, one_to_one
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import NO_TOKEN, Spelling, spell, spelled_table
from fedfuse.alignment.vocabulary_map import (
    VocabularyTable,
    ids_of_texts,
    minimum_edit_distance_table,
)
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.oracles import merge as oracle
from tests.tokenizer_kinds import KINDS, TEXTS, by_hand, texts_strategy

WHOLE = ["[U]", "[CLS]", "work", "workshop", "worker", "worm", "shop", "a"]
PARTS = ["[U]", "[CLS]", "wor", "##k", "##m", "##ks", "work", "##shop", "##er", "a"]


def knowledge_of(
    rows: LabelRows, said: list[dict[int, float]], k: int, fingerprint: str = "s"
) -> Knowledge:
    """Knowledge with the given probabilities by token id on each row; the rest is tail."""
    indices = np.zeros((len(said), k), dtype=np.int64)
    logs = np.full((len(said), k), -np.inf, dtype=np.float32)
    label = np.empty(len(said), dtype=np.float32)
    tail_logprob = np.full(len(said), -np.inf, dtype=np.float32)
    for row, masses in enumerate(said):
        largest = sorted(masses.items(), key=lambda item: -item[1])
        for slot, (token, mass) in enumerate(largest):
            indices[row, slot], logs[row, slot] = token, math.log(mass)
        rest = 1 - sum(masses.values())
        if rest > 1e-9:
            tail_logprob[row] = math.log(rest)
        label[row] = math.log(masses.get(int(rows.token[row]), rest / 2))
    n = len(rows.offsets) - 1
    return Knowledge(
        rows.offsets,
        indices,
        logs,
        tail_logprob,
        label,
        np.ones(n, dtype=np.int64),
        fingerprint,
        "p",
    )


def probabilities(found: SparseDistribution, row: int) -> dict[int, float]:
    used = np.isfinite(found.logprobs[row])
    values = np.exp(found.logprobs[row][used].astype(float)).tolist()
    return dict(zip(found.indices[row][used].tolist(), values, strict=True))


def translate(
    source: TextTokenizer,
    target: TextTokenizer,
    samples: list[Sample],
    said: list[dict[int, float]],
) -> tuple[SparseDistribution, LabelRows]:
    rows, own = (label_rows(t, samples, 100)[1] for t in (source, target))
    table = minimum_edit_distance_table(source, target, None)
    spelling = spell(source, target, table)
    knowledge = knowledge_of(rows, said, 4)
    found = project(
        knowledge.distribution,
        spelled_table(table, spelling),
        align_rows(rows, own, "chain-rule"),
        own,
        source=rows,
        spelling=spelling,
        label_logprob=knowledge.label_logprob,
    )
    return found, own


def test_several_source_tokens_are_one_target_token() -> None:
    """ "wor", then "k": work. "m" in place of "k" is worm, " a" in place of "wor" is a."""
    source = by_hand("wordpiece", PARTS[:6] + PARTS[9:], cls="[CLS]")
    target = by_hand("wordpiece", WHOLE, cls="[CLS]")
    ids, to = source.vocabulary, target.vocabulary
    said = [{ids["wor"]: 0.5, ids["a"]: 0.3}, {ids["##k"]: 0.6, ids["##m"]: 0.2, ids["##ks"]: 0.1}]
    found, _ = translate(source, target, [Sample("", "work")], said)
    got = probabilities(found, 0)
    assert got == pytest.approx({to["work"]: 0.3, to["worm"]: 0.1, to["a"]: 0.3}, rel=1e-5)
    # Left over: 0.2 of the first step; of the second "works", which is no token, and its rest.
    assert math.exp(found.tail_logprob[0]) == pytest.approx(0.2 + 0.05 + 0.05, rel=1e-5)


def test_a_label_that_was_not_kept_is_carried_on() -> None:
    """Its probability is part of the first step's tail, and must not be counted twice."""
    source = by_hand("wordpiece", PARTS[:6] + PARTS[9:], cls="[CLS]")
    target = by_hand("wordpiece", WHOLE, cls="[CLS]")
    ids, to = source.vocabulary, target.vocabulary
    said = [{ids["a"]: 0.6}, {ids["##k"]: 1.0}]  # half of the first rest, 0.2, is "wor"
    found, _ = translate(source, target, [Sample("", "work")], said)
    assert probabilities(found, 0) == pytest.approx({to["a"]: 0.6, to["work"]: 0.2}, rel=1e-5)
    assert math.exp(found.tail_logprob[0]) == pytest.approx(0.2, rel=1e-5)


def test_one_source_token_is_several_target_tokens() -> None:
    """ "workshop" and "worker" begin with "work"; after it follow "shop" and "er"."""
    source = by_hand("wordpiece", WHOLE, cls="[CLS]")
    target = by_hand("wordpiece", ["[U]", "[CLS]", *PARTS[6:]], cls="[CLS]")
    ids, to = source.vocabulary, target.vocabulary
    masses = {ids["workshop"]: 0.4, ids["worker"]: 0.2, ids["a"]: 0.1, ids["work"]: 0.1}
    found, own = translate(source, target, [Sample("", "workshop")], [masses])
    assert own.token.tolist() == [to["work"], to["##shop"]]
    assert probabilities(found, 0) == pytest.approx({to["work"]: 0.7, to["a"]: 0.1}, rel=1e-5)
    # 0.7 of the mass goes on; "work" itself has nothing to say of what follows.
    expected = {to["##shop"]: 0.8 * 4 / 7, to["##er"]: 0.8 * 2 / 7}
    assert probabilities(found, 1) == pytest.approx(expected, rel=1e-5)
    assert math.exp(found.tail_logprob[1]) == pytest.approx(0.2 + 0.8 / 7, rel=1e-5)
    assert found.weight.tolist() == [1, 1]


def test_the_first_word_gains_a_space() -> None:
    """Only WordPiece says " work" of a text that begins with "work"."""
    merges = [("w", "o"), ("wo", "r"), ("wor", "k"), ("wor", "m")]
    tokens = ["<s>", *"workm", *("".join(pair) for pair in merges)]
    model = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    source = TextTokenizer.from_json(model.to_str(), {"bos": "<s>"})
    target = by_hand("wordpiece", ["[U]", "[CLS]", "work", "##work", "worm", "##worm"], cls="[CLS]")
    ids, to = source.vocabulary, target.vocabulary
    masses = {ids["work"]: 0.5, ids["worm"]: 0.2, ids["wor"]: 0.1}
    found, _ = translate(source, target, [Sample("", "work")], [masses])
    assert probabilities(found, 0) == pytest.approx({to["work"]: 0.5, to["worm"]: 0.2}, rel=1e-5)
    back = {to["work"]: 0.6, to["worm"]: 0.2, to["##worm"]: 0.1}
    found, _ = translate(target, source, [Sample("", "work")], [back])
    assert probabilities(found, 0) == pytest.approx({ids["work"]: 0.6, ids["worm"]: 0.2}, rel=1e-5)


def test_a_teacher_that_excludes_what_was_read_says_nothing() -> None:
    source = by_hand("wordpiece", WHOLE, cls="[CLS]")
    target = by_hand("wordpiece", ["[U]", "[CLS]", *PARTS[6:]], cls="[CLS]")
    said = [{source.vocabulary["a"]: 0.9}]
    found, _ = translate(source, target, [Sample("", "workshop")], said)
    assert found.weight.tolist() == [1, 0]
    assert not probabilities(found, 1)


def random_knowledge(rows: LabelRows, vocabulary: int, k: int, seed: int) -> Knowledge:
    rng = np.random.default_rng(seed)
    said = []
    for token in rows.token.tolist():
        others = rng.choice(vocabulary, k, replace=False).tolist()
        if rng.random() < 0.7 and token not in others:
            others[0] = token
        mass = rng.dirichlet(np.ones(k + 1))
        said.append(dict(zip(others, mass[:k].tolist(), strict=True)))
    return knowledge_of(rows, said, k)


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    pairs=st.lists(
        st.tuples(texts_strategy(6), texts_strategy(12) | st.sampled_from(TEXTS)), max_size=3
    ),
    seed=st.integers(0, 100),
    length=st.sampled_from([8, 200]),
)
def test_merge_equals_oracle(
    tokenizers: dict[str, TextTokenizer],
    spellings: dict[tuple[str, str], tuple[VocabularyTable, Spelling]],
    one: str,
    other: str,
    pairs: list[tuple[str, str]],
    seed: int,
    length: int,
) -> None:
    source, target = tokenizers[one], tokenizers[other]
    samples = [Sample(prompt, answer) for prompt, answer in pairs]
    rows, own = (label_rows(t, samples, length)[1] for t in (source, target))
    alignment = align_rows(rows, own, "chain-rule")
    paired = align_rows(rows, own, "exact-boundary").source_row.tolist()
    found = zip(
        alignment.source_row.tolist(),
        alignment.num_source_tokens.tolist(),
        alignment.tokens_into.tolist(),
        strict=True,
    )
    expected = oracle.alignment(rows, own, paired)
    assert list(found) == expected

    table, spelling = spellings[one, other]
    knowledge = random_knowledge(rows, source.vocab_size, 5, seed)
    projected = project(
        knowledge.distribution,
        spelled_table(table, spelling),
        alignment,
        own,
        source=rows,
        spelling=spelling,
        label_logprob=knowledge.label_logprob,
    )
    mass = np.exp(projected.logprobs.astype(float)).sum(1)
    np.testing.assert_allclose(mass + np.exp(projected.tail_logprob.astype(float)), 1, atol=1e-5)
    pieces = [[int(p) for p in row if p != NO_TOKEN] for row in spelling.pieces]
    heads = [row[0] for row in pieces]
    texts = ids_of_texts(target.vocabulary_bytes)
    for t, (row, num_source_tokens, tokens_into) in enumerate(expected):
        got = probabilities(projected, t)
        space_shift = 0
        if row >= 0 and not tokens_into:
            space_shift = oracle.space_shift_of(
                rows, own, row, t, source.token_bytes, target.token_bytes
            )
        if num_source_tokens > 1 or space_shift:
            label = int(own.token[t])
            want = oracle.spanning(
                knowledge,
                rows,
                row,
                num_source_tokens,
                label,
                source.token_bytes,
                heads,
                texts,
                space_shift,
            )
        elif tokens_into and tokens_into < spelling.pieces.shape[1]:
            want = oracle.continuing(
                knowledge, row, own.token[t - tokens_into : t].tolist(), pieces
            )
        else:
            continue
        largest = dict(sorted(want.items(), key=lambda item: -item[1])[: knowledge.k])
        assert sum(got.values()) == pytest.approx(sum(largest.values()), rel=1e-4, abs=1e-9)
        for token, value in got.items():
            assert value == pytest.approx(want[token], rel=1e-4)
        assert projected.weight[t] == float(bool(want))


@pytest.fixture(scope="module")
def spellings(
    tokenizers: dict[str, TextTokenizer],
) -> dict[tuple[str, str], tuple[VocabularyTable, Spelling]]:
    result = {}
    for one, other in permutations(KINDS, 2):
        table = minimum_edit_distance_table(tokenizers[one], tokenizers[other], None)
        result[one, other] = table, spell(tokenizers[one], tokenizers[other], table)
    return result


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
def test_pieces_spell_the_token(
    tokenizers: dict[str, TextTokenizer],
    spellings: dict[tuple[str, str], tuple[VocabularyTable, Spelling]],
    one: str,
    other: str,
) -> None:
    source, target = tokenizers[one], tokenizers[other]
    table, spelling = spellings[one, other]
    shapes, spelled = source.vocabulary_bytes, 0
    for token_id in sorted(shapes.used - shapes.special):
        pieces = [int(p) for p in spelling.pieces[token_id] if p != NO_TOKEN]
        text = b"".join(target.token_bytes[p] for p in pieces)
        if table.distance[token_id, 0] == 0:
            assert pieces == [table.best[token_id]]
        elif len(pieces) > 1:
            spelled += 1
            # Lossy normalizers may change letters, but never where words begin.
            assert text[:1].isspace() == shapes.bytes[token_id][:1].isspace()
            if other in ("byte-level", "sentencepiece"):
                assert text == shapes.bytes[token_id]
    assert spelled >= 5


def test_digests_find_the_token_of_joined_bytes(tokenizers: dict[str, TextTokenizer]) -> None:
    source, target = tokenizers["byte-level"], tokenizers["wordpiece"]
    spelling = spell(source, target, minimum_edit_distance_table(source, target, None))
    shapes, texts = source.vocabulary_bytes, ids_of_texts(target.vocabulary_bytes)
    ids = np.array(sorted(shapes.used - shapes.special))
    front = np.zeros((), dtype=np.uint64)
    joined = spelling.joined(spelling.joined(front, ids)[:, None], ids[None, :])
    found = spelling.token_of(joined)
    expected = [
        [texts.get(shapes.bytes[a] + shapes.bytes[b], NO_TOKEN) for b in ids.tolist()]
        for a in ids.tolist()
    ]
    assert found.tolist() == expected
    assert (found != NO_TOKEN).sum() > 20


def test_a_merged_alignment_needs_a_spelling() -> None:
    rows = LabelRows(
        np.array([0, 2]), np.zeros(2, int), np.arange(2), np.array([0, 1]), np.array([1, 2])
    )
    own = LabelRows(np.array([0, 1]), np.zeros(1, int), np.arange(1), np.array([0]), np.array([2]))
    alignment = align_rows(rows, own, "chain-rule")
    assert alignment.num_source_tokens.tolist() == [2]
    table = VocabularyTable(np.zeros((1, 1), int), np.zeros((1, 1), np.int32))
    knowledge = knowledge_of(rows, [{0: 0.5}, {0: 0.5}], 1)
    with pytest.raises(FedfuseError, match="spelling: expected given for a merged"):
        project(knowledge.distribution, table, alignment, own)
    assert project(knowledge.distribution, table, one_to_one(np.array([0])), own).weight
