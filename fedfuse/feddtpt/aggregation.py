"""One prompt made of those that the clients tuned: the server's half of FedDTPT.

Reference: Wu et al., "FedDTPT", arXiv:2411.00985, Section 3.4, Eq. 3-6 and Algorithm 2. ``embed``
is Eq. 3 and 4 (``z``), ``attention`` Eq. 5 and 6 (``w``, ``alpha``), ``clusters`` step 1 of
Algorithm 2.

Methods:
    ``paper``: the paper's. Embed all tokens, cluster them by DBSCAN with epsilon at the elbow, drop
        the noise, keep of each cluster the token of most attention, in the order of their
        positions.
    ``gain``: this project's. A token's weight is its support by the other clients times the gain
        that its client measured (``gain_weights``). A cluster weighs as much as its heaviest token,
        times the square root of the number of its clients, since each measured on its own. Noise is
        kept, each token by itself, at a discount: a discovery of one client has no neighbours.
        Equal tokens are kept once, in the order of the mean relative positions of their clusters.
    ``average``, ``attention``, ``k-means``: the ablations Server-1 to Server-3 of ``paper``. The
        uploaded token nearest to the mean embedding of each position that at least half of the
        prompts have; the ``fixed_size`` tokens of most attention, without clusters; and
        ``fixed_size`` clusters.

What the paper leaves open: DBSCAN's ``min_samples`` (2: the fewest tokens are noise), tokens of one
position (the one of larger weight first, then by the client's name), the cap on the length (the
lightest tokens go), a prompt without any cluster (the previous prompt stays).

The order in which clients are given does not matter: they are sorted by name. Of equal weights the
first client's first token wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from fedfuse.config.feddtpt import AggregationConfig
from fedfuse.errors import check
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.similarity import (
    NOISE,
    attention,
    dbscan,
    gain_weights,
    kmeans,
    plane_coordinates,
    unit_vectors,
)

Embeddings = Float32[ndarray, "tokens width"]
Labels = Int64[ndarray, " tokens"]
Weights = Float64[ndarray, " tokens"]
Embed = Callable[[Prompt], Embeddings]


@dataclass(frozen=True, slots=True)
class Source:
    """A token of a client's prompt.

    Attributes:
        client: name of the client.
        position: index of the token in its prompt, from 0.
        token: id of the token.
    """

    client: str
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class KeptToken:
    """A token of the new prompt, and why it is there.

    Attributes:
        token: id of the token.
        weight: weight by which it was kept.
        cluster: its cluster, ``NOISE`` for a token by itself.
        sources: uploaded tokens that it represents, itself first.
    """

    token: int
    weight: float
    cluster: int
    sources: tuple[Source, ...]

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients whose tokens it represents, sorted."""
        return tuple(sorted({source.client for source in self.sources}))


@dataclass(frozen=True, slots=True)
class AggregatedPrompt:
    """The aggregated prompt, and all that it was made from, for reports.

    Attributes:
        kept: its tokens in order; empty where the previous prompt stays.
        prompt: the prompt.
        uploaded: every token of every client, by client and position.
        embeddings: ``[T, d]`` embeddings of the uploaded tokens.
        clusters: ``[T]`` cluster of each, ``NOISE`` for none.
        weights: ``[T]`` weight of each.
        epsilon: DBSCAN's epsilon; None where it was not used.
    """

    kept: tuple[KeptToken, ...]
    prompt: Prompt
    uploaded: tuple[Source, ...]
    embeddings: Embeddings
    clusters: Labels
    weights: Weights
    epsilon: float | None

    @property
    def coordinates(self) -> Float64[ndarray, "tokens 2"]:
        """``[T, 2]`` of the uploaded tokens in a plane."""
        return plane_coordinates(self.embeddings)


