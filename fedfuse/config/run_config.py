"""The run config: frozen dataclasses, read once at the edge, every error reported at once.

Flower hands a run config over as one flat dictionary of scalars with dotted keys. ``parse`` turns
it into a ``RunConfig``; ``flatten`` is its inverse. A key is the field's name with hyphens, behind
its section's name: ``local.learning-rate``. Defaults here are those of preset ``quickstart``; in
pyproject.toml a preset's key is ``auto``, and others are the same (a test compares them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from fedfuse.config.data import DataConfig
from fedfuse.config.feddtpt import BlackBoxConfig, FedDTPTConfig
from fedfuse.config.fields import between, count_or_share, one_of, text
from fedfuse.config.fusion import FusionConfig
from fedfuse.config.gate import GateConfig
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import ModelConfig
from fedfuse.config.preset import AUTO, PRESETS, QUICKSTART, with_preset
from fedfuse.config.renamed import renamed
from fedfuse.config.training import ClientDistillConfig, ServerDistillConfig, TrainingConfig
from fedfuse.errors import FedfuseError

Scalar = bool | int | float | str
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole run.

    Attributes:
        name: name of the run folder; ``-2``, ``-3``, ... is added where it exists.
        preset: settings that fit together, see ``fedfuse config --preset NAME``: ``quickstart`` for
            the built-in models, ``pretrained`` for pretrained ones and data of your own, ``fedmkt``
            and ``fusion-x`` as in the papers; ``auto`` is one of the first two, by
            ``server.model``. Keys that are given win.
        seed: seed of everything random, 0 or more.
        strategy: ``fedfuse``, ``fusion-x``, ``fedmkt``, ``llm2slm``, ``fedavg-lora``, ``feddtpt``,
            or your own as ``module:Class``.
        client: kind of client, ``knowledge``, ``feddtpt``, or your own as ``module:Class``; empty
            for the strategy's.
        rounds: number of rounds, 1 or more.
        output: folder of the run folders.
        baselines: also train without the federation, as long: standalone on private labels, and
            public-only on public ones too; for ``feddtpt``, standalone and centralized search.
        centralized: with ``baselines``, also train the server's model on everybody's private data,
            for as many steps as all take together; only where one data set holds all of it.
        labels_first: before it hears clients for the first time, the server learns from the labels
            of the public set as far as held-out samples get better: a teacher must know more.
        acceptance_test: on either side, undo a phase on the public set after which a domain of the
            held-out samples, of a client's private ones, is worse.
        piggyback: one message a client and round instead of three: the server's knowledge travels
            with the next round's training request.
        clients_per_round: clients that take part in a round, in turns: a number of them, or below 1
            a share; 0 for all. The others keep what they have.
        min_clients: replies that a round needs, 1 or more, or all where fewer take part; with fewer
            the run fails.
        timeout: seconds to wait for the replies to one message, above 0.
        resume: run folder of an interrupted run to go on with; the other keys as they were.
        log_format: format of the server's log: lines of ``text``, or ``json`` objects.
        metrics_port: port of the server's Prometheus metrics, up to 65535; 0 for none.
    """

    name: str = text("quickstart")
    preset: str = one_of(QUICKSTART, AUTO, *PRESETS)
    seed: int = between(0, 0)
    strategy: str = text("fedfuse")
    client: str = text("", empty=True)
    rounds: int = between(2, 1)
    output: str = text("runs")
    baselines: bool = True
    centralized: bool = False
    labels_first: bool = True
    acceptance_test: bool = False
    piggyback: bool = False
    clients_per_round: float = count_or_share(0.0)
    min_clients: int = between(2, 1)
    timeout: float = between(1800.0, 0, above=True)
    resume: str = text("", empty=True)
    log_format: str = one_of("text", "text", "json")
    metrics_port: int = between(0, 0, 65535)
    data: DataConfig = field(default_factory=DataConfig)
    server: ModelConfig = field(default_factory=ModelConfig)
    clients: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            model="builtin:gpt2, builtin:llama, builtin:opt, builtin:gpt-neox"
        )
    )
    local: TrainingConfig = field(default_factory=TrainingConfig)
    server_distill: ServerDistillConfig = field(default_factory=ServerDistillConfig)
    client_distill: ClientDistillConfig = field(default_factory=ClientDistillConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    feddtpt: FedDTPTConfig = field(default_factory=FedDTPTConfig)
    black_box: BlackBoxConfig = field(default_factory=BlackBoxConfig)


def flatten(config: object, prefix: str = "") -> dict[str, Scalar]:
    """A config as Flower carries it: flat, with dotted and hyphenated keys."""
    flat: dict[str, Scalar] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        key = prefix + item.name.replace("_", "-")
        inner = prefix + item.metadata.get("inline", item.name.replace("_", "-") + ".")
        if "internal" not in item.metadata:
            flat |= flatten(value, inner) if is_dataclass(value) else {key: value}
    return flat


def parse(given: Mapping[str, Any]) -> RunConfig:
    """Read a flat run config; keys that are missing, or ``auto``, are the preset's.

    Raises:
        FedfuseError: listing every unknown key, wrong type and value out of range at once.
    """
    config = fill(RunConfig(), with_preset(given), "run config")
    if found := _contradictions(config):
        raise FedfuseError("the run config is refused:\n  " + "\n  ".join(found))
    return config


def fill(default: C, given: Mapping[str, Any], name: str) -> C:
    """A config with the given values, flat as Flower carries them, in place of the default ones.

    Raises:
        FedfuseError: naming the config and listing every unknown key, wrong type and value out of
            range at once.
    """
    errors: list[str] = []
    known = flatten(default)
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            # Somebody may have put the service's key there.
            shown = "" if key.startswith("black-box.") else f" = {given[key]!r}"
            errors.append(renamed(key, given[key]) or f"{key}{shown}: no such key{hint}")
    config: C = _build(type(default), default, "", given, errors)
    if errors:
        raise FedfuseError(f"the {name} is refused:\n  " + "\n  ".join(errors))
    return config


def _contradictions(config: RunConfig) -> list[str]:
    """Errors for values that are valid alone but not together."""
    found = config.knowledge.contradictions()
    if config.acceptance_test and not config.data.holdout:
        found.append("acceptance-test: expected False with a data.holdout of 0, got True")
    if config.fusion.evidence == "blind" and not config.data.blind:
        found.append("fusion.evidence: expected 'open' with a data.blind of 0, got 'blind'")
    examples, queries = config.feddtpt.examples, config.feddtpt.search.queries
    if queries < examples.private + examples.public:
        found.append(
            f"feddtpt.search.queries: expected at least {examples.private + examples.public} "
            "(feddtpt.examples.private and feddtpt.examples.public together, or no prompt can be "
            f"evaluated), got {queries}"
        )
    return found


def _build(
    cls: type, default: Any, prefix: str, given: Mapping[str, Any], errors: list[str]
) -> Any:
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for item in fields(cls):
        key = prefix + item.name.replace("_", "-")
        values[item.name] = standard = getattr(default, item.name)
        if "internal" in item.metadata:
            continue
        if is_dataclass(standard):
            inner = prefix + item.metadata.get("inline", item.name.replace("_", "-") + ".")
            values[item.name] = _build(hints[item.name], standard, inner, given, errors)
        elif key in given:
            known = len(errors)
            value = _value(key, given[key], hints[item.name], item.metadata, errors)
            if len(errors) == known:  # a dataclass may refuse what is wrong itself
                values[item.name] = value
    return cls(**values)


@lru_cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields: every message has a config to parse."""
    return get_type_hints(cls)


def _value(key: str, value: Any, kind: type, metadata: Mapping[str, Any], errors: list[str]) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if old := renamed(key, value):
        errors.append(old)
    # bool is a subclass of int, so types are compared exactly.
    elif type(value) is not kind:
        found = f"{value!r} of type {type(value).__name__}"
        errors.append(f"{key}: expected {kind.__name__}, got {found}")
    elif "check" in metadata and not metadata["check"](value):
        found = "" if "hidden" in metadata else f", got {value!r}"
        errors.append(f"{key}: expected {metadata['expected']}{found}")
    return value


def model_of_partition(models: str, partition: int) -> str:
    """The base model of a client: the cycle ``a, b, c`` or the mapping ``0=a, 3=b, *=c``.

    Raises:
        FedfuseError: for no model at all, or a mapping that has neither the partition nor ``*`` or
            is not of that form.
    """
    entries = [entry.strip() for entry in models.split(",") if entry.strip()]
    if not entries:
        raise FedfuseError(f"clients.model: expected at least one model, got {models!r}")
    found = _of_partition(models, partition, "model")
    if not found:
        raise FedfuseError(
            f"clients.model: expected a model for partition {partition} or *=MODEL, got neither"
        )
    return found


def _of_partition(models: str, partition: int, what: str) -> str:
    """An entry of a cycle or mapping; empty where a mapping has none for the partition."""
    entries = [entry.strip() for entry in models.split(",") if entry.strip()]
    if not any("=" in entry for entry in entries):
        return entries[partition % len(entries)]
    mapping: dict[str, str] = {}
    for entry in entries:
        key, _, value = (part.strip() for part in entry.partition("="))
        if not value or not (key == "*" or key.isdigit()):
            raise FedfuseError(
                f"clients.{what}: expected PARTITION={what.upper()} or *={what.upper()}, got the "
                f"entry {entry!r}"
            )
        mapping[key] = value
    return mapping.get(str(partition), mapping.get("*", ""))


def model_configs(config: RunConfig, clients: int) -> dict[str, ModelConfig]:
    """The models of a run by name, of the server and of each client, as each is configured."""
    sides = [config.server, *(model_config(config.clients, i) for i in range(clients))]
    return {side.model: side for side in reversed(sides)}  # the server's of two of one name


def model_config(clients: ModelConfig, partition: int) -> ModelConfig:
    """``clients`` with the one model of a client, and its tokenizer.

    Raises:
        FedfuseError: as ``model_of_partition``; a mapping of tokenizers needs not have all.
    """
    tokenizer = clients.tokenizer and _of_partition(clients.tokenizer, partition, "tokenizer")
    return replace(clients, model=model_of_partition(clients.model, partition), tokenizer=tokenizer)


def derive_seed(config: RunConfig, *what: object) -> int:
    """Seed for one use, derived from the run's: ``derive_seed(config, "local", client, round)``."""
    text = "/".join(map(str, (config.seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
