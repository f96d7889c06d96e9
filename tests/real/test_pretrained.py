"""What the parts do on models that were really trained: text is likely, and knowledge crosses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.chats import chat_samples
from fedfuse.data.sample import Sample
from fedfuse.events import EventDistribution
from fedfuse.factory.models import load_model
from fedfuse.fusion.teacher_stats import event_logprobs
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.extract import extract
from fedfuse.models.adapter_folder import base_of
from fedfuse.models.causal_lm import add_lora, load_causal_lm
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.real.conftest import LOSSES, folder_of

LENGTH = 96
PROSE = [
    "Once upon a time there was a little girl who lived with her mother in a small house near the "
    "forest. Every morning she went to the market to buy bread and milk.",
    "One day the boy found a big red ball in the garden. He was very happy and wanted to show it "
    "to all of his friends, but it began to rain.",
]
ANSWERS = [
    Sample("The capital of France is", " Paris.", "facts"),
    Sample("Two and two make", " four.", "facts"),
    Sample("At night you can see the moon and the", " stars.", "facts"),
    Sample("Once upon a time there was a little", " girl.", "facts"),
]


def local(folder: str, samples: list[Sample]) -> LocalModel:
    adapted = add_lora(load_model(folder), AdapterConfig(rank=4, targets="q_proj, v_proj"))
    return LocalModel(adapted, public=samples, test=samples, questions=[], max_length=LENGTH)


def test_prose_is_likely_and_shuffled_words_are_not(real_model: str) -> None:
    """A model whose head, positions or bytes were wrong would find both alike."""
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(text.split())) for text in PROSE]
    model = local(real_model, [Sample("", text, "prose") for text in PROSE])
    plain = model.losses(model.public).mean()
    mixed = model.losses(model.encode([Sample("", text, "prose") for text in shuffled])).mean()
    assert plain < LOSSES[Path(real_model).name]
    assert mixed > 1.4 * plain


def test_extraction_is_the_dense_distribution(real_model: str) -> None:
    """That of each sample alone through the model's own forward pass."""
    model = local(real_model, ANSWERS)
    found, rows = extract(model.lm, model.public, 16), model.public.rows
    for number in range(len(ANSWERS)):
        here = slice(rows.offsets[number], rows.offsets[number + 1])
        ids = torch.as_tensor(model.public.input_ids(number))[None]
        with torch.no_grad():
            logits = model.lm.model(input_ids=ids).logits[0, rows.row[here]]
        dense = torch.log_softmax(logits[:, : model.tokenizer.vocab_size].double(), 1)
        np.testing.assert_allclose(found.logprobs[here], dense.topk(16, 1).values, atol=2e-3)
        label = dense.numpy()[np.arange(len(dense)), rows.token[here]]
        np.testing.assert_allclose(found.label_logprob[here], label, atol=2e-3)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("smollm2-135m-instruct", "gemma3-270m"),
        ("gemma3-270m", "smollm2-135m-instruct"),
        ("stories260K", "smollm2-135m-instruct"),
    ],
)
def test_what_a_teacher_knows_arrives(teacher: str, student: str, tmp_path: Path) -> None:
    """Judged in the student's tokens, the teacher's loss is about its own."""
    source = local(folder_of(teacher), ANSWERS)
    target: TextTokenizer = load_model(folder_of(student)).tokenizer
    known = extract(source.lm, source.public, 16)
    aligner = KnowledgeAligner(target, ANSWERS, LENGTH, KnowledgeConfig(), tmp_path)
    aligner.verify(known, source.tokenizer, source.public.fingerprint)
    aligned = aligner(known, source.tokenizer)
    assert isinstance(aligned, EventDistribution)
    at = event_logprobs(aligned, aligner.rows.token)
    logprob = np.where((aligned.logprobs > -np.inf).any(1), at, aligned.chunk_logprob)
    usable = np.where(aligned.weight > 0, logprob, 0)
    there = np.bincount(aligner.rows.sample_of_row, usable, minlength=len(ANSWERS))
    own = np.bincount(source.public.rows.sample_of_row, known.label_logprob)
    likely = own > -6  # of others a label may be outside of what was sent
    assert likely.any()
    np.testing.assert_allclose(there[likely], own[likely], rtol=0.1, atol=0.2)


def test_training_learns_and_an_adapter_comes_back(real_model: str, tmp_path: Path) -> None:
    model = local(real_model, ANSWERS)
    before = model.losses(model.public)
    model.learn(model.public, TrainingConfig(steps=6, batch_size=4, learning_rate=3e-3), seed=0)
    after, learned = model.losses(model.public), model.adapter
    assert after.mean() < 0.8 * before.mean()
    model.reset()
    np.testing.assert_allclose(model.losses(model.public), before, atol=1e-5)
    model.adapter = learned
    np.testing.assert_allclose(model.losses(model.public), after, atol=1e-5)
    model.save_adapter(tmp_path / "adapter")
    assert base_of(tmp_path / "adapter") == real_model
    merged = add_lora(load_causal_lm(str(tmp_path / "adapter")), AdapterConfig(rank=1))
    alone = LocalModel(merged, public=ANSWERS, test=ANSWERS, questions=[], max_length=LENGTH)
    np.testing.assert_allclose(alone.losses(alone.public), after, atol=2e-3)


def test_chats_are_in_the_models_own_template() -> None:
    folder = folder_of("smollm2-135m-instruct")
    messages = [
        {"role": "user", "content": "Who sold the red lamp?"},
        {"role": "assistant", "content": "The clerk did."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "On Monday."},
    ]
    samples = chat_samples("here:1", messages, "chats")
    tokenizer = load_model(folder).tokenizer
    ids, rows = label_rows(tokenizer, samples, 256)
    theirs = AutoTokenizer.from_pretrained(folder)
    for number, end in enumerate((2, 4)):
        text = theirs.apply_chat_template(messages[:end], tokenize=False)
        whole = theirs(text, add_special_tokens=False)["input_ids"]
        mine = ids[number].tolist()
        assert whole[: len(mine)] == mine
        assert theirs.decode(whole[len(mine) :]).strip() in ("<|im_end|>", "")
        here = rows.token[rows.offsets[number] : rows.offsets[number + 1]]
        assert theirs.decode(here) == messages[end - 1]["content"]