def aggregate(
    tuned: Mapping[str, TunedPrompt],
    embed: Embed,
    previous: Prompt,
    config: AggregationConfig,
    seed: int = 0,
) -> AggregatedPrompt:
    """Make one prompt of all clients' prompts.

    Args:
        tuned: tuned prompt of each client by its name.
        embed: contextual embeddings ``[n, d]`` of a prompt of n tokens.
        previous: prompt that the clients began with.
        config: method and its parameters; the method is one of ``METHODS``.
        seed: seed of k-means.

    Raises:
        FedfuseError: for no tokens at all, or gains that do not fit a prompt.
    """
    clients = [name for name in sorted(tuned) if _check(name, tuned[name]).prompt.tokens]
    check("tuned prompts", f"{len(tuned)} without any", "at least one token", clients)
    prompts = [tuned[name].prompt for name in clients]
    embeddings = np.concatenate([embed(prompt) for prompt in prompts])
    owners = np.repeat(np.arange(len(clients)), [len(prompt.tokens) for prompt in prompts])
    uploaded = tuple(
        Source(name, position, token)
        for name, prompt in zip(clients, prompts, strict=True)
        for position, token in enumerate(prompt.tokens)
    )
    epsilon = None
    labels = np.full(len(uploaded), NOISE)
    if config.method == "gain":
        gains = np.concatenate([np.asarray(tuned[name].gain, dtype=float) for name in clients])
        weights = gain_weights(embeddings, owners, gains)
    else:
        weights = attention(embeddings, owners)
    if config.method in ("gain", "paper"):
        labels, epsilon = dbscan(embeddings, config.min_samples)
    elif config.method == "k-means":
        labels = kmeans(embeddings, config.fixed_size, seed)
    if config.method == "average":
        kept = _averaged(uploaded, embeddings, weights)
    elif config.method == "gain":
        kept = _gained(uploaded, labels, weights, config)
    else:
        groups = _clusters(labels)
        if config.method == "attention":
            groups = [[index] for index in _heaviest(weights)[: config.fixed_size]]
        kept = [_keep(uploaded, group, labels, weights) for group in groups]
        kept.sort(key=lambda token: (token.sources[0].position, -token.weight, token.clients))
    kept = _cap(kept, config.max_tokens)
    prompt = Prompt(tuple(token.token for token in kept)) if kept else previous
    return AggregatedPrompt(tuple(kept), prompt, uploaded, embeddings, labels, weights, epsilon)


def _check(name: str, tuned: TunedPrompt) -> TunedPrompt:
    """Refuse gains other than one number in [-1, 1] a token."""
    gains, size = np.asarray(tuned.gain, dtype=float), len(tuned.prompt.tokens)
    good = len(gains) == size and (np.abs(gains) <= 1).all()
    check(f"client {name!r}", tuned.gain, f"{size} gains in [-1, 1], one a token", good)
    return tuned


def _gained(
    uploaded: Sequence[Source], labels: Labels, weights: Weights, config: AggregationConfig
) -> list[KeptToken]:
    """Method ``gain``, before the cap."""
    length = {source.client: source.position for source in uploaded}  # of the last token: n - 1
    strongest: dict[int, KeptToken] = {}
    groups = [*_clusters(labels), *([int(index)] for index in np.flatnonzero(labels == NOISE))]
    for group in groups:
        token = _keep(uploaded, group, labels, weights)
        factor = config.noise_discount if token.cluster == NOISE else len(token.clients) ** 0.5
        token = replace(token, weight=token.weight * factor)
        other = strongest.get(token.token)
        if other is None or token.weight > other.weight:
            strongest[token.token] = token

    def order(token: KeptToken) -> tuple[float, float, tuple[str, ...]]:
        places = [source.position / max(1, length[source.client]) for source in token.sources]
        return float(np.mean(places)), -token.weight, token.clients

    return sorted(strongest.values(), key=order)


def _averaged(
    uploaded: Sequence[Source], embeddings: Embeddings, weights: Weights
) -> list[KeptToken]:
    """Server-1: position by position, the uploaded token nearest to the mean embedding."""
    positions = np.array([source.position for source in uploaded])
    lengths = np.bincount(positions)  # clients that have a token at each position
    unit = unit_vectors(embeddings)
    kept = []
    for position in np.flatnonzero(2 * lengths >= lengths[0]):
        members = np.flatnonzero(positions == position).tolist()
        nearest = int((unit @ unit[members].mean(0)).argmax())
        token, weight = uploaded[nearest], float(weights[nearest])
        others = (uploaded[member] for member in members if member != nearest)
        kept.append(KeptToken(token.token, weight, NOISE, (token, *others)))
    return kept


def _clusters(labels: Labels) -> list[list[int]]:
    """Indices of the members of each cluster, without noise."""
    clusters = np.unique(labels[labels != NOISE])
    return [np.flatnonzero(labels == cluster).tolist() for cluster in clusters]


def _keep(
    uploaded: Sequence[Source], group: Sequence[int], labels: Labels, weights: Weights
) -> KeptToken:
    """The heaviest token of a group, which represents all: step 2 of Algorithm 2."""
    order = [group[i] for i in _heaviest(weights[group])]
    best, sources = order[0], tuple(uploaded[index] for index in order)
    return KeptToken(sources[0].token, float(weights[best]), int(labels[best]), sources)


def _heaviest(weights: Weights) -> list[int]:
    """Indices from the heaviest down; of equal weights the first is first."""
    order: list[int] = np.argsort(-weights, kind="stable").tolist()
    return order


def _cap(kept: list[KeptToken], size: int) -> list[KeptToken]:
    """The heaviest tokens, in their order."""
    heaviest = _heaviest(np.array([token.weight for token in kept]))[:size]
    return [kept[index] for index in sorted(heaviest)]
