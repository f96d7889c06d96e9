"""What a model must be able to do to take part, each against an independent dense computation.

A check raises ``Wrong``, or returns what it measured; see ``oracles`` for what it compares with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from experiments.families.oracles import (
    LOGITS,
    LOSS,
    NATS,
    OBJECTIVE,
    K,
    Wrong,
    allocated,
    by_weights,
    close,
    dense_loss,
    draw_adapter,
    draw_teacher,
    flat,
    forward,
    gradients,
    own_logits,
    own_weights,
    same_gradient,
)
from fedfuse.algorithms.fedmkt import client_step, local_step, server_step
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.builtin.models import cache_root
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.targets import batch_losses
from fedfuse.fusion.rules import uniform
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.extract import extract
from fedfuse.models.adapter_cover import adapter_cover
from fedfuse.models.causal_lm import (
    CausalLM,
    adapter_state,
    add_lora,
    load_adapter_state,
    load_causal_lm,
    save_adapter,
)
from fedfuse.models.dry_run import NeedsUnknown, dry_run
from fedfuse.models.forward import label_row_logits, label_row_states
from fedfuse.models.head import find_head, hidden_states
from fedfuse.models.trial import check_trains
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset

LORA = AdapterConfig(rank=2, alpha=4.0)
MAX_LENGTH = 64
KNOWLEDGE = KnowledgeConfig(k=8)
DISTILLING = TrainingConfig(2, 4, 1e-2, objective=OBJECTIVE)
# W + B A, rounded: layers that sum over time make more of it than products do.
MERGED = 5e-4
# Autocast rounds every product to 8 bits. Recurrent layers and routers of experts with random
# weights make much of it, so the model's own gradient in autocast is the measure: ours may be off
# from the exact one by so much more, or by this angle.
AUTOCAST_LOSS, AUTOCAST_COSINE, AUTOCAST_ERROR = 0.05, 0.95, 1.5
# In bfloat16 weights, of the loss of the model's own logits: its head rounds them once more.
HALF_LOSS = 0.01
# Most of the bytes that a forward pass leaves with checkpointing, of those without.
KEPT = 0.9
# A plan is within 15 % of what a step takes, operators' own memory included, or more, but not by
# far: at these sizes chunks of logits weigh more than they do in a real model.
PLAN = (0.85, 2.5)


@dataclass(frozen=True)
class Subject:
    """A family's model with an adapter that is no longer zero, and samples for it.

    Attributes:
        folder: its folder.
        lm: the adapted model.
        data: samples of different lengths.
        teacher: a sparse teacher of all label rows.
    """

    folder: Path
    lm: CausalLM
    data: TokenizedDataset
    teacher: SparseDistribution

    @property
    def batch(self) -> Batch:
        """All samples, padded."""
        return self.data.batch(np.arange(len(self.data)))


def loaded(lm: CausalLM, model: Any, data: TokenizedDataset) -> dict[str, Any]:
    """A model that is loaded says what the saved one says."""
    with torch.no_grad():
        right = own_logits(replace(lm, model=model.eval()), data)
        found = own_logits(lm, data)
    deviation = float(right.std())
    if not 0.01 < deviation < 100:
        raise Wrong(f"logits of the trial have a standard deviation of {deviation:.2g}")
    return {"loaded": close("logits of the loaded model", found, right, LOGITS)}


def adapted(base: CausalLM, seed: int = 0) -> tuple[CausalLM, dict[str, Any]]:
    """A fresh adapter changes nothing, one with other weights does; and what it covers."""
    ids = torch.arange(3, 19)[None] % base.vocab_size
    with torch.no_grad():
        before = forward(base, ids)
        lm = add_lora(base, LORA, seed=seed)
        fresh = forward(lm, ids)
        close("logits with a fresh adapter", fresh, before, LOGITS)
        with torch.enable_grad():
            check_trains(lm)
        draw_adapter(lm)
        changed = (forward(lm, ids) - before).abs().max() / before.std()
    if not changed > 0.01:
        raise Wrong(f"an adapter with weights changes logits by {float(changed):.1e} deviations")
    return lm, {"cover": round(adapter_cover(lm.model).share, 4)}


def head(subject: Subject) -> dict[str, Any]:
    """The output head, where it is told apart, gives the model's own logits."""
    ids = subject.batch.input_ids
    found = find_head(subject.lm.model, ids)
    if found is None:
        return {"head": False}
    with torch.no_grad():
        right = forward(subject.lm, ids)
        close(
            "logits of the head", found.logits(hidden_states(subject.lm.model, ids)), right, LOGITS
        )
    return {"head": True}


def padding(subject: Subject) -> dict[str, Any]:
    """A padded batch without a mask is what each sample is alone with one."""
    with torch.no_grad():
        found = label_row_logits(subject.lm, subject.batch)
        right = own_logits(subject.lm, subject.data)
    return {"padding": close("padded logits without a mask", found, right, LOGITS)}


