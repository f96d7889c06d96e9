"""A data set as one model sees it: token ids, label rows, and batches of both as tensors."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.data.sample import Sample, fingerprint
from fedfuse.data.sampling import parts_by_length
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.beginnings import Group, containing, groups, pack
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Layout:
    """What the tokens of packed inputs see; see ``beginnings.Packed``.

    Attributes:
        position: ``[B, L]`` each token's position in the text that it is of.
        branch: ``[B, L]`` a token sees those before it of its own branch, and of branch 0.
    """

    position: Int64[Tensor, "batch length"]
    branch: Int64[Tensor, "batch length"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded inputs of B samples of L tokens, and the R label rows in them.

    There is no attention mask: padding is on the right, models are causal, and only label rows are
    read. Without one, attention takes its fast paths.

    Attributes:
        input_ids: ``[B, L]`` token ids, of each sample up to its last label row.
        sample: ``[R]`` the input in the batch that a label row is in.
        row: ``[R]`` its place there; unless inputs are packed it predicts the token at ``row + 1``.
        label: ``[R]`` the token it should predict.
        index: ``[R]`` its place among all label rows of the data set (NumPy, to look teachers up).
        below: ``[B, L, d]`` hidden states that a model's frozen first layers make of the input,
            where they are kept; see ``TokenizedDataset.with_states``.
        layout: where each input is several samples that begin alike; None where each is a sample.
    """

    input_ids: Int64[Tensor, "batch length"]
    sample: Int64[Tensor, " rows"]
    row: Int64[Tensor, " rows"]
    label: Int64[Tensor, " rows"]
    index: Int64[ndarray, " rows"]
    below: Float[Tensor, "batch length width"] | None = None
    layout: Layout | None = None

    def select_rows(self, rows: slice) -> Batch:
        """The same samples with some of their label rows."""
        return replace(
            self,
            sample=self.sample[rows],
            row=self.row[rows],
            label=self.label[rows],
            index=self.index[rows],
        )

    def concat(self, other: Batch) -> Batch:
        """One batch of both: this one's samples and rows, then the other's."""
        below = None
        if self.below is not None and other.below is not None:
            below = _stacked(self.below, other.below)
        return Batch(
            _stacked(self.input_ids, other.input_ids),
            torch.cat([self.sample, other.sample + len(self.input_ids)]),
            torch.cat([self.row, other.row]),
            torch.cat([self.label, other.label]),
            np.concatenate([self.index, other.index]),
            below,
        )


