"""Some families of each kind pass every check, and a check catches what it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer

from experiments.families import checks, run
from experiments.families.configs import FAMILIES
from experiments.families.oracles import Wrong, draw_teacher
from fedfuse.models.causal_lm import load_causal_lm
from fedfuse.tokenizers.dataset import TokenizedDataset

ROOT = Path(__file__).resolve().parents[2]
# What is one of a kind in each.
KINDS = {
    "gpt2": "weights stored the other way round, a tied head",
    "mistral": "a sliding window shorter than the samples, a head of its own",
    "gemma2": "capped logits",
    "cohere": "scaled logits",
    "deepseek_v3": "experts, latent attention",
    "jamba": "state-space layers and attention",
    "bert": "an encoder as a decoder, with more layers before its head",
    "laguna": "names that PEFT changes",
}
REFUSED = {"cpmant": "padding on the right", "reformer": "a step of training"}


@pytest.mark.filterwarnings("ignore")  # of the families' own code
@pytest.mark.parametrize("family", KINDS)
def test_a_family_of_each_kind_passes(family: str, tmp_path: Path) -> None:
    row = run.try_family(family, None, tmp_path)
    assert (row["status"], row["reason"]) == (run.PASSES, "")
    assert row["plan"]
    assert row["unused"] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", REFUSED)
def test_others_are_refused_by_name(family: str, tmp_path: Path) -> None:
    row = run.try_family(family, None, tmp_path)
    assert row["status"] == run.REFUSED
    assert REFUSED[family] in row["reason"]


@pytest.fixture
def subject(tmp_path: Path) -> checks.Subject:
    run.save("llama", "gpt2", tmp_path, None)
    base = load_causal_lm(str(tmp_path), device="cpu")
    data = TokenizedDataset(base.tokenizer, run.samples()[0], checks.MAX_LENGTH)
    lm, _ = checks.adapted(base)
    teacher = draw_teacher(len(data.rows.token), lm.vocab_size)
    return checks.Subject(tmp_path, lm, data, teacher)


def layer(subject: checks.Subject) -> Any:
    return next(m for m in subject.lm.model.modules() if isinstance(m, LoraLayer))


def test_a_loss_that_is_a_little_off(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.loss(subject)
    right = checks.batch_losses
    wrong = lambda *args, **options: (1.0001 * right(*args, **options)[0], None)  # noqa: E731
    monkeypatch.setattr(checks, "batch_losses", wrong)
    with pytest.raises(Wrong, match="in place of"):
        checks.loss(subject)


def test_an_adapter_whose_layer_reads_the_weight_past_it(subject: checks.Subject) -> None:
    dead = layer(subject)
    dead.forward = lambda x: torch.nn.functional.linear(x, dead.get_base_layer().weight)
    with pytest.raises(Wrong, match=r"the adapter of .*q_proj does not get its weight's gradient"):
        checks.loss(subject)


def test_logits_that_depend_on_padding(subject: checks.Subject) -> None:
    first = layer(subject)
    plain = first.forward
    first.forward = lambda x: plain(x) + 0.01 * x.shape[1]
    with pytest.raises(Wrong, match="padded logits without a mask"):
        checks.padding(subject)
    with pytest.raises(Wrong, match="extracted log-probabilities"):
        checks.extraction(subject)


def test_a_plan_of_half_the_memory(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.memory(subject)
    right = checks.dry_run
    half = lambda *args, **options: replace(  # noqa: E731
        needs := right(*args, **options), step=needs.step // 2
    )
    monkeypatch.setattr(checks, "dry_run", half)
    with pytest.raises(Wrong, match="times what a step takes"):
        checks.memory(subject)


def test_an_adapter_that_is_saved_without_a_layer(
    subject: checks.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = checks.save_adapter

    def forgetful(model: Any, folder: Path) -> None:
        kept = layer(subject).lora_B["default"].weight.detach().clone()
        layer(subject).lora_B["default"].weight.detach().zero_()
        right(model, folder)
        layer(subject).lora_B["default"].weight.detach().copy_(kept)

    monkeypatch.setattr(checks, "save_adapter", forgetful)
    with pytest.raises(Wrong, match="merged adapter"):
        checks.saving(subject, tmp_path / "adapter")


def test_a_head_that_leaves_out_a_scale(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.head(subject)["head"]
    right = checks.find_head
    monkeypatch.setattr(checks, "find_head", lambda *given: replace(right(*given), scale=1.001))
    with pytest.raises(Wrong, match="logits of the head"):
        checks.head(subject)


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]) -> None:
    """Let the adapted model with checkpointing be one that is changed."""
    right = checks.add_lora

    def add(*given: Any, **options: Any) -> Any:
        lm = right(*given, **options)
        change(lm.model)
        return lm

    monkeypatch.setattr(checks, "add_lora", add)


def test_checkpointing_that_computes_something_else(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(model: Any) -> None:
        model.get_output_embeddings().weight.data *= 1.01

    broken(monkeypatch, change)
    with pytest.raises(Wrong, match="with checkpointing"):
        checks.checkpointing(subject)


def test_checkpointing_that_drops_a_gradient(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(model: Any) -> None:
        first = next(p for p in model.parameters() if p.requires_grad)
        first.register_hook(torch.zeros_like)

    broken(monkeypatch, change)
    with pytest.raises(Wrong, match="gradient with checkpointing"):
        checks.checkpointing(subject)


def test_checkpointing_that_recomputes_nothing(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(model: Any) -> None:
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False

    broken(monkeypatch, change)
    with pytest.raises(Wrong, match="keeps 100% of the bytes"):
        checks.checkpointing(subject)


def test_autocast_that_computes_something_else(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.autocast(subject)
    right = checks.fused

    def reversed_in_autocast(found: checks.Subject, lm: Any = None) -> Any:
        value, gradient = right(found, lm)
        return value, {n: -g for n, g in gradient.items()} if lm else gradient

    monkeypatch.setattr(checks, "fused", reversed_in_autocast)
    with pytest.raises(Wrong, match="cosine of gradients -"):
        checks.autocast(subject)


@pytest.mark.parametrize(
    ("phase", "message"),
    [("local_step", "training on private samples"), ("server_step", "distillation changes")],
)
def test_a_federation_in_which_nothing_is_learned(
    subject: checks.Subject,
    phase: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = getattr(checks, phase)

    def forgetful(model: Any, *given: Any, **options: Any) -> Any:
        before = model.adapter
        result = right(model, *given, **options)
        model.adapter = before
        return result

    monkeypatch.setattr(checks, phase, forgetful)
    server = run.server(tmp_path / "server", None)
    with pytest.raises(Wrong, match=message):
        checks.federation(subject, server, run.samples()[1])


def test_a_family_that_ends_its_process_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_child", lambda answer, *_: answer.close())
    (row,) = run.measure("llama", None)
    assert row["status"] == run.FAILS
    assert row["reason"] == "its process ended"
    assert run.shown(row)["status"] == "**fails**"


def test_the_tables_are_the_results() -> None:
    results = json.loads((ROOT / "experiments" / "families" / "results.json").read_text())
    version = {"transformers": results["summary"]["transformers"]}
    assert results["summary"] == run.summarize(results["cells"]) | version
    text = (ROOT / "docs" / "models.md").read_text()
    for table in run.TABLES.values():
        assert table(results["cells"]) in text


def test_every_family_passes_or_has_a_reason() -> None:
    results = json.loads((ROOT / "experiments" / "families" / "results.json").read_text())
    if results["summary"]["transformers"] == transformers.__version__:
        assert {row["family"] for row in results["cells"]} == set(FAMILIES)
    for row in results["cells"]:
        assert (row["status"] == run.PASSES) == (row["reason"] == "")
