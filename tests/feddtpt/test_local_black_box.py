"""Greedy answers in batches are those of one text at a time, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.ledger import Budget, Ledger, Spent
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.feddtpt.meter import Meter
from fedfuse.models.causal_lm import CausalLM
from tests.conftest import MAX_LENGTH, Tiny

TEXTS = ["in may the", "the archive filed copper under amber", "a", "", "nurse gave the patient"]


def causal(made: Tiny) -> CausalLM:
    """With weights so large that each word before it changes an answer."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in made.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.7)
    return made


def by_hand(lm: CausalLM, text: str, most: int) -> list[int]:
    """The answer's tokens, one text and one token at a time."""
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode([text])[0].ids.tolist()]
    answer: list[int] = []
    model: Any = lm.model
    while len(answer) < most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + answer])).logits[0, -1, : lm.vocab_size]
        if (token := int(logits.argmax())) == lm.tokenizer.special_ids["eos"]:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_greedy(tiny: Callable[[str], Tiny], architecture: str) -> None:
    lm = causal(tiny(architecture))
    wanted = [lm.tokenizer.decode(by_hand(lm, text, 5)) for text in TEXTS]
    assert len(set(wanted)) > 3
    assert LocalBlackBox(lm, 5, batch_size=2).answer(TEXTS) == wanted
    replies = LocalBlackBox(lm, 5).ask(TEXTS)
    assert [reply.text for reply in replies] == wanted
    assert LocalBlackBox(lm, 5).ask([]) == []


def test_rows_that_are_no_tokens_are_never_said(tiny: Callable[[str], Tiny]) -> None:
    lm = causal(tiny("gpt_neox"))
    plain = LocalBlackBox(lm, 3).answer(TEXTS)
    head: Any = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        # Whatever the hidden state, one of the two wins over all tokens.
        head.weight[-1] = 1000.0
        head.weight[-2] = -1000.0
    assert LocalBlackBox(lm, 3).answer(TEXTS) == plain


def test_an_answer_ends_and_costs_what_was_read_and_said(tiny: Callable[[str], Tiny]) -> None:
    lm = causal(tiny("llama"))
    model = LocalBlackBox(lm, 4)
    (reply,) = model.ask(["in may the"])
    question = 1 + len(lm.tokenizer.encode(["in may the"])[0].ids)
    assert reply.tokens == question + 4 == model.most_tokens("in may the")
    # The first token of the answer becomes one that ends it.
    config: Any = lm.model.generation_config
    config.eos_token_id = by_hand(lm, "in may the", 1)
    (ended,) = LocalBlackBox(lm, 4).ask(["in may the"])
    assert (ended.text, ended.tokens) == ("", question + 1)


def test_texts_that_leave_no_room_are_refused(tiny: Callable[[str], Tiny]) -> None:
    lm = causal(tiny("llama"))
    with pytest.raises(FedfuseError, match=r"text 'the the.* 'tiny': expected at most 59 tokens"):
        LocalBlackBox(lm, 4).most_tokens("the " * 70)
    for wrong in ((0, 1), (1, 0), (MAX_LENGTH, 1)):
        with pytest.raises(FedfuseError, match="expected max_tokens from 1 to 63 and batch_size"):
            LocalBlackBox(lm, *wrong)


def test_what_was_trained_anew_has_another_name(tiny: Callable[[str], Tiny]) -> None:
    lm = causal(tiny("gpt2"))
    name = LocalBlackBox(lm, 4).name
    assert LocalBlackBox(causal(tiny("gpt2")), 4).name == name
    assert LocalBlackBox(lm, 5).name != name
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter *= 1.001
    assert LocalBlackBox(lm, 4).name != name


def test_a_meter_asks_it_in_batches(tiny: Callable[[str], Tiny]) -> None:
    model = LocalBlackBox(causal(tiny("opt")), 2, batch_size=2)
    meter = Meter(model, Ledger(), Budget(queries=len(TEXTS)))
    assert meter.answer([*TEXTS, *TEXTS]) == [*model.answer(TEXTS), *model.answer(TEXTS)]
    tokens = sum(reply.tokens for text in TEXTS for reply in model.ask([text]))
    assert meter.spent == Spent(len(TEXTS), tokens)