class TokenizedDataset:
    """Samples tokenized once for one model; batches are gathered without loops over tokens.

    Attributes:
        lengths: ``[N]`` tokens of each sample that a model is given.
        rows: the label rows of all samples.
        label_bytes: ``[N]`` bytes that they predict; see ``scored_bytes``.
        ids_digest: SHA-256 (hex) of all token ids, and of where samples begin.
        num_ids: number of token ids.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        samples: Sequence[Sample],
        max_length: int,
        groups: Int64[ndarray, " samples"] | None = None,
    ) -> None:
        """Tokenize; for the arguments see ``label_rows``.

        Raises:
            FedfuseError: when there is nothing to score.
        """
        ids, self.rows = label_rows(tokenizer, samples, max_length, groups)
        if not len(self.rows.token):
            raise FedfuseError(
                f"no label position in {len(samples)} samples within {max_length} tokens; "
                "give samples with an answer, or a larger max-length"
            )
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint(samples)
        self.samples = list(samples)
        self.label_bytes = scored_bytes(samples, self.rows, max_length)
        whole = np.array([len(i) for i in ids], dtype=np.int64)
        self._starts = np.concatenate([[0], whole.cumsum()[:-1]])
        self._flat = np.concatenate(ids)
        self.num_ids = len(self._flat)
        self.ids_digest = hashlib.sha256(self._flat.tobytes() + self._starts.tobytes()).hexdigest()
        self._below: StatesOf | None = None
        # What comes after a sample's last label row, at least that row's label, is never read.
        last = self.rows.row[np.maximum(self.rows.offsets[1:] - 1, 0)]
        self.lengths = np.where(np.diff(self.rows.offsets) > 0, last + 1, 1)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    def take(self, which: Int64[ndarray, " taken"]) -> TokenizedDataset:
        """Some of the samples, tokenized as they are here."""
        taken = copy.copy(self)
        taken.samples = [self.samples[i] for i in which]
        taken.fingerprint = fingerprint(taken.samples)
        taken.rows = self.rows.take(which)
        taken.label_bytes, taken.lengths = self.label_bytes[which], self.lengths[which]
        taken._starts = self._starts[which]
        return taken

    def with_states(self, below: StatesOf) -> Self:
        """The same data set, whose batches carry hidden states.

        Args:
            below: see ``StatesOf``.
        """
        bound = copy.copy(self)
        bound._below = below
        return bound

    def input_ids(self, number: int) -> Int64[ndarray, " length"]:
        """A sample's input up to the token that its last label row predicts; else its first."""
        start, length = self._starts[number], self.lengths[number]
        has_rows = self.rows.offsets[number + 1] > self.rows.offsets[number]
        ids: Int64[ndarray, " length"] = self._flat[start : start + length + has_rows]
        return ids

    def num_label_rows(self, which: Int64[ndarray, " batch"]) -> int:
        """Label rows of some samples."""
        return int((self.rows.offsets[which + 1] - self.rows.offsets[which]).sum())

    def batch(self, which: Int64[ndarray, " batch"], device: torch.device | str = "cpu") -> Batch:
        """Gather the samples ``which`` into padded tensors."""
        return self._gather(which, which, np.arange(len(which)), device)

    def batches(
        self,
        max_tokens: int,
        device: torch.device | str = "cpu",
        *,
        pass_cost: int = 0,
        longest: int = 0,
    ) -> Iterator[Batch]:
        """Label rows of all samples, in batches of at most so many padded tokens.

        A sample whose input another one begins with, as an option of one token does with the others
        of its question, is read there: what a causal model makes of a position depends on nothing
        that follows.

        Args:
            max_tokens: most tokens to read at once, padding included.
            device: device of the batches.
            pass_cost: see ``parts_by_length``.
            longest: most tokens of a sample that may be packed with others that begin alike; see
                ``Batch.layout``. 0 for none.
        """
        inputs = [self.input_ids(i)[: self.lengths[i]] for i in range(len(self))]
        read_in = containing(inputs)
        kept = np.unique(read_in)
        order = np.argsort(read_in, kind="stable")
        bounds = np.searchsorted(read_in[order], np.append(kept, len(self)))

        def gathered(part: Int64[ndarray, " part"], some: Sequence[Group] = ()) -> Batch:
            place, places = _ranges(bounds[part], bounds[part + 1])
            if some:
                return self._gather_packed(kept[part], order[places], place, device, some)
            return self._gather(kept[part], order[places], place, device)

        found = groups([inputs[i] for i in kept], longest) if longest else []
        read = np.array([group.read for group in found], dtype=np.int64)
        for near in parts_by_length(read, max_tokens, pass_cost):
            some = [found[i] for i in near]
            yield gathered(np.concatenate([group.inputs for group in some]), some)
        grouped = np.array([i for group in found for i in group.inputs], dtype=np.int64)
        alone = np.setdiff1d(np.arange(len(kept)), grouped)
        for part in parts_by_length(self.lengths[kept[alone]], max_tokens, pass_cost):
            yield gathered(alone[part])

    def starts(self, which: Int64[ndarray, " batch"]) -> Int64[ndarray, " batch"]:
        """Place among all token ids of each sample's first."""
        found: Int64[ndarray, " batch"] = self._starts[which]
        return found

    def places(self, which: Int64[ndarray, " batch"]) -> Int64[ndarray, "batch length"]:
        """Places among all token ids of those that samples are read as.

        Beyond a sample's length they are of other tokens.
        """
        columns = np.arange(self.lengths[which].max(initial=0))
        found: Int64[ndarray, "batch length"] = self._starts[which][:, None] + columns
        return found % self.num_ids

    def padded_ids(self, which: Int64[ndarray, " batch"]) -> Int64[ndarray, "batch length"]:
        """Token ids that samples are read as, 0 beyond a sample's length."""
        places = self.places(which)
        # Padding never reaches a label row, so any valid id will do.
        inside = np.arange(places.shape[1]) < self.lengths[which][:, None]
        return np.where(inside, self._flat[places], 0)

    def _gather(
        self,
        which: Int64[ndarray, " batch"],
        read: Int64[ndarray, " read"],
        place: Int64[ndarray, " read"],
        device: torch.device | str,
    ) -> Batch:
        """Inputs of the samples ``which``; rows of the samples ``read``, each in one of them."""
        owner, index = _ranges(self.rows.offsets[read], self.rows.offsets[read + 1])
        rows = place[owner], self.rows.row[index], index
        below = self._below(self, which, self.places(which), device) if self._below else None
        return self._batch(self.padded_ids(which), *rows, device, below)

    def _gather_packed(
        self,
        which: Int64[ndarray, " batch"],
        read: Int64[ndarray, " read"],
        place: Int64[ndarray, " read"],
        device: torch.device | str,
        found: Sequence[Group],
    ) -> Batch:
        """As ``_gather``, where ``which`` are the inputs of groups, each group packed."""
        bounds = np.cumsum([len(group.inputs) for group in found])[:-1]
        packed = pack(found, np.split(self.lengths[which], bounds))
        places = self._starts[which[packed.input]] + packed.position
        owner, index = _ranges(self.rows.offsets[read], self.rows.offsets[read + 1])
        of, row = place[owner], self.rows.row[index]
        row = row + np.where(row >= packed.length[of], packed.moved[of], 0)
        below = self._below(self, which, places, device) if self._below else None
        layout = Layout(to_tensor(packed.position, device), to_tensor(packed.branch, device))
        return self._batch(self._flat[places], packed.group[of], row, index, device, below, layout)

    def _batch(
        self,
        input_ids: Int64[ndarray, "batch length"],
        sample: Int64[ndarray, " rows"],
        row: Int64[ndarray, " rows"],
        index: Int64[ndarray, " rows"],
        device: torch.device | str,
        below: Tensor | None,
        layout: Layout | None = None,
    ) -> Batch:
        """As tensors, label rows as they stand in the inputs: those at one place are together."""
        order = np.lexsort([row, sample])
        sample, row, index = sample[order], row[order], index[order]
        label = self.rows.token[index]
        ids, at, of, token = (to_tensor(each, device) for each in (input_ids, sample, row, label))
        return Batch(ids, at, of, token, index, below, layout)


