"""Translation keeps what it should, and a client that lies about its losses is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]
PAIRS = [("gpt2", "llama"), ("llama", "gpt_neox"), ("gpt_neox", "gpt2"), ("opt", "llama")]


def aligner(
    tokenizer: TextTokenizer, public: list[Sample], max_length: int = MAX_LENGTH, **rules: Any
) -> KnowledgeAligner:
    config = replace(KnowledgeConfig(alignment="exact-boundary"), **rules)
    return KnowledgeAligner(tokenizer, public, max_length, config)


def sent(knowledge: Knowledge, bits: int = 16, mass: float = 1.0) -> Knowledge:
    """As it comes out at the other end."""
    return decode(encode(trim(knowledge, mass), bits))


def known(tiny: Make, name: str, public: list[Sample], k: int = 4) -> tuple[Tiny, Knowledge]:
    model = tiny(name)
    return model, extract(model, model.encode(public), k)


def test_between_equal_tokenizers_nothing_changes(tiny: Make, public: list[Sample]) -> None:
    source, knowledge = known(tiny, "gpt2", public)
    target = tiny("opt")
    assert target.tokenizer.fingerprint == source.tokenizer.fingerprint
    translate = aligner(target.tokenizer, public)
    found, own = translate(knowledge, source.tokenizer), knowledge.distribution
    np.testing.assert_array_equal(found.indices, knowledge.indices)
    np.testing.assert_array_equal(found.logprobs, knowledge.logprobs)
    np.testing.assert_array_equal(found.tail_logprob, knowledge.tail_logprob)
    assert (found.weight == 1).all()
    for name in ("indices", "logprobs", "tail_logprob", "weight"):
        np.testing.assert_array_equal(getattr(own, name), getattr(found, name))


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("alignment", ["exact-boundary", "dtw"])
@pytest.mark.parametrize("duplicate_tokens", ["sum", "first"])
def test_mass_is_conserved(
    tiny: Make,
    public: list[Sample],
    source: str,
    target: str,
    alignment: str,
    duplicate_tokens: str,
) -> None:
    model, knowledge = known(tiny, source, public)
    other = tiny(target).tokenizer
    translate = aligner(other, public, alignment=alignment, duplicate_tokens=duplicate_tokens)
    found = translate(knowledge, model.tokenizer)
    assert len(found.weight) == len(translate.rows.token)
    mass = np.exp(found.logprobs.astype(np.float64)).sum(1)
    np.testing.assert_allclose(mass + np.exp(found.tail_logprob.astype(np.float64)), 1, atol=1e-5)
    assert found.indices.max() < other.vocab_size
    assert found.weight.any()


def test_rows_without_a_partner_follow_the_rule(tiny: Make, public: list[Sample]) -> None:
    model, knowledge = known(tiny, "gpt_neox", public)
    target = tiny("gpt2").tokenizer
    skip = aligner(target, public)(knowledge, model.tokenizer)
    one_hot = aligner(target, public, unaligned_positions="one-hot")
    found = one_hot(knowledge, model.tokenizer)
    alone = skip.weight == 0
    assert alone.any()
    assert not alone.all()
    assert (found.weight == 1).all()
    np.testing.assert_array_equal(found.indices[alone, 0], one_hot.rows.token[alone])
    np.testing.assert_array_equal(found.logprobs[~alone], skip.logprobs[~alone])


def test_a_dictionary_is_made_once_a_tokenizer(
    tiny: Make, public: list[Sample], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, target = tiny("gpt2").tokenizer, tiny("llama").tokenizer
    again = TextTokenizer.from_json(source.to_json())
    config = KnowledgeConfig(alignment="exact-boundary")
    translate = KnowledgeAligner(target, public, MAX_LENGTH, config, tmp_path)
    first = translate.pair(source)
    assert list(tmp_path.iterdir())
    monkeypatch.setattr("fedfuse.knowledge.aligner.minimum_edit_distance_table", None)
    assert translate.pair(again) is first


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("k", [1, 4, 64])
def test_honest_knowledge_is_accepted(tiny: Make, public: list[Sample], name: str, k: int) -> None:
    model, knowledge = known(tiny, name, public, k)
    translate = aligner(tiny("opt").tokenizer, public)
    translate.verify(knowledge, model.tokenizer, fingerprint(public))
    for bits in QUANTIZERS:
        for mass in (0.3, 0.9, 1.0):
            received = sent(knowledge, bits, mass)
            translate.verify(received, model.tokenizer, fingerprint(public))


@pytest.mark.parametrize("bits", QUANTIZERS)
@pytest.mark.parametrize("k", [1, 8, 500])
def test_honest_knowledge_of_a_confident_model_is_accepted(
    tiny: Make, public: list[Sample], k: int, bits: int
) -> None:
    """A log-probability of -100 is rounded by up to 1.06 in 8 bits: its claim with its entry."""
    model = tiny("gpt2")
    model.model.transformer.ln_f.weight.data.mul_(60)
    knowledge = extract(model, model.encode(public), k)
    assert knowledge.label_logprob.min() < -60
    translate = aligner(tiny("llama").tokenizer, public)
    for mass in (0.5, 1.0):
        translate.verify(sent(knowledge, bits, mass), model.tokenizer, fingerprint(public))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["gpt2", "llama", "gpt_neox"]),
    k=st.integers(1, 500),
    mass=st.floats(0.01, 1),
    bits=st.sampled_from(list(QUANTIZERS)),
    sharpness=st.floats(0, 80),
)
def test_honest_knowledge_always_passes(
    tiny: Make,
    public: list[Sample],
    name: str,
    k: int,
    mass: float,
    bits: int,
    sharpness: float,
) -> None:
    """Any k, mass, precision, and any model from a uniform one to one that is always sure."""
    model = tiny(name)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(sharpness)
    knowledge = extract(model, model.encode(public), k)
    translate = aligner(tiny("opt").tokenizer, public)
    translate.verify(sent(knowledge, bits, mass), model.tokenizer, fingerprint(public))


def test_an_unused_slot_is_no_entry(tiny: Make, public: list[Sample]) -> None:
    """Where the label is token 0, which is what unused slots hold."""
    model, knowledge = known(tiny, "gpt2", public)
    translate = aligner(tiny("llama").tokenizer, public)
    labels = translate.pair(model.tokenizer).rows
    zero = replace(labels, token=np.zeros_like(labels.token))
    object.__setattr__(translate.pair(model.tokenizer), "rows", zero)
    beyond = np.minimum(knowledge.logprobs[:, -1], knowledge.tail_logprob) - 0.1
    trimmed = trim(replace(knowledge, label_logprob=beyond), 0.01)
    keep = (trimmed.indices[:, 0] != 0)[:, None]
    assert keep.all()
    translate.verify(trimmed, model.tokenizer, fingerprint(public))


def test_honest_knowledge_of_cut_samples_is_accepted(tiny: Make, public: list[Sample]) -> None:
    model = tiny("gpt2")
    knowledge = extract(model, model.encode(public, 4), 4)
    translate = aligner(tiny("llama").tokenizer, public, 4)
    translate.verify(sent(knowledge), model.tokenizer, fingerprint(public))
    whole = model.encode(public).label_bytes
    assert (knowledge.label_bytes < whole).any()


class TestLiar:
    """Each lie on its own, in an otherwise honest record that came over the wire."""

    @pytest.fixture
    def case(self, tiny: Make, public: list[Sample]) -> tuple[KnowledgeAligner, Tiny, Knowledge]:
        model, knowledge = known(tiny, "gpt_neox", public)
        return aligner(tiny("gpt2").tokenizer, public), model, sent(knowledge)

    def kept(self, case: tuple[KnowledgeAligner, Tiny, Knowledge]) -> np.ndarray:
        """Rows whose label is among the entries."""
        translate, model, knowledge = case
        labels = translate.pair(model.tokenizer).rows.token
        kept: np.ndarray = (knowledge.indices == labels[:, None]).any(1)
        assert kept.any()
        assert not kept.all()
        return kept

    def refused(
        self, case: tuple[KnowledgeAligner, Tiny, Knowledge], match: str, **lie: object
    ) -> None:
        translate, model, knowledge = case
        translate.verify(knowledge, model.tokenizer, knowledge.public)
        with pytest.raises(FedfuseError, match=match):
            translate.verify(replace(knowledge, **lie), model.tokenizer, knowledge.public)

    @pytest.mark.parametrize("by", [0.05, -0.05])
    def test_about_a_label_that_is_kept(
        self, case: tuple[KnowledgeAligner, Tiny, Knowledge], by: float
    ) -> None:
        """Too likely wins selections; too unlikely makes others win them."""
        kept = self.kept(case)
        claim = case[2].label_logprob.copy()
        # The most likely label is below its row's first entry, or nothing could be above it.
        row = int(np.flatnonzero(kept)[claim[kept].argmin()])
        claim[row] += by
        match = rf"label_logprob claims {claim[row]:.4f} at row {row}; "
        self.refused(case, match, label_logprob=claim)

    def test_about_a_label_that_is_not(
        self, case: tuple[KnowledgeAligner, Tiny, Knowledge]
    ) -> None:
        """It cannot be more likely than what is kept."""
        knowledge = case[2]
        row = int(np.flatnonzero(~self.kept(case))[0])
        claim = knowledge.label_logprob.copy()
        claim[row] = knowledge.logprobs[row, -1] + 0.05
        match = (
            rf"claims {claim[row]:.4f} at row {row}; .* allows {knowledge.logprobs[row, -1]:.4f}"
        )
        self.refused(case, match, label_logprob=claim)

    def test_about_a_label_beyond_what_is_left(
        self, case: tuple[KnowledgeAligner, Tiny, Knowledge]
    ) -> None:
        """Nor than all that is left together."""
        knowledge = case[2]
        row = int(np.flatnonzero(~self.kept(case))[0])
        logprobs, tail_logprob = knowledge.logprobs.copy(), knowledge.tail_logprob.copy()
        logprobs[row] = np.log((1 - 1e-4) / knowledge.k)
        tail_logprob[row] = np.log(1e-4)
        claim = knowledge.label_logprob.copy()
        claim[row] = logprobs[row, -1]
        match = rf"at row {row}; .* allows {np.log(1e-4):.4f}"
        lie = {"logprobs": logprobs, "tail_logprob": tail_logprob, "label_logprob": claim}
        translate, model, _ = case
        honest = replace(knowledge, **(lie | {"label_logprob": np.minimum(claim, tail_logprob)}))
        honest.label_logprob[self.kept(case)] = knowledge.label_logprob[self.kept(case)]
        translate.verify(honest, model.tokenizer, knowledge.public)
        self.refused(case, match, **lie)

    def test_about_the_length_of_answers(
        self, case: tuple[KnowledgeAligner, Tiny, Knowledge]
    ) -> None:
        """Nats over ten times the bytes would be a tenth of the loss."""
        self.refused(case, "label_bytes", label_bytes=case[2].label_bytes * 10)

    def test_about_which_rows_are_whose(
        self, case: tuple[KnowledgeAligner, Tiny, Knowledge]
    ) -> None:
        """Rows moved to a neighbour would make a sample cheap."""
        offsets = case[2].offsets.copy()
        assert offsets[2] - offsets[1] > 1
        offsets[1] += 1
        self.refused(case, "offsets", offsets=offsets)

    def test_with_nothing_kept(self, case: tuple[KnowledgeAligner, Tiny, Knowledge]) -> None:
        knowledge = case[2]
        nothing = {
            "indices": knowledge.indices[:, :0],
            "logprobs": knowledge.logprobs[:, :0],
            "tail_logprob": np.zeros_like(knowledge.tail_logprob),
        }
        self.refused(case, r"knowledge\.k: expected at least 1, got 0", **nothing)

    def test_about_another_public_set(self, case: tuple[KnowledgeAligner, Tiny, Knowledge]) -> None:
        self.refused(case, r"knowledge\.public: expected \w+, got another", public="another")
