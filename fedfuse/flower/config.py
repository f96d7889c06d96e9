"""The run config: frozen dataclasses, read once at the edge, every error reported at once.

Flower hands a run config over as one flat dictionary of scalars with dotted keys. ``parse`` turns
it into a ``RunConfig``; ``flatten`` is its inverse. A key is the field's name with hyphens, behind
its section's name: ``local.learning-rate``. The defaults here and in pyproject.toml are the same (a
test compares them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from math import isfinite
from typing import Any, get_type_hints

from fedfuse.distillation.settings import AUTOCAST, DIVERGENCES, PLAIN, Comparison, TrainingSettings
from fedfuse.errors import FedfuseError

Scalar = bool | int | float | str

# The data source that is made on the spot.
BUILTIN_DATA = "builtin"


def between(
    default: float | int, low: float, high: float = float("inf"), *, above: bool = False
) -> Any:
    """A number in [low, high], or in (low, high] with ``above``."""
    bounds = f"{'above' if above else 'at least'} {low:g}"
    if high != float("inf"):
        bounds += f", at most {high:g}"
    check = lambda value: (  # noqa: E731
        isfinite(value) and (value > low if above else value >= low) and value <= high
    )
    return field(default=default, metadata={"allowed": bounds, "check": check})


def one_of(default: str, *choices: str) -> Any:
    """A word out of a fixed list."""
    metadata = {"allowed": ", ".join(map(repr, choices)), "check": lambda value: value in choices}
    return field(default=default, metadata=metadata)


def text(default: str, *, empty: bool = False) -> Any:
    """Any text, by default not empty."""
    check = lambda value: empty or bool(value.strip())  # noqa: E731
    return field(default=default, metadata={"allowed": "text that is not empty", "check": check})


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What the federation learns from.

    Attributes:
        source: ``builtin``, or data sets joined by ``+``: a .jsonl file, a folder of them, a hub
            id; each becomes a domain.
        domains: number of domains of the built-in world.
        partition: how the private samples are dealt to the clients.
        alpha: concentration of the Dirichlet partition; small is skewed.
        private: private samples per domain.
        public: public samples per domain; the labelled set that everyone holds.
        holdout: held-out samples per domain for selectors and gates.
        test: test samples per domain (built-in: repeats per entity).
        questions: multiple-choice questions per domain.
        template: prompt template of real records, such as ``{question} Answer:``; empty for the
            default of the record's fields.
        max_length: tokens per sample; what is beyond is cut off.
    """

    source: str = text(BUILTIN_DATA)
    domains: int = between(4, 1, 4)
    partition: str = one_of("domain", "domain", "iid", "dirichlet", "dirichlet-equal")
    alpha: float = between(0.5, 0, above=True)
    private: int = between(4000, 1)
    public: int = between(120, 0)
    holdout: int = between(60, 0)
    test: int = between(10, 1)
    questions: int = between(120, 0)
    template: str = text("", empty=True)
    max_length: int = between(128, 2)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A base model and its adapter.

    Attributes:
        model: ``builtin:NAME``, a hub id or a local folder. For clients also a cycle ``a, b, c`` or
            a mapping ``0=a, 3=b, *=c`` from partition to model.
        dtype: of the frozen weights.
        autocast: what products are computed in while training, extracting and scoring; the adapter
            stays float32, and float16 trains with a loss scale.
        device: ``auto`` takes a GPU where there is one.
        quantization: of the frozen weights; needs bitsandbytes and a GPU.
        gradient_checkpointing: trade time for memory.
        lora_rank: rank r of the adapter.
        lora_alpha: its scale is alpha / r.
        lora_dropout: on the adapter's input.
        lora_targets: module names joined by commas, or ``all-linear``.
    """

    model: str = text("builtin:server")
    dtype: str = one_of("float32", "float32", "bfloat16", "float16")
    autocast: str = one_of("none", *AUTOCAST)
    device: str = text("auto")
    quantization: str = one_of("none", "none", "4bit", "8bit")
    gradient_checkpointing: bool = False
    lora_rank: int = between(16, 1)
    lora_alpha: float = between(16.0, 0, above=True)
    lora_dropout: float = between(0.0, 0, 1)
    lora_targets: str = text("all-linear")


@dataclass(frozen=True, slots=True)
class PhaseConfig:
    """One training phase of a round: the local one on private labels.

    Attributes:
        steps: optimizer steps.
        batch_size: samples per step.
        learning_rate: peak; warm-up and cosine within the phase.
        max_tokens: tokens at once, padding included, to need less memory for the same result; 0
            for all of a step.
    """

    steps: int = between(150, 0)
    batch_size: int = between(32, 1)
    learning_rate: float = between(5e-3, 0, above=True)
    max_tokens: int = between(0, 0)

    def settings(self) -> TrainingSettings:
        """What the training loop is told."""
        return TrainingSettings(
            self.steps, self.batch_size, self.learning_rate, max_tokens=self.max_tokens
        )


@dataclass(frozen=True, slots=True)
class ServerDistillConfig(PhaseConfig):
    """The server's phase on the public set (FedMKT Eq. 5).

    Attributes:
        steps: optimizer steps.
        batch_size: samples per step.
        learning_rate: peak; warm-up and cosine within the phase.
        max_tokens: tokens at once, padding included, to need less memory for the same result; 0
            for all of a step.
        label_share: lambda of the joint loss; 1 trains on labels alone.
        divergence: how the model is compared with its teacher; the paper has cross-entropy.
        temperature: of that comparison; above 1 flattens both distributions (not in the paper).
    """

    steps: int = between(200, 0)
    learning_rate: float = between(4e-3, 0, above=True)
    label_share: float = between(0.05, 0, 1)
    divergence: str = one_of(PLAIN.divergence, *DIVERGENCES)
    temperature: float = between(PLAIN.temperature, 0, above=True)

    def settings(self) -> TrainingSettings:
        """What the training loop is told."""
        comparison = Comparison(self.divergence, self.temperature)
        return replace(PhaseConfig.settings(self), comparison=comparison)


@dataclass(frozen=True, slots=True)
class ClientDistillConfig(ServerDistillConfig):
    """A client's phase on the public set (FedMKT Eq. 6).

    Attributes:
        steps: optimizer steps.
        batch_size: samples per step.
        learning_rate: peak; warm-up and cosine within the phase.
        max_tokens: tokens at once, padding included, to need less memory for the same result; 0
            for all of a step.
        label_share: lambda of the joint loss; 1 trains on labels alone.
        divergence: how the model is compared with its teacher; the paper has cross-entropy.
        temperature: of that comparison; above 1 flattens both distributions (not in the paper).
        replay: add the label loss of a private batch at every step, so that learning from others
            does not cost what the client knew (not in the paper).
    """

    learning_rate: float = between(8e-3, 0, above=True)
    label_share: float = between(0.03, 0, 1)
    replay: bool = True


@dataclass(frozen=True, slots=True)
class KnowledgeConfig:
    """What is exchanged, and how it is translated.

    Attributes:
        k: entries kept per label row at most.
        mass: entries of a row are sent until they have this much mass; 1 sends all k.
        wire: precision of what is sent: ``default`` tells log-probabilities in 16 bits, ``compact``
            in 8.
        public_share: share of the public samples that a round is about; each has its turn.
        freshness: rows that moved by less than this (total variation, 0 to 1) since they were last
            sent are not sent again; 0 sends every row. Needs a ``public-share`` of 1.
        positions: which source row teaches a target row.
        collisions: what happens to entries that reach one target token.
        unmatched: what a row without a partner learns.
        tail: compare the mass outside the k entries too; the paper takes it as zero.
    """

    k: int = between(16, 1)
    mass: float = between(0.99, 0, 1, above=True)
    wire: str = one_of("default", "default", "compact")
    public_share: float = between(1.0, 0, 1, above=True)
    freshness: float = between(0.0, 0, 1)
    positions: str = one_of("merge", "merge", "boundary", "dtw")
    collisions: str = one_of("sum", "sum", "first")
    unmatched: str = one_of("skip", "skip", "one-hot")
    tail: bool = True


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole run.

    Attributes:
        name: of the run folder.
        seed: of everything random.
        strategy: ``fedmkt``, ``fedavg-lora``, ``llm2slm``, or your own as ``module:Class``.
        rounds: of the federation.
        output: folder that run folders are made in.
        baselines: also measure standalone, public-only and centralized training.
        min_clients: replies without which a round is given up.
        timeout: seconds to wait for the replies of one phase.
    """

    name: str = text("quickstart")
    seed: int = between(0, 0)
    strategy: str = text("fedmkt")
    rounds: int = between(3, 1)
    output: str = text("runs")
    baselines: bool = True
    min_clients: int = between(2, 1)
    timeout: float = between(1800.0, 0, above=True)
    data: DataConfig = field(default_factory=DataConfig)
    server: ModelConfig = field(default_factory=ModelConfig)
    clients: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            model="builtin:gpt2, builtin:llama, builtin:opt, builtin:gpt-neox"
        )
    )
    local: PhaseConfig = field(default_factory=PhaseConfig)
    server_distill: ServerDistillConfig = field(default_factory=ServerDistillConfig)
    client_distill: ClientDistillConfig = field(default_factory=ClientDistillConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)


