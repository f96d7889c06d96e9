"""The joint loss of labels and teachers over events: sets of the student's tokens.

A teacher's k events and its tail are k + 1 classes, as its k tokens are in
``fedfuse.distillation.loss``; the student's score of a class is the log-sum-exp of the logits of
its tokens. A row may have several teachers, each with events of its own: the row's loss is the sum
of theirs by weight.

A teacher may also know the likelihood of a chunk, the text of several rows from one on. It is
compared with the student's, the product of its labels' probabilities on these rows, as in ALM
(arXiv 2503.20083).

Nothing of the size of the vocabulary is formed for a teacher. The tokens of all events of a row,
whoever's, are read one by one; the log-sum-exp of the others is taken once, whatever the number of
teachers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from numpy import ndarray
from torch import Tensor

from fedfuse.config.training import Objective
from fedfuse.distillation.loss import divergence
from fedfuse.errors import check
from fedfuse.events import TeacherTargets
from fedfuse.tokenizers.dataset import to_tensor

# As in the paper's experiments.
CHUNK_TEMPERATURE = 100.0
# Certainty that likelihoods are taken to have at most: the divergence from a certain student is
# infinite.
_LEAST_NATS = 1e-6

_orders: dict[tuple[int, str], Tensor] = {}


@dataclass(frozen=True)
class EventClasses:
    """Classes of G teachers of R label rows: ranges of permutations of the student's tokens.

    Attributes:
        num_rows: number of label rows R.
        row: ``[G]`` the row that each teaches, ascending.
        orders: ``[O, V]`` permutations of the student's tokens.
        order: ``[G]`` the permutation of each one's ranges; -1 for token ids themselves.
        start: ``[G, k]`` first place of each class.
        stop: ``[G, k]`` place behind its last; ``start`` in unused slots.
        probs: ``[G, k + 1]`` probabilities, the tail's last; they sum to 1.
        weight: ``[G]`` weight of each one's loss.
        chunk_rows: ``[G]`` rows of the chunk that begins at the row; 0 for none.
        chunk_logprob: ``[G]`` the teacher's log-probability of its text.
        whole: ``[R+1]`` (NumPy) whether a row and the one before are of no common chunk.
    """

    num_rows: int
    row: Int64[Tensor, " teachers"]
    orders: Int32[Tensor, "orders vocab"]
    order: Int64[Tensor, " teachers"]
    start: Int64[Tensor, "teachers k"]
    stop: Int64[Tensor, "teachers k"]
    probs: Float32[Tensor, "teachers k_plus_1"]
    weight: Float32[Tensor, " teachers"]
    chunk_rows: Int64[Tensor, " teachers"]
    chunk_logprob: Float32[Tensor, " teachers"]
    whole: Bool[ndarray, " rows_plus_1"]

    @classmethod
    def from_targets(cls, teacher: TeacherTargets, device: torch.device | str) -> EventClasses:
        """The rows of targets as tensors; a mixture over tokens is one more teacher."""
        tokens, events = teacher.tokens, teacher.events.distribution
        num_rows = tokens.num_rows
        taught = np.flatnonzero(tokens.weight > 0)
        mixture = tokens[taught]
        used = mixture.logprobs > -np.inf
        wide = max(tokens.k, events.k)

        def column(first: np.ndarray, second: np.ndarray, empty: float = 0) -> np.ndarray:
            parts = [
                np.pad(part, ((0, 0), (0, wide - part.shape[1])), constant_values=empty)
                for part in (first, second)
            ]
            return np.concatenate(parts)

        row = np.concatenate(
            [taught, np.repeat(np.arange(num_rows), np.diff(teacher.events.offsets))]
        )
        logs = column(mixture.logprobs, events.logprobs, -np.inf)
        mass = np.exp(np.column_stack([logs, np.append(mixture.tail_logprob, events.tail_logprob)]))
        mass /= np.maximum(mass.sum(1, keepdims=True), 1e-30)
        arrays = {
            "row": row,
            "order": np.append(np.full(len(taught), -1), events.order).astype(np.int64),
            "start": column(mixture.indices * used, events.start).astype(np.int64),
            "stop": column((mixture.indices + 1) * used, events.stop).astype(np.int64),
            "probs": mass,
            "weight": np.append(mixture.weight, events.weight),
            "chunk_rows": np.append(np.zeros_like(taught), events.chunk_rows),
            "chunk_logprob": np.append(np.zeros_like(mixture.weight), events.chunk_logprob),
        }
        by_row = np.argsort(row, kind="stable")
        return cls(
            num_rows,
            orders=_orders_on(device, events.orders),
            whole=_outside_chunks(row, arrays["chunk_rows"], num_rows),
            **{name: to_tensor(values[by_row], device) for name, values in arrays.items()},
        )

    def __getitem__(self, rows: slice) -> EventClasses:
        """Some of the rows, which follow each other."""
        first, behind, _ = rows.indices(self.num_rows)
        bounds = torch.tensor([first, behind], device=self.row.device)
        a, b = torch.searchsorted(self.row, bounds).tolist()
        return EventClasses(
            behind - first,
            self.row[a:b] - first,
            self.orders,
            self.order[a:b],
            self.start[a:b],
            self.stop[a:b],
            self.probs[a:b],
            self.weight[a:b],
            self.chunk_rows[a:b],
            self.chunk_logprob[a:b],
            self.whole[first : behind + 1],
        )

    def parts(self, size: int) -> Iterator[slice]:
        """Stretches of about ``size`` rows, or somewhat more, that no chunk crosses."""
        bounds, start = np.flatnonzero(self.whole), 0
        while start < self.num_rows:
            stop = int(bounds[np.searchsorted(bounds, min(start + size, self.num_rows))])
            yield slice(start, stop)
            start = stop

    def read(self) -> tuple[Int64[Tensor, " read"], Int64[Tensor, " read"]]:
        """Rows and tokens of all events, each token of a row once, by row."""
        key, vocab_size = self._members.key, self.orders.shape[1]
        return key // vocab_size, key % vocab_size

    def losses(
        self,
        kept: Float[Tensor, " read"],
        outside: Float[Tensor, " rows"],
        label_score: Float[Tensor, " rows"],
        objective: Objective,
    ) -> Float[Tensor, " rows"]:
        """The joint loss of each row; see ``Targets``."""
        members = self._members
        values, count = members.values(kept), self.probs.numel()
        scores = segment_logsumexp(values, members.slot, count).view(self.probs.shape)
        tail = _logaddexp(scores[:, -1], outside[self.row])
        scores = torch.cat([scores[:, :-1], tail[:, None]], 1)
        # A tail that the student cannot have, as no token is left for it, is no class.
        probs = self.probs.to(scores.dtype).clone()
        probs[:, -1].masked_fill_(tail.isneginf(), 0.0)
        by_teacher = self.weight * divergence(scores, probs, objective)
        zeros = torch.zeros_like(outside)
        teacher_loss = zeros.index_add(0, self.row, by_teacher.to(zeros.dtype))
        # All classes of any teacher of a row are its whole vocabulary.
        whole = outside.index_copy(0, self.row[self._first], scores[self._first].logsumexp(1))
        label_loss = whole - label_score
        if len(self._chunks):
            teacher_loss = teacher_loss + self._chunk_losses(label_loss)
        label_weight = objective.label_weight
        return label_weight * label_loss + (1 - label_weight) * teacher_loss

    def _chunk_losses(self, label_loss: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Divergence of the student's likelihoods of chunks, where they begin."""
        chunks = self._chunks
        length = self.chunk_rows[chunks]
        of = torch.repeat_interleave(length)
        row = self.row[chunks][of] + torch.arange(len(of), device=of.device) - _starts(length)[of]
        zeros = label_loss.new_zeros(len(chunks))
        student = zeros.index_add(0, of, -label_loss[row])
        teacher = self.chunk_logprob[chunks].to(student.dtype)
        losses = self.weight[chunks] * likelihood_divergence(student, teacher)
        result = torch.zeros_like(label_loss)
        return result.index_add(0, self.row[chunks], losses.to(result.dtype))

    @cached_property
    def _chunks(self) -> Int64[Tensor, " chunks"]:
        """The teachers that know a chunk."""
        return self.chunk_rows.nonzero()[:, 0]

    @cached_property
    def _first(self) -> Int64[Tensor, " taught_rows"]:
        """The first teacher of each row that has one."""
        new = torch.ones_like(self.row, dtype=torch.bool)
        new[1:] = self.row[1:] != self.row[:-1]
        return new.nonzero()[:, 0]

    @cached_property
    def _members(self) -> _Members:
        """The tokens that are read, and how the classes' scores follow from them.

        A token of a row is in one class of each of the row's teachers: in one of its events, or in
        its tail, where the tokens come together that are in the events of the same others.
        """
        (teachers, k), vocab_size = self.start.shape, self.orders.shape[1]
        length = (self.stop - self.start).view(-1)
        event = torch.repeat_interleave(length)  # [members] teacher * k + slot
        teacher = event // max(1, k)
        within = torch.arange(len(event), device=event.device) - _starts(length)[event]
        spot, order = self.start.view(-1)[event] + within, self.order[teacher]
        token = torch.where(order < 0, spot, self.orders[order, spot].long())
        key = self.row[teacher] * vocab_size + token
        slot = event + teacher  # of k + 1 classes
        if len(self._first) == teachers:
            return _Members(key, slot)
        key, number = torch.unique(key, return_inverse=True)
        position = torch.arange(teachers, device=key.device) - torch.searchsorted(
            self.row, self.row
        )  # among the teachers of a row
        check("teachers of a row", int(position.max()) + 1, "62 at most", int(position.max()) < 62)
        mask = torch.zeros_like(key).index_add_(0, number, (1 << position)[teacher])
        masks, mask = torch.unique(mask, return_inverse=True)
        groups, group = torch.unique(key // vocab_size * len(masks) + mask, return_inverse=True)
        count = torch.bincount(groups // len(masks), minlength=self.num_rows)  # [rows]
        size = count[self.row]
        tail = torch.repeat_interleave(size)  # [pairs] teacher
        first = (_starts(count)[self.row] - _starts(size))[tail]
        which = torch.arange(len(tail), device=tail.device) + first  # [pairs] group
        others = (masks[groups % len(masks)][which] >> position[tail]) % 2 == 0
        return _Members(
            key,
            torch.cat([slot, tail[others] * (k + 1) + k]),
            torch.cat([number, len(key) + which[others]]),
            group,
            len(groups),
        )


@dataclass(frozen=True)
class _Members:
    """Which scores each class is the log-sum-exp of.

    Attributes:
        key: ``[read]`` what is read, each once, by row: ``row * V + token``.
        slot: ``[pairs]`` class, ``teacher * (k + 1) + class``.
        member: ``[pairs]`` what is in it: a number of ``key``, or behind them of a group; None for
            ``key`` itself.
        group: ``[read]`` group of each token, or None.
        num_groups: how many groups there are.
    """

    key: Int64[Tensor, " read"]
    slot: Int64[Tensor, " pairs"]
    member: Int64[Tensor, " pairs"] | None = None
    group: Int64[Tensor, " read"] | None = None
    num_groups: int = 0

    def values(self, kept: Float[Tensor, " read"]) -> Float[Tensor, " pairs"]:
        """The scores of all pairs."""
        if self.member is None or self.group is None:
            return kept
        together = segment_logsumexp(kept, self.group, self.num_groups)
        return torch.cat([kept, together])[self.member]


def likelihood_divergence(
    student: Float[Tensor, " chunks"], teacher: Float[Tensor, " chunks"]
) -> Float[Tensor, " chunks"]:
    """Divergence of the student's likelihoods of chunks from a teacher's.

    ALM (arXiv 2503.20083): Kullback-Leibler divergence of two binary events, of probability
    ``p ** (1 / temperature)``, times the temperature, so that the slope by a log-probability is
    one at most however high the temperature is.

    Args:
        student: ``[B]`` log-probabilities.
        teacher: ``[B]`` log-probabilities.

    Returns:
        ``[B]`` nats; 0 where both are equal.
    """
    yes, own_yes = (p.clamp_max(-_LEAST_NATS) / CHUNK_TEMPERATURE for p in (teacher, student))
    no, own_no = ((-p.expm1()).log() for p in (yes, own_yes))
    return CHUNK_TEMPERATURE * (yes.exp() * (yes - own_yes) + no.exp() * (no - own_no))


def _outside_chunks(
    row: Int64[ndarray, " teachers"], chunk_rows: Int64[ndarray, " teachers"], num_rows: int
) -> Bool[ndarray, " rows_plus_1"]:
    """Bounds between rows, and at both ends, that are inside no chunk."""
    step = np.zeros(num_rows + 2, dtype=np.int64)
    some = chunk_rows > 0
    np.add.at(step, row[some] + 1, 1)
    np.add.at(step, row[some] + chunk_rows[some], -1)
    outside: Bool[ndarray, " rows_plus_1"] = step.cumsum()[:-1] == 0
    return outside


def _orders_on(device: torch.device | str, orders: ndarray) -> Int32[Tensor, "orders vocab"]:
    """Permutations on a device, copied there once for all batches of a phase."""
    key = id(orders), str(device)
    if key not in _orders:
        _orders[key] = to_tensor(orders, device)
        weakref.finalize(orders, _orders.pop, key, None)
    return _orders[key]


def segment_logsumexp(
    values: Float[Tensor, " n"], segment: Int64[Tensor, " n"], count: int
) -> Float[Tensor, " segments"]:
    """``[count]`` log-sum-exp of the values of each segment; -inf for one without values."""
    largest = values.new_full((count,), -torch.inf)
    largest = largest.scatter_reduce(0, segment, values.detach(), "amax")
    largest = largest.masked_fill(largest.isneginf(), 0.0)
    total = values.new_zeros(count).index_add(0, segment, (values - largest[segment]).exp())
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + largest).masked_fill(empty, -torch.inf)


def _logaddexp(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``torch.logaddexp``, with a gradient of 0 where both are -inf."""
    neither = one.isneginf() & other.isneginf()
    safe = torch.logaddexp(one.masked_fill(neither, 0.0), other.masked_fill(neither, 0.0))
    return safe.masked_fill(neither, -torch.inf)


def _starts(length: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Where each of some stretches begins that lie behind each other."""
    return length.cumsum(0) - length
