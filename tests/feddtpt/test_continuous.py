"""Continuous prompts: what is trained, from where, and how it is averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.continuous import (
    ContinuousPrompt,
    ContinuousSettings,
    Embeddings,
    fed_avg_prompts,
)
from fedfuse.feddtpt.label_tasks import LabelledExample, Task
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.models.causal_lm import CausalLM
from tests.conftest import Tiny
from tests.feddtpt.test_local_black_box import causal

TASK = Task("colours", {"amber": ["amber"], "teal": ["teal"]}, "{prompt} {input} so")
EXAMPLES = [LabelledExample("the court rules", "amber"), LabelledExample("in may the", "teal")]
SETTINGS = ContinuousSettings(examples=24, batch_size=2, learning_rate=0.05)


@pytest.fixture
def lm(tiny: Callable[[str], Tiny]) -> CausalLM:
    return causal(tiny("llama"))


def test_it_begins_with_the_words_of_the_manual_prompt(lm: CausalLM) -> None:
    (start,) = lm.tokenizer.encode(["in may"])
    embedding: Any = lm.model.get_input_embeddings()
    right = embedding.weight[torch.from_numpy(start.ids.copy())].detach().numpy()
    np.testing.assert_array_equal(ContinuousPrompt(lm, TASK, "in may").embeddings, right)
    with pytest.raises(FedfuseError, match="no tokens"):
        ContinuousPrompt(lm, TASK, "")


def test_training_moves_the_prompt_alone_and_lowers_the_loss(lm: CausalLM) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    prompt = ContinuousPrompt(lm, TASK, "in may", max_tokens=1)
    given, loss = prompt.embeddings, prompt.loss(EXAMPLES).item()
    prompt.train(EXAMPLES, SETTINGS, seed=0)
    assert prompt.loss(EXAMPLES).item() < 0.9 * loss
    assert np.abs(prompt.embeddings - given).max() > 0.01
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = prompt.embeddings
    prompt.embeddings = given
    prompt.train(EXAMPLES, SETTINGS, seed=0)
    np.testing.assert_array_equal(prompt.embeddings, trained)


def test_the_loss_is_that_of_prompt_tuning_in_peft(lm: CausalLM) -> None:
    """LabelledExample by example, without padding."""
    prompt = ContinuousPrompt(lm, TASK, "in may", max_tokens=1)
    found = prompt.loss(EXAMPLES).item()
    tokens = len(prompt.embeddings)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens)
    model: Any = get_peft_model(lm.model, config)
    with torch.no_grad():
        encoder = model.prompt_encoder["default"]
        encoder.embedding.weight.copy_(torch.from_numpy(prompt.embeddings))
    total, count = 0.0, 0
    for example in EXAMPLES:
        question, answer = (
            encoded.ids.tolist()
            for encoded in lm.tokenizer.encode([f"{example.text} so", f" {example.label}"])
        )
        ids = [lm.tokenizer.bos_id, *question, *answer]
        labels = torch.tensor([[-100] * (1 + len(question)) + answer])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=labels).loss
        total, count = total + loss.item() * len(answer), count + len(answer)
    assert found == pytest.approx(total / count, rel=1e-4)


def test_a_prompt_can_be_trained_for_an_answer(lm: CausalLM) -> None:
    prompt = ContinuousPrompt(lm, TASK, "in may the nurse")
    one = [EXAMPLES[0]]
    before = prompt.loss(one).item()
    prompt.train(one, ContinuousSettings(examples=200, batch_size=1, learning_rate=0.1), seed=0)
    assert prompt.loss(one).item() < 0.5 * before


def test_accuracy_counts_right_labels(lm: CausalLM) -> None:
    """Of whatever the model answers; the other label is wrong."""
    prompt = ContinuousPrompt(lm, TASK, "in may", max_tokens=4)
    [reply] = LocalBlackBox(lm, 4, prefix=torch.from_numpy(prompt.embeddings)).ask(
        [f"{EXAMPLES[0].text} so"]
    )
    said = reply.text.strip()
    task = Task("echo", {"said": [said], "teal": ["teal"]}, TASK.template)
    prompt = ContinuousPrompt(lm, task, "in may", max_tokens=4)
    right, wrong = (LabelledExample(EXAMPLES[0].text, label) for label in ("said", "teal"))
    assert prompt.accuracy([right, right, wrong, right]) == 0.75


def test_the_prompts_own_words_answer_as_words_do(lm: CausalLM) -> None:
    """Embeddings of words before a text are these words before it, padded or not."""
    embed: Any = lm.model.get_input_embeddings()
    for text in ("in may the nurse", "court"):
        (words,) = lm.tokenizer.encode([text])
        ids = torch.tensor([lm.tokenizer.bos_id, *words.ids.tolist()])
        with torch.no_grad():
            prefix = embed(ids)
        prompted = LocalBlackBox(lm, 4, prefix=prefix)
        texts = ["a", "the archive filed copper"]
        together = [reply.text for reply in prompted.ask(texts)]
        assert together == [prompted.ask([one])[0].text for one in texts]
        for one, answer in zip(texts, together, strict=True):
            (after,) = lm.tokenizer.encode([one])
            line = [*ids.tolist(), lm.tokenizer.bos_id, *after.ids.tolist()]
            assert answer == lm.tokenizer.decode(greedy(lm, line, 4))


def greedy(lm: CausalLM, line: list[int], most: int) -> list[int]:
    found: list[int] = []
    model: Any = lm.model
    while len(found) < most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([line + found])).logits[0, -1, : lm.vocab_size]
        if (token := int(logits.argmax())) == lm.tokenizer.special_ids["eos"]:
            break
        found.append(token)
    return found


class Counted:
    """In place of a prompt: training adds the number of examples."""

    def __init__(self) -> None:
        self.embeddings: Embeddings = np.zeros((1, 2), dtype=np.float32)
        self.seeds: list[int] = []

    def train(
        self, examples: Sequence[LabelledExample], settings: ContinuousSettings, seed: int
    ) -> None:
        self.embeddings = self.embeddings + np.float32(len(examples))
        self.seeds.append(seed)


def test_the_average_by_hand() -> None:
    """Clients of one and of three examples, and one public example for both."""
    counted = Counted()
    prompt = cast(ContinuousPrompt, counted)
    private = [EXAMPLES[:1], [*EXAMPLES, EXAMPLES[0]]]
    found = fed_avg_prompts(prompt, private, EXAMPLES[1:], SETTINGS, 2, seed=0)
    mean = (1 * 2 + 3 * 4) / 4
    assert [one.tolist() for one in found] == [[[mean] * 2], [[2 * mean] * 2]]
    assert len(set(counted.seeds)) == 4


def test_settings_are_checked() -> None:
    for wrong in ({"examples": 0}, {"batch_size": 0}, {"learning_rate": 0.0}):
        with pytest.raises(FedfuseError, match="expected at least 1"):
            ContinuousSettings(**wrong)  # type: ignore[arg-type]
