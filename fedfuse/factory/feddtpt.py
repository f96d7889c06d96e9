"""Loads what a process needs to tune prompts: examples, masked language model and black box.

All of it can be rebuilt from the config and is cached per process, as in ``factory.models``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedfuse.builtin.models import build, is_builtin
from fedfuse.builtin.prompt_world import WORLD_TASKS, world_task
from fedfuse.config.feddtpt import BlackBoxConfig, FedDTPTConfig
from fedfuse.config.node import ClientConfig
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.factory.data import share_of
from fedfuse.factory.models import check_model, load_model
from fedfuse.feddtpt.accuracy import sample_batch
from fedfuse.feddtpt.black_box import Backend
from fedfuse.feddtpt.http_black_box import HttpBlackBox
from fedfuse.feddtpt.label_datasets import ExampleSplits, own_examples, read_task
from fedfuse.feddtpt.label_tasks import LabelledExample, Task
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.scorer import PromptScorer
from fedfuse.feddtpt.tuner import ClientPromptTuner
from fedfuse.models.devices import resolve_device

BATCH = 32  # texts at a time for a model in this process


@lru_cache(maxsize=4)
def load_task(
    settings: FedDTPTConfig, template: str, seed: int, num_partitions: int
) -> tuple[Task, ExampleSplits]:
    """Load the task of a run and its examples; clients change nothing but the private ones.

    Raises:
        FedfuseError: for data that cannot be read or is too small.
    """
    scheme, alpha = ("dirichlet-equal", settings.alpha) if settings.alpha else ("iid", 1.0)
    shares = num_partitions, scheme, alpha, seed
    if settings.task in WORLD_TASKS:
        known = world_task(settings.task)
        return known.task, known.splits(settings.examples, *shares)
    return read_task(settings.task, template, settings.examples, *shares)


@lru_cache(maxsize=2)
def load_masked_lm(name: str, device: str) -> MaskedLM:
    """Load the masked language model of a run.

    Raises:
        FedfuseError: for a model that cannot be loaded.
    """
    return MaskedLM.load(str(build(name)) if is_builtin(name) else name, device)


@lru_cache(maxsize=2)
def load_backend(box: BlackBoxConfig, device: str) -> Backend:
    """Load the black box: behind its URL, or in this process.

    Raises:
        FedfuseError: for a model that cannot be loaded, or a key that is not set.
    """
    if box.url:
        return HttpBlackBox(box)
    return LocalBlackBox(load_model(box.model, device=device), box.max_tokens, BATCH)


def private_examples(client: ClientConfig) -> list[LabelledExample]:
    """Private examples of a client: of its own data, or its share of the run's.

    Raises:
        FedfuseError: for data that cannot be read, or a partition that does not exist.
    """
    node, config = client.node, client.config
    task, splits = load_task(config.feddtpt, config.data.template, config.seed, node.num_partitions)
    if node.data:
        shared = [*splits.public, *splits.validation, *splits.test]
        own = own_examples(task, node.data, config.data.template, shared)
        order = np.random.default_rng(config.seed).permutation(len(own))
        return [own[index] for index in order[: config.feddtpt.examples.private]]
    return share_of(node, splits.private)


def prompt_models(config: RunConfig) -> list[str]:
    """Models that a run loads: the masked one, and the black box where it is no service."""
    box = config.black_box
    return [config.feddtpt.masked_lm, *([] if box.url else [box.model])]


def check_prompt_inputs(config: RunConfig, clients: int) -> None:
    """Refuse what cannot work, without loading a model.

    Raises:
        FedfuseError: for data that cannot be split, models that do not exist, a key that is not
            set.
    """
    for device in (config.server.device, config.clients.device):
        resolve_device(device)
    for name in prompt_models(config):
        check_model(name)
    if config.black_box.url:
        HttpBlackBox(config.black_box).close()
    load_task(config.feddtpt, config.data.template, config.seed, clients)


def client_tuner(client: ClientConfig, folder: Path) -> ClientPromptTuner:
    """Make the tuner of a client, whose searches are in a folder.

    Raises:
        FedfuseError: for data that cannot be read, or a model that cannot be loaded.
    """
    config, node = client.config, client.node
    settings, device = config.feddtpt, config.clients.device
    task, splits = load_task(settings, config.data.template, config.seed, node.num_partitions)
    seed = derive_seed(config, "search", node.partition_id)
    sizes = settings.examples.private, settings.examples.public
    return ClientPromptTuner(
        folder,
        task,
        sample_batch(private_examples(client), splits.public, sizes, seed),
        load_masked_lm(settings.masked_lm, device),
        load_backend(config.black_box, device),
        settings.search,
        seed,
    )


def centralized_tuner(
    config: RunConfig, scorer: PromptScorer, clients: int, queries: int
) -> ClientPromptTuner:
    """Make a tuner with everybody's private examples, which only a simulation has at hand.

    Prompts are compared on as many of them as three clients have: on all of them, hardly more
    prompts could be tried than one client tries. It has the federation's rounds and as many paths a
    round as there are clients. ``queries`` is what it may pay for in a round.
    """
    settings, seed = config.feddtpt, derive_seed(config, "search", "server")
    _, splits = load_task(settings, config.data.template, config.seed, clients)
    everything = [example for part in splits.private for example in part]
    sizes = 3 * settings.examples.private, settings.examples.public
    return ClientPromptTuner(
        scorer.folder / "centralized",
        scorer.task,
        sample_batch(everything, splits.public, sizes, seed),
        scorer.lm,
        scorer.backend,
        replace(settings.search, queries=queries, restarts=clients - 1),
        seed,
    )