def loss(subject: Subject) -> dict[str, Any]:
    """The fused loss and its gradient are the dense ones; see ``by_weights`` for the adapter's."""
    value, gradient = fused(subject)
    layers = own_weights(subject.lm)
    right = dense_loss(own_logits(subject.lm, subject.data), subject.batch.label, subject.teacher)
    right.backward()  # type: ignore[no-untyped-call]
    dense = float(right.detach())
    difference = abs(value - dense) / dense
    if not difference <= LOSS:
        raise Wrong(f"loss {value:.6f} in place of {dense:.6f}")
    unused = by_weights(layers)
    measured = same_gradient("gradient of the fused loss", gradient, gradients(subject.lm.model))
    for layer in layers.values():
        layer.get_base_layer().requires_grad_(False)
    subject.lm.model.zero_grad(set_to_none=True)
    return {"loss": difference, "gradient": measured, "unused": unused, "layers": len(layers)}


def fused(subject: Subject, lm: CausalLM | None = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient as training computes them, dropout being zero."""
    lm = lm or subject.lm
    lm.model.train()
    lm.model.zero_grad(set_to_none=True)
    value, _ = batch_losses(lm, subject.batch, subject.teacher, OBJECTIVE)
    value.backward()  # type: ignore[no-untyped-call]
    lm.model.eval()
    gradient = gradients(lm.model)
    lm.model.zero_grad(set_to_none=True)
    return float(value.detach()), gradient


def extraction(subject: Subject) -> dict[str, Any]:
    """Knowledge is the k most probable tokens of the dense distribution, and the rest."""
    knowledge = extract(subject.lm, subject.data, K)
    with torch.no_grad():
        logits = own_logits(subject.lm, subject.data).double()
    right = torch.log_softmax(logits, 1).numpy()
    top = -np.sort(-right, axis=1)[:, :K]
    chosen = np.take_along_axis(right, knowledge.indices, 1)
    label = right[np.arange(len(right)), subject.data.rows.token]
    tail = np.log1p(-np.exp(top).sum(1).clip(max=1 - 1e-12))
    off = max(
        float(np.abs(found - dense).max())
        for found, dense in (
            (knowledge.logprobs, top),
            (chosen, top),
            (knowledge.label_logprob, label),
            # A small rest is lost in 1 - mass, not in what is compared.
            (np.exp(knowledge.tail_logprob), np.exp(tail)),
        )
    )
    if not off <= NATS:
        raise Wrong(f"extracted log-probabilities are off by {off:.1e} nats")
    return {"extraction": off}


def checkpointing(subject: Subject) -> dict[str, Any]:
    """Recomputed activations give the same loss and gradient, and fewer wait in memory."""
    lm = add_lora(
        load_causal_lm(str(subject.folder), device="cpu"), LORA, gradient_checkpointing=True
    )
    check_trains(lm)
    load_adapter_state(lm.model, adapter_state(subject.lm.model))
    value, gradient = fused(subject)
    again, recomputed = fused(subject, lm)
    if not math.isclose(value, again, rel_tol=LOSS):
        raise Wrong(f"loss {again:.6f} with checkpointing, {value:.6f} without")
    share = kept(subject, lm) / kept(subject, subject.lm)
    if not share <= KEPT:
        raise Wrong(f"with checkpointing a forward pass keeps {share:.0%} of the bytes")
    return {
        "checkpointing": same_gradient("gradient with checkpointing", recomputed, gradient),
        "kept": round(share, 3),
    }


def kept(subject: Subject, lm: CausalLM) -> int:
    """Bytes that a forward pass leaves for the backward pass."""
    lm.model.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = label_row_states(lm, subject.batch) or label_row_logits(lm, subject.batch)
    lm.model.eval()
    del result  # until here it was part of what is kept
    return allocated(profiled)[1]


def autocast(subject: Subject) -> dict[str, Any]:
    """With products in bfloat16, about the same loss, and a gradient of the same direction."""
    lm = replace(subject.lm, autocast="bfloat16")
    check_trains(lm)
    value, gradient = fused(subject)
    again, rounded = fused(subject, lm)
    exact, found = flat(gradient), flat(rounded)
    cosine = float(torch.nn.functional.cosine_similarity(found, exact, dim=0))
    batch = subject.batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(subject.lm, batch.input_ids)[batch.sample, batch.row]
    dense_loss(logits[:, : subject.lm.vocab_size], batch.label, subject.teacher).backward()
    own = flat(gradients(subject.lm.model))
    subject.lm.model.zero_grad(set_to_none=True)
    worse = float((found - exact).norm() / (own - exact).norm())
    good = cosine >= AUTOCAST_COSINE or worse <= AUTOCAST_ERROR
    if not (abs(again / value - 1) <= AUTOCAST_LOSS and good):
        raise Wrong(
            f"in autocast loss {again:.3f} for {value:.3f}, cosine of gradients {cosine:.3f}"
        )
    return {"autocast": cosine}


def half(subject: Subject) -> dict[str, Any]:
    """In bfloat16 weights, the loss is the dense one of that model's own logits."""
    lm = add_lora(load_causal_lm(str(subject.folder), dtype="bfloat16", device="cpu"), LORA)
    check_trains(lm)
    load_adapter_state(lm.model, adapter_state(subject.lm.model))
    value, gradient = fused(subject, lm)
    batch = subject.batch
    with torch.no_grad():
        logits = forward(lm, batch.input_ids)[batch.sample, batch.row]
    right = float(dense_loss(logits[:, : lm.vocab_size], batch.label, subject.teacher))
    if not (abs(value / right - 1) <= HALF_LOSS and flat(gradient).isfinite().all()):
        raise Wrong(f"in bfloat16 loss {value:.4f}, of the model's own logits {right:.4f}")
    return {"bfloat16": abs(value / right - 1)}


def saving(subject: Subject, folder: Path) -> dict[str, Any]:
    """An adapter comes back as it was: from its arrays, and from its folder, merged."""
    with torch.no_grad():
        right = own_logits(subject.lm, subject.data)
        state = adapter_state(subject.lm.model)
        load_adapter_state(subject.lm.model, {n: np.zeros_like(a) for n, a in state.items()})
        without = own_logits(subject.lm, subject.data)
        if torch.equal(without, right):
            raise Wrong("an adapter of zeros is as good as another")
        load_adapter_state(subject.lm.model, state)
        close("logits with a restored adapter", own_logits(subject.lm, subject.data), right, 0.0)
        save_adapter(subject.lm.model, folder)
        merged = load_causal_lm(str(folder), device="cpu")
        return {
            "saved": close(
                "logits of a merged adapter", own_logits(merged, subject.data), right, MERGED
            )
        }


def longest(subject: Subject) -> dict[str, Any]:
    """An input of as many tokens as it is said to take; 300 of more."""
    length = min(subject.lm.max_length, 300)
    ids = torch.arange(length)[None] % subject.lm.vocab_size
    with torch.no_grad():
        logits = forward(subject.lm, ids)
    if not logits.isfinite().all():
        raise Wrong(f"an input of {length} tokens gives logits that are not finite")
    return {"length": subject.lm.max_length}


def memory(subject: Subject) -> dict[str, Any]:
    """The memory plan is at least what a step takes, and not much more."""
    samples, length = 8, 32
    vocab_size = subject.lm.vocab_size
    try:
        needs = dry_run(
            str(subject.folder),
            dtype="float32",
            lora=LORA,
            samples=samples,
            length=length,
            scored=samples,
            vocab_size=vocab_size,
        )
    except NeedsUnknown as error:
        return {"plan": None, "why": str(error)[:200]}
    ids = torch.arange(samples * length).reshape(samples, length) % vocab_size
    rows = torch.arange(length)
    batch = Batch(
        ids,
        torch.arange(samples).repeat_interleave(length),
        rows.repeat(samples),
        ids.flatten(),
        np.arange(samples * length),
    )
    teacher = draw_teacher(samples * length, vocab_size)
    subject.lm.model.train()
    find_head(subject.lm.model, ids)  # is tried once, and that is no part of a step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        value, _ = batch_losses(subject.lm, batch, teacher, OBJECTIVE)
        value.backward()  # type: ignore[no-untyped-call]
    subject.lm.model.zero_grad(set_to_none=True)
    subject.lm.model.eval()
    ratio = needs.step / allocated(profiled)[0]
    if not PLAN[0] <= ratio <= PLAN[1]:
        raise Wrong(f"the memory plan is {ratio:.2f} times what a step takes")
    return {"plan": round(ratio, 3)}


def federation(subject: Subject, server: CausalLM, private: list[Sample]) -> dict[str, Any]:
    """A round of FedMKT with another model, of another tokenizer, as the server.

    Training lowers the loss on private samples, and distillation changes both adapters.
    """
    public = subject.data.samples
    both = [
        LocalModel(lm, public=public, test=public, questions=(), max_length=MAX_LENGTH)
        for lm in (subject.lm, server)
    ]
    client, llm = both
    client.reset()
    mine, settings = client.encode(private), TrainingConfig(6, 4, 1e-2)
    aligners = [
        KnowledgeAligner(m.tokenizer, public, MAX_LENGTH, KNOWLEDGE, cache_root() / "tables")
        for m in both
    ]
    before = client.losses(mine).mean()
    _, _, sent = local_step(client, mine, client.public, KNOWLEDGE.k, settings, seed=0)
    after = client.losses(mine).mean()
    if not after < before:
        raise Wrong(f"training on private samples: loss {after:.3f} after {before:.3f}")
    states = [model.adapter for model in both]
    distilled, back = server_step(
        llm, llm.public, [("client", sent)], uniform, aligners[1], KNOWLEDGE, DISTILLING, seed=0
    )
    learned = client_step(
        client, client.public, back, uniform, aligners[0], KNOWLEDGE, DISTILLING, seed=0
    )
    for phase, model, state in ((distilled, llm, states[1]), (learned, client, states[0])):
        if not (math.isfinite(phase.loss) and np.asarray(phase.weights)[:, 1].any()):
            raise Wrong(f"distillation: loss {phase.loss}, no trust in the teacher")
        if all(np.array_equal(state[name], array) for name, array in model.adapter.items()):
            raise Wrong("distillation changes nothing")
    return {"private": float(after / before)}
