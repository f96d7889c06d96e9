"""Memory plan of a run config's simulation, and the check that this machine has so much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil  # type: ignore[import-untyped]
import torch
from rich.table import Table

from fedfuse.builtin.models import is_builtin, model_folder
from fedfuse.config.model import ModelConfig, can_learn
from fedfuse.config.run_config import RunConfig, model_config, model_of_partition
from fedfuse.config.training import TrainingConfig
from fedfuse.data.blind import OPTIONS
from fedfuse.data.sample import Sample
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import loading_option, tokenizer_of
from fedfuse.models.devices import all_devices, resolve_device, total_memory
from fedfuse.models.dry_run import ModelNeeds, dry_run
from fedfuse.models.precision import TOKENS_PER_PASS
from fedfuse.simulation.memory_plan import Plan, check_gpu, check_server_gpu, plan_memory
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer

_LONGEST = 64  # number of the longest texts, which decide how large a step gets


def clients_at_once(clients: int, cpus_per_client: int, gpus_per_client: float, cores: int) -> int:
    """Number of clients that Flower lets run at once on this machine; at least one."""
    fit = cores // cpus_per_client
    if gpus_per_client:
        fit = min(fit, int(len(all_devices()) / gpus_per_client))
    return max(1, min(clients, fit))


def plan_simulation(
    config: RunConfig, clients: int, at_once: int, gpus_per_client: float = 0.0
) -> Plan:
    """Predict the peak memory of a simulation on this machine; models must be built.

    Args:
        config: run config, of a strategy whose clients and server have models.
        clients: number of clients.
        at_once: number of them that run at the same time.
        gpus_per_client: share of a GPU for each; with 0 they see none.

    Raises:
        NeedsUnknown: for a model whose needs cannot be known before it runs.
    """
    needs = {name: client_needs(config, clients, name) for name in _models(config, clients)}
    if gpus_per_client:
        needs = {name: _beside_gpu(each, config.clients.device) for name, each in needs.items()}
    server, rows = server_needs(config, clients)
    server = _beside_gpu(server, config.server.device)
    row = 12 * config.knowledge.k + 16  # bytes of a label row's knowledge in memory
    plan = plan_memory(
        server,
        needs,
        server_name=config.server.model,
        number=clients,
        at_once=at_once,
        knowledge=rows * row,
    )
    return replace(plan, on_disk=_kept_states(config, clients, server.state, needs))


def check_machine(config: RunConfig, clients: int, plan: Plan, gpus_per_client: float) -> None:
    """Refuse a simulation that does not fit into this machine's memory, or its GPU's.

    Raises:
        FedfuseError: naming the memory that it needs, that there is, and what helps.
    """
    plan.check(psutil.virtual_memory().available)
    total = total_memory(resolve_device(config.clients.device)) if gpus_per_client else None
    if total is not None:
        for name in _models(config, clients):
            check_gpu(name, client_needs(config, clients, name), gpus_per_client, total)
    total = _accelerators(config.server)
    if total is not None and can_learn(config.server.model):
        check_server_gpu(config.server.model, server_needs(config, clients)[0], total)


def _accelerators(model: ModelConfig) -> int | None:
    """Bytes of the accelerator that a model is on, or of all that it is spread over."""
    place = resolve_device(model.device)
    if model.device_map == "none" or place.type == "cpu":
        return total_memory(place)
    sizes = [total_memory(torch.device(place.type, number)) for number in all_devices()]
    return None if None in sizes else sum(size or 0 for size in sizes)


def table(plan: Plan) -> Table:
    """A plan as the terminal shows it."""
    shown = Table(title=f"memory at the peak, {plan.clients_at_once} clients at once", box=None)
    shown.add_column("for")
    shown.add_column("MB", justify="right")
    for what, size in plan.parts.items():
        shown.add_row(what, f"{size / 1e6:,.0f}")
    shown.add_row("all together", f"{plan.total / 1e6:,.0f}", style="bold")
    if plan.on_disk:
        shown.add_row("hidden states of frozen layers, on disk", f"{plan.on_disk / 1e6:,.0f}")
    return shown


def server_needs(config: RunConfig, clients: int) -> tuple[ModelNeeds, int]:
    """Needs of the server's model, and label rows of the public set."""
    phases = [(load_splits(config.data, config.seed, clients).public, config.server_distill, 1)]
    return _needs(config, config.server, config.server.model, phases)


