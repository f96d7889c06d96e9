"""Sections of the run config that strategy ``feddtpt`` reads: ``feddtpt`` and ``black-box``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedfuse.config.fields import (
    between,
    check_fields,
    is_service_url,
    name_of_variable,
    one_of,
    text,
)

PROPOSERS = ("feedback", "masked-lm", "random")
CANDIDATES = ("all", "aggregated", "none")
METHODS = ("gain", "paper", "average", "attention", "k-means")
BEST_CLIENT = "best-client"


def _service_url() -> Any:
    """URL of a service, or none. An error does not repeat the value, which may hold a password."""
    expected = "http or https with a host, no user, password, query or #"
    return field(
        default="", metadata={"expected": expected, "check": is_service_url, "hidden": True}
    )


@dataclass(frozen=True, slots=True)
class ExampleCounts:
    """Number of labelled examples in each split.

    Attributes:
        private: examples of each client, at most.
        public: examples that every party holds, balanced between the labels.
        validation: the server's examples to choose between prompts, balanced.
        test: the server's held-out examples, for the reported accuracies.
    """

    private: int = between(16, 1)
    public: int = between(16, 1)
    validation: int = between(64, 1)
    test: int = between(240, 1)


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """A client's search in one round.

    Attributes:
        proposer: source of new tokens: ``feedback``; or ``masked-lm``, which goes without feedback,
            or ``random``, which goes without both (ablations).
        queries: black-box calls that a client may pay for in a round; also the most prompts that it
            evaluates, the first one not counted.
        patience: prompts in a row without a gain after which the search stops.
        restarts: times that it starts again from the given prompt, on another path, while queries
            are left and not every answer is right; the best of its paths is what it found.
        max_length: tokens of a prompt from which on nothing is inserted.
        top: proposals of the masked language model to draw from.
    """

    proposer: str = one_of(PROPOSERS[0], *PROPOSERS)
    queries: int = between(512, 0)
    patience: int = between(15, 1)
    restarts: int = between(0, 0)
    max_length: int = between(16, 1, 150)
    top: int = between(60, 1)

    def __post_init__(self) -> None:
        check_fields(self, "feddtpt.search")


@dataclass(frozen=True, slots=True)
class AggregationConfig:
    """Aggregation of the clients' prompts into one.

    Attributes:
        method: ``gain``; ``paper`` is the paper's, ``average``, ``attention`` and ``k-means`` its
            ablations; ``best-client`` aggregates nothing: only clients' own prompts compete.
        max_tokens: tokens of the aggregated prompt, at most; two fewer than ``search.max-length``
            leave room for insertions. The paper names about 150.
        min_samples: of DBSCAN.
        fixed_size: clusters of ``k-means`` and tokens of ``attention``.
        noise_discount: weight of noise in ``gain``, as a share of what it would have.
    """

    method: str = one_of(METHODS[0], *METHODS, BEST_CLIENT)
    max_tokens: int = between(14, 1, 150)
    min_samples: int = between(2, 2)
    fixed_size: int = between(10, 1)
    noise_discount: float = between(0.9, 0, 1)

    def __post_init__(self) -> None:
        check_fields(self, "feddtpt.aggregation")


@dataclass(frozen=True, slots=True)
class FedDTPTConfig:
    """Federated tuning of a discrete prompt.

    Attributes:
        task: a task of the built-in world, or a data set: a .jsonl file, a folder of them, a hub
            id; its records have options, and ``data.template`` makes inputs of them.
        start: manual prompt that the first round begins with.
        masked_lm: masked language model that proposes tokens: ``builtin:NAME``, a hub id or a local
            folder; the same for all parties.
        alpha: label skew of the private examples: concentration of a Dirichlet distribution, small
            is skewed; 0 deals them evenly at random.
        candidates: prompts that compete with the global one on the validation set: ``all``, the
            aggregated one and the clients'; ``aggregated`` alone; or ``none``, as in the paper,
            where the aggregated one is taken unseen.
    """

    task: str = text("goods-word")
    start: str = text("please read the note below and answer")
    masked_lm: str = text("builtin:masked-bert")
    alpha: float = between(0.0, 0)
    candidates: str = one_of("all", *CANDIDATES)
    examples: ExampleCounts = field(default_factory=ExampleCounts)
    search: SearchConfig = field(default_factory=SearchConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)


@dataclass(frozen=True, slots=True)
class BlackBoxConfig:
    """The language model that only answers.

    Attributes:
        model: ``builtin:NAME``, a hub id or a local folder; with a URL the name by which the
            service knows it.
        url: address of an OpenAI-compatible service, up to and without ``/chat/completions``, such
            as ``https://api.openai.com/v1``; empty: every party runs the model itself.
        key_variable: name of the environment variable that holds the service's key, on every
            machine; empty: no key is sent.
        max_tokens: tokens of an answer.
        concurrency: requests at a time, of each client.
        requests_per_minute: rate of each client, sent evenly; 0 for no limit.
        timeout: seconds without a byte of an answer.
    """

    model: str = text("builtin:instructed-llama")
    url: str = _service_url()
    key_variable: str = name_of_variable()
    max_tokens: int = between(8, 1)
    concurrency: int = between(4, 1)
    requests_per_minute: float = between(0.0, 0)
    timeout: float = between(60.0, 0, above=True)

    def __post_init__(self) -> None:
        check_fields(self, "black-box")
