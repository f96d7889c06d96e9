"""The sections of the run config that strategy ``feddtpt`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedfuse.builtin.prompt_world import VAGUE, WorldSize
from fedfuse.config.feddtpt_settings import (
    CHOICES,
    METHODS,
    PROPOSERS,
    AggregationSettings,
    SearchSettings,
)
from fedfuse.config.fields import between, name_of_variable, one_of, text

if TYPE_CHECKING:
    from fedfuse.feddtpt.http_model import HttpSettings

BEST_CLIENT = "best-client"


@dataclass(frozen=True, slots=True)
class PromptsConfig:
    """A prompt that is tuned together.

    Attributes:
        task: one of the built-in world's, or a data set: a .jsonl file, a folder of them, a hub id;
            its records have options, and ``data.template`` makes inputs of them.
        start: the prompt that the first round begins with, as somebody writes it.
        masked_lm: proposes tokens: ``builtin:NAME``, a hub id or a local folder; the same for all.
        private: examples of each client, at most.
        public: labelled examples that everyone holds, balanced.
        validation: the server's, to choose between prompts.
        test: the server's, to report accuracies.
        alpha: label skew of the private examples: concentration of a Dirichlet distribution, small
            is skewed; 0 deals them evenly at random.
        clients_per_round: that search, in turns; 0 for all.
        queries: most that a client may pay for in a round.
        patience: prompts in a row without a gain after which a search stops.
        length: most tokens of a prompt that a client searches. The aggregated one has two fewer, so
            that something can be inserted.
        proposer: ``feedback``; ``masked-lm`` goes without it, ``random`` without both (ablations).
        aggregation: ``gain``; ``paper`` is the paper's, ``average``, ``attention`` and ``k-means``
            its ablations; ``best-client`` takes the prompt of one client.
        choice: which prompts compete with the previous one on the validation set: ``all``, the
            aggregated one and the clients', the ``aggregated`` one alone, or ``none``, as in the
            paper, which takes the aggregated one unseen.
    """

    task: str = text("goods-word")
    start: str = text(VAGUE)
    masked_lm: str = text("builtin:masked-bert")
    private: int = between(16, 1)
    public: int = between(16, 1)
    validation: int = between(64, 1)
    test: int = between(240, 1)
    alpha: float = between(0.0, 0)
    clients_per_round: int = between(0, 0)
    queries: int = between(512, 1)
    patience: int = between(15, 1)
    length: int = between(16, 3, 150)
    proposer: str = one_of(PROPOSERS[0], *PROPOSERS)
    aggregation: str = one_of(METHODS[0], *METHODS, BEST_CLIENT)
    choice: str = one_of("all", *CHOICES)

    @property
    def size(self) -> WorldSize:
        """Examples in each split."""
        return WorldSize(self.private, self.public, self.validation, self.test)

    def search_settings(self) -> SearchSettings:
        """What a client's search is told; the budget ends it, so evaluations need no limit."""
        return SearchSettings(self.proposer, self.queries, self.patience, self.length)

    def aggregation_settings(self, seed: int) -> AggregationSettings | None:
        """What the server's aggregation is told; None for the best single client."""
        if self.aggregation == BEST_CLIENT:
            return None
        return AggregationSettings(self.aggregation, self.length - 2, seed=seed)


@dataclass(frozen=True, slots=True)
class BlackBoxConfig:
    """The language model that only answers.

    Attributes:
        model: ``builtin:NAME``, a hub id or a local folder; with a URL the name by which the
            service knows it.
        url: of an OpenAI-compatible service, up to and without ``/chat/completions``; empty: the
            model is run by everyone.
        key_variable: name of the environment variable that holds the service's key, on every
            machine; empty: no key is sent.
        max_tokens: of an answer.
        concurrency: requests at a time, of each client.
        requests_per_minute: of each client; 0 for no limit.
        timeout: seconds without a byte of an answer.
    """

    model: str = text("builtin:instructed-llama")
    url: str = text("", empty=True)
    key_variable: str = name_of_variable()
    max_tokens: int = between(8, 1)
    concurrency: int = between(4, 1)
    requests_per_minute: float = between(0.0, 0)
    timeout: float = between(60.0, 0, above=True)

    def http_settings(self) -> HttpSettings:
        """What the client of the service is told.

        Raises:
            FedfuseError: for a URL that is not allowed; without it, as it may hold a password.
        """
        from fedfuse.feddtpt.http_model import HttpSettings

        return HttpSettings(
            self.url,
            self.model,
            self.key_variable,
            self.max_tokens,
            self.concurrency,
            read_timeout=self.timeout,
            requests_per_minute=self.requests_per_minute or float("inf"),
        )