def client_needs(config: RunConfig, clients: int, name: str) -> ModelNeeds:
    """Needs of a client with a base model in its largest phase."""
    splits = load_splits(config.data, config.seed, clients)
    private = [sample for part in splits.private for sample in part]
    # A distilling step replays as many private samples as it has public ones.
    times = 2 if config.client_distill.replay else 1
    both = [*splits.public, *private]
    phases = [(private, config.local, 1), (both, config.client_distill, times)]
    own = (model_config(config.clients, number) for number in range(clients))
    return _needs(config, next(one for one in own if one.model == name), name, phases)[0]


def _kept_states(
    config: RunConfig, clients: int, server: int, needs: Mapping[str, ModelNeeds]
) -> int:
    """Bytes on disk of the hidden states that are kept of frozen layers, as far as they may be.

    Args:
        config: the run config.
        clients: number of clients.
        server: bytes of a token's state of the server's model.
        needs: needs of the clients' models, by name.
    """
    splits = load_splits(config.data, config.seed, clients)
    asked = [replace(q, answer=option) for q in splits.questions for option in q.options]
    common = [*splits.public, *splits.holdout, *splits.test, *asked, *OPTIONS * splits.blind]
    sides = [(config.server, config.server.model, server, common)]
    for name, of in needs.items():
        own = [
            sample
            for number, part in enumerate(splits.private)
            if model_of_partition(config.clients.model, number) == name
            for sample in part
        ]
        sides.append((config.clients, name, of.state, common + own))
    sizes: dict[tuple[str, float], int] = {}  # who has the same layers shares files
    for model, name, state, samples in sides:
        if state and model.states_cache:
            tokens = _tokens(tokenizer_of(name, model.tokenizer), samples, config.data.max_length)
            key = (name, model.lora.layers)
            sizes[key] = max(sizes.get(key, 0), state * tokens)
    allowed = max(config.server.states_cache, config.clients.states_cache) * 2**30
    return int(min(sum(sizes.values()), allowed))


def _tokens(tokenizer: TextTokenizer, samples: Sequence[Sample], max_length: int) -> int:
    """About how many tokens samples have, by some of them."""
    some = samples[:: max(1, len(samples) // _LONGEST)]
    ids, _ = label_rows(tokenizer, some, max_length)
    return sum(map(len, ids)) * len(samples) // max(1, len(some))


def _models(config: RunConfig, clients: int) -> list[str]:
    """The distinct base models of the clients."""
    names = (model_of_partition(config.clients.model, number) for number in range(clients))
    return list(dict.fromkeys(names))


def _beside_gpu(needs: ModelNeeds, device: str) -> ModelNeeds:
    """Needs of a model on a device that are left for the machine's own memory."""
    on_cpu = resolve_device(device).type == "cpu"
    return needs if on_cpu else replace(needs, base=0, step=0, scoring=0)


def _needs(
    config: RunConfig,
    model: ModelConfig,
    name: str,
    phases: Sequence[tuple[Sequence[Sample], TrainingConfig, int]],
) -> tuple[ModelNeeds, int]:
    """Needs of a model in the largest of its phases, and label rows of the last one's samples."""
    base = str(model_folder(name)) if is_builtin(name) else name
    tokenizer = tokenizer_of(name, model.tokenizer)
    splits = load_splits(config.data, config.seed, 1)  # public and test sets are the same for all
    scored = max(len(splits.public), len(splits.test))
    passes, rows = [], 0
    for samples, phase, times in phases:
        longest = sorted(samples, key=lambda sample: len(sample.text))[-_LONGEST:]
        encoded = TokenizedDataset(tokenizer, longest, config.data.max_length)
        length = int(encoded.lengths.max())
        together = times * phase.batch_size
        if phase.max_tokens:
            together = min(together, max(1, phase.max_tokens // length))
        passes.append((together * length, together, length))
        rows = len(samples) * len(encoded.rows.token) // len(longest)
    if not can_learn(name):  # it is elsewhere
        return ModelNeeds(0, True, 0, 0, 0), rows
    _, together, length = max(passes)
    needs = dry_run(
        base,
        dtype=model.dtype,
        lora=model.lora,
        samples=together,
        length=length,
        scored=max(1, min(scored, TOKENS_PER_PASS["cpu"] // length)),
        vocab_size=tokenizer.vocab_size,
        gradient_checkpointing=model.gradient_checkpointing,
        quantization=loading_option(model.quantization),
    )
    return needs, rows