def flatten(config: object, prefix: str = "") -> dict[str, Scalar]:
    """The config as Flower carries it: flat, dotted, hyphenated."""
    flat: dict[str, Scalar] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        key = prefix + item.name.replace("_", "-")
        flat |= flatten(value, key + ".") if is_dataclass(value) else {key: value}
    return flat


def parse(given: Mapping[str, Any]) -> RunConfig:
    """Read a flat run config; keys that are missing take their defaults.

    Raises:
        FedfuseError: listing every unknown key, wrong type and value out of range at once.
    """
    errors: list[str] = []
    allowed = flatten(RunConfig())
    for key in given:
        if key not in allowed:
            close = get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            errors.append(f"{key} = {given[key]!r}: no such key{hint}")
    config: RunConfig = _build(RunConfig, RunConfig(), "", given, errors)
    rules = config.knowledge
    if not errors and rules.freshness and rules.public_share < 1:
        errors.append(
            f"knowledge.freshness = {rules.freshness}: allowed: 0 with a knowledge.public-share of "
            f"{rules.public_share}, as every round is about other samples"
        )
    if errors:
        raise FedfuseError("the run config is refused:\n  " + "\n  ".join(errors))
    return config


def _build(
    cls: type, default: Any, prefix: str, given: Mapping[str, Any], errors: list[str]
) -> Any:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in fields(cls):
        key = prefix + item.name.replace("_", "-")
        standard = getattr(default, item.name)
        if is_dataclass(standard):
            values[item.name] = _build(hints[item.name], standard, key + ".", given, errors)
        elif key in given:
            values[item.name] = _value(key, given[key], hints[item.name], item.metadata, errors)
        else:
            values[item.name] = standard
    return cls(**values)


