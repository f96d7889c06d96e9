"""What one model knows about the public set: sparse next-token distributions on label rows.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 2 and 7: ``S = {(l_i, p_i)}``.

Differs from the paper: distributions instead of logits, with the mass outside the k kept entries
carried along, and losses that follow from the distributions, so that a receiver need not trust a
claimed loss.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from fedfuse import errors
from fedfuse.sparse import SparseDistribution

# For rounding in whoever computed a distribution: what comes off the wire has mass one again.
MASS_TOLERANCE = 1e-3


def check(name: str, found: object, expected: object, good: object) -> None:
    """Raise ``FedfuseError`` that names a field of knowledge, unless ``good``."""
    errors.check(f"knowledge.{name}", found, expected, good)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Sparse knowledge of one model on N samples with T label rows in all.

    Row t of a sample speaks of predicting token t+1 given tokens 0..t. Logarithms are natural.

    Attributes:
        offsets: ``[N+1]`` rows of sample i are ``offsets[i]:offsets[i+1]``.
        indices: ``[T, k]`` token ids in the vocabulary of ``tokenizer``; with k = 0 only labels
            have a probability.
        logprobs: ``[T, k]`` their log-probabilities, descending; -inf fills unused slots.
        tail_logprob: ``[T]`` log of the mass outside the k kept entries; -inf for none.
        label_logprob: ``[T]`` log-probability of the label token.
        label_bytes: ``[N]`` UTF-8 bytes of the scored text.
        tokenizer: fingerprint of the tokenizer that the ids belong to.
        public: fingerprint of the samples.
    """

    offsets: Int64[ndarray, " n_plus_1"]
    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    tail_logprob: Float32[ndarray, " rows"]
    label_logprob: Float32[ndarray, " rows"]
    label_bytes: Int64[ndarray, " n"]
    tokenizer: str
    public: str

    @property
    def distribution(self) -> SparseDistribution:
        """The distributions alone, all rows of them known."""
        weight = np.ones(self.num_rows, dtype=np.float32)
        if not self.k:  # one slot, unused
            nothing = SparseDistribution.empty(self.num_rows, 1, tail_logprob=0.0)
            return replace(nothing, weight=weight)
        return SparseDistribution(self.indices, self.logprobs, self.tail_logprob, weight)

    @property
    def first_rows(self) -> SparseDistribution:
        """``[N]`` each sample's first label row, which no part of its answer precedes.

        Weight 0 for a sample without rows.
        """
        if not self.num_rows:
            return SparseDistribution.empty(self.num_samples, 1, tail_logprob=0.0)
        has_rows = np.diff(self.offsets) > 0
        first = self.distribution[np.where(has_rows, self.offsets[:-1], 0)]
        return replace(first, weight=has_rows.astype(np.float32))

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self.offsets) - 1

    @property
    def num_rows(self) -> int:
        """Number of label rows T."""
        return len(self.tail_logprob)

    @property
    def k(self) -> int:
        """Entries kept per row."""
        return int(self.indices.shape[1])

    @property
    def sample_of_row(self) -> Int64[ndarray, " rows"]:
        """``[T]`` the sample that each row belongs to."""
        return np.repeat(np.arange(self.num_samples), np.diff(self.offsets))

    @property
    def loss(self) -> Float32[ndarray, " n"]:
        """``[N]`` mean label loss, nats per byte of scored text: comparable between tokenizers.

        Infinite where nothing was scored, so that who knows nothing of a sample never teaches it.
        """
        nats = np.bincount(
            self.sample_of_row, weights=-self.label_logprob, minlength=self.num_samples
        )
        loss = np.full(self.num_samples, np.inf, dtype=np.float32)
        np.divide(nats, self.label_bytes, out=loss, where=self.label_bytes > 0, casting="same_kind")
        return loss

    def validate(self, *, vocab_size: int, tokenizer: str, public: str, num_rows: int) -> None:
        """Refuse knowledge that is malformed or about something else.

        Raises:
            FedfuseError: naming the field, what is expected and what it holds.
        """
        check("tokenizer", self.tokenizer, tokenizer, self.tokenizer == tokenizer)
        check("public", self.public, public, self.public == public)
        check("num_rows", self.num_rows, num_rows, self.num_rows == num_rows)
        self.check_shapes()
        self.check_values(vocab_size)
        mass = np.exp(self.logprobs.astype(np.float64)).sum(1)
        mass += np.exp(self.tail_logprob.astype(np.float64))
        wrong = float(np.abs(mass - 1).max(initial=0))
        expected = f"one within {MASS_TOLERANCE}"
        check("mass", f"off by {wrong:.3g}", expected, wrong <= MASS_TOLERANCE)
        descending = bool((self.logprobs[:, 1:] <= self.logprobs[:, :-1]).all())
        check("logprobs", "unsorted rows", "descending rows", descending)
        # A label's probability can be no larger than the largest that the row holds.
        largest = self.logprobs.max(1, initial=-np.inf)
        bound = np.maximum(largest, self.tail_logprob) + MASS_TOLERANCE
        good = bool((self.label_logprob <= bound).all())
        check("label_logprob", "above the row's largest probability", "at most that", good)

    def check_shapes(self) -> None:
        """Refuse fields that do not fit together.

        Raises:
            FedfuseError: naming the field, what is expected and what it holds.
        """
        shape = self.logprobs.shape
        check("indices", self.indices.shape, shape, self.indices.shape == shape)
        for name in ("indices", "tail_logprob", "label_logprob"):
            found = len(getattr(self, name))
            check(name, f"{found} rows", f"{self.num_rows} rows", found == self.num_rows)
        found = len(self.label_bytes)
        check("label_bytes", found, self.num_samples, found == self.num_samples)
        good = self.offsets[0] == 0 and self.offsets[-1] == self.num_rows
        check("offsets", self.offsets[[0, -1]].tolist(), [0, self.num_rows], bool(good))
        check("offsets", "descending", "ascending", bool((np.diff(self.offsets) >= 0).all()))

    def check_values(self, vocab_size: int) -> None:
        """Refuse values that are no log-probabilities, or no tokens of the vocabulary.

        Raises:
            FedfuseError: naming the field, what is expected and what it holds.
        """
        for name in ("logprobs", "tail_logprob", "label_logprob"):
            good = bool((getattr(self, name) <= MASS_TOLERANCE).all())  # False for NaN too
            check(name, "NaN or positive values", "log-probabilities", good)
        finite = bool(np.isfinite(self.label_logprob).all())
        check("label_logprob", "-inf", "finite values", finite)
        low, high = int(self.indices.min(initial=0)), int(self.indices.max(initial=0))
        good = low >= 0 and high < vocab_size
        check("indices", (low, high), f"0..{vocab_size - 1}", good)

    def arrays(self) -> dict[str, ndarray]:
        """The array fields by name."""
        names = [f.name for f in fields(self) if f.name not in ("tokenizer", "public")]
        return {name: getattr(self, name) for name in names}