# Hidden states ``[B, L, d]`` of samples of a data set, those at some places ``[B, L]`` among all
# its token ids, on a device. None where there are none.
StatesOf = Callable[
    [
        TokenizedDataset,
        Int64[ndarray, " samples"],
        Int64[ndarray, "batch length"],
        torch.device | str,
    ],
    Tensor | None,
]


def _stacked(one: Tensor, other: Tensor) -> Tensor:
    """Both along the first dimension, the second padded with zeros behind."""
    padded = []
    for each in (one, other):
        longer = max(one.shape[1], other.shape[1]) - each.shape[1]
        padded.append(nn.functional.pad(each, (0, 0) * (each.ndim - 2) + (0, longer)))
    return torch.cat(padded)


def scored_bytes(
    samples: Sequence[Sample], rows: LabelRows, max_length: int
) -> Int64[ndarray, " samples"]:
    """``[N]`` UTF-8 bytes of each answer that its label rows predict: every loss's denominator.

    That is the whole answer, whatever tokens it has, except where the input was cut at
    ``max_length`` tokens: there it ends with the last token that is left, and is 0 where no label
    row is left.
    """
    counts = np.diff(rows.offsets)
    if not counts.any():
        return np.zeros(len(samples), dtype=np.int64)
    prompt = np.array([s.prompt_bytes for s in samples], dtype=np.int64)
    whole = np.array([s.answer_bytes for s in samples], dtype=np.int64)
    end = prompt.copy()
    np.maximum.at(end, rows.sample_of_row, rows.byte_end)  # unknown ends are -1
    # A label row covers at least one byte of the answer, even where it is not known which.
    left = np.maximum(end - prompt, 1)
    last = rows.row[np.maximum(rows.offsets[1:] - 1, 0)]
    # Row t predicts position t + 1: where that is the last one, there may have been more.
    cut = last + 2 == max_length
    return np.where(counts == 0, 0, np.where(cut, left, whole))


def to_tensor(values: ndarray, device: torch.device | str) -> Tensor:
    """An array on a device, same shape and type."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _ranges(
    starts: Int64[ndarray, " n"], stops: Int64[ndarray, " n"]
) -> tuple[Int64[ndarray, " total"], Int64[ndarray, " total"]]:
    """Concatenate the ranges ``starts[i]:stops[i]``: the range of each element, and the element."""
    counts = stops - starts
    owner = np.repeat(np.arange(len(starts)), counts)
    first = np.repeat(counts.cumsum() - counts, counts)
    return owner, np.arange(counts.sum()) - first + starts[owner]