def _value(key: str, value: Any, kind: type, metadata: Mapping[str, Any], errors: list[str]) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int, so types are compared exactly.
    if type(value) is not kind:
        errors.append(f"{key} = {value!r}: is {type(value).__name__}, allowed: {kind.__name__}")
    elif "check" in metadata and not metadata["check"](value):
        errors.append(f"{key} = {value!r}: allowed: {metadata['allowed']}")
    return value


def model_of_partition(models: str, partition: int) -> str:
    """The base model of a client: the cycle ``a, b, c`` or the mapping ``0=a, 3=b, *=c``.

    Raises:
        FedfuseError: for no model at all, or a mapping that has neither the partition nor ``*`` or
            is not of that form.
    """
    entries = [entry.strip() for entry in models.split(",") if entry.strip()]
    if not entries:
        raise FedfuseError(f"clients.model is {models!r}; allowed: at least one model")
    if not any("=" in entry for entry in entries):
        return entries[partition % len(entries)]
    mapping: dict[str, str] = {}
    for entry in entries:
        key, _, value = (part.strip() for part in entry.partition("="))
        if not value or not (key == "*" or key.isdigit()):
            raise FedfuseError(
                f"clients.model has the entry {entry!r}; allowed: PARTITION=MODEL or *=MODEL"
            )
        mapping[key] = value
    if str(partition) not in mapping and "*" not in mapping:
        raise FedfuseError(
            f"clients.model names no model for partition {partition}; allowed: add *=MODEL"
        )
    return mapping.get(str(partition), mapping.get("*", ""))
