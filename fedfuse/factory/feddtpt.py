"""What a process needs to tune prompts: examples, masked language model and black box.

As in ``workspace``, all of it can be rebuilt from the config and is cached per process.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedfuse.builtin.models import build, is_builtin
from fedfuse.builtin.prompt_world import WORLD_TASKS, world_task
from fedfuse.config.feddtpt import BlackBoxConfig, PromptsConfig
from fedfuse.config.run_config import RunConfig
from fedfuse.errors import FedfuseError
from fedfuse.factory.client import Client
from fedfuse.factory.models import check_model, derive_seed
from fedfuse.feddtpt.black_box import Backend
from fedfuse.feddtpt.example_splits import ExampleSplits
from fedfuse.feddtpt.http_model import HttpModel
from fedfuse.feddtpt.label_datasets import own_examples, read_task
from fedfuse.feddtpt.label_tasks import Example, Task
from fedfuse.feddtpt.local_black_box import LocalModel
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.models.causal_lm import load_causal_lm
from fedfuse.models.loading import resolve_device

# Texts that a model in this process is given at a time.
BATCH = 32


@lru_cache(maxsize=4)
def load_task(
    prompts: PromptsConfig, template: str, seed: int, num_partitions: int
) -> tuple[Task, ExampleSplits]:
    """The task of a run and its examples.

    Args:
        prompts: which, and how many.
        template: ``data.template``.
        seed: of the run.
        num_partitions: number of clients; changes nothing but the private examples.

    Raises:
        FedfuseError: for data that cannot be read or is too small.
    """
    scheme, alpha = ("dirichlet-equal", prompts.alpha) if prompts.alpha else ("iid", 1.0)
    if prompts.task in WORLD_TASKS:
        known = world_task(prompts.task)
        return known.task, known.splits(prompts.size, num_partitions, scheme, alpha, seed)
    return read_task(prompts.task, template, prompts.size, num_partitions, scheme, alpha, seed)


@lru_cache(maxsize=2)
def load_masked_lm(name: str, device: str) -> MaskedLM:
    """The masked language model of a run.

    Raises:
        FedfuseError: for a model that cannot be loaded.
    """
    return MaskedLM.load(str(build(name)) if is_builtin(name) else name, device)


@lru_cache(maxsize=2)
def load_backend(box: BlackBoxConfig, device: str) -> Backend:
    """The black box: behind its URL, or in this process.

    Raises:
        FedfuseError: for a model that cannot be loaded, or a key that is not set.
    """
    if box.url:
        return HttpModel(box.http_settings())
    base = str(build(box.model)) if is_builtin(box.model) else box.model
    return LocalModel(load_causal_lm(base, device=device), box.max_tokens, BATCH)


def private_examples(client: Client) -> list[Example]:
    """A client's private examples: of its own data, or its share of the run's.

    Raises:
        FedfuseError: for data that cannot be read, or a share that there is not.
    """
    node, config = client.node, client.config
    task, splits = load_task(config.prompts, config.data.template, config.seed, node.num_partitions)
    if node.data:
        shared = [*splits.public, *splits.validation, *splits.test]
        own = own_examples(task, node.data, config.data.template, shared)
        order = np.random.default_rng(config.seed).permutation(len(own))
        return [own[index] for index in order[: config.prompts.private]]
    if node.partition_id >= len(splits.private):
        raise FedfuseError(
            f"partition-id: expected 0 to {len(splits.private) - 1}, got {node.partition_id}"
        )
    return splits.private[node.partition_id]


def prompt_models(config: RunConfig) -> list[str]:
    """The models that a run loads: the masked one, and the black box where it is no service."""
    box = config.black_box
    return [config.prompts.masked_lm, *([] if box.url else [box.model])]


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
        HttpModel(config.black_box.http_settings()).close()
    load_task(config.prompts, config.data.template, config.seed, clients)


def search_seed(config: RunConfig, *whose: object) -> int:
    """The seed of somebody's searches and batch."""
    return derive_seed(config, "search", *whose)
