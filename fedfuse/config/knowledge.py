"""The knowledge that is exchanged: next-token distributions on the public set."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, one_of

# Alignments over events between different tokenizers, that leave equal ones as they are.
BY_EVENTS = ("events", "events+alm")


@dataclass(frozen=True, slots=True)
class KnowledgeConfig:
    """What each side sends of its distributions, and how the other aligns it.

    Attributes:
        k: largest entries of a label row that are kept; the rest is the tail. 0 sends the labels'
            log-probabilities alone, which is all that ``alm`` reads.
        top_p: probability that a row's sent entries have together at least, above 0 to 1; 1 sends
            all k.
        logprob_bits: bits of a log-probability on the wire, 16 or 8.
        public_share: share of the public samples in a round, above 0 to 1; rounds take turns.
        delta_threshold: total variation, 0 to 1; a row that moved by less since it was last sent is
            not sent again; 0 sends every row. Needs a ``public-share`` of 1.
        alignment: how a teacher with other tokens teaches: the student's probabilities summed by
            ``events`` (the teacher's tokens); its likelihood of the text between places where
            tokens of both begin (``alm``); both (``events+alm``); or the teacher's projected to the
            nearest tokens at an ``exact-boundary``, or at rows paired by time warping (``dtw``, the
            paper's).
        duplicate_tokens: entries that project to one token: the ``sum`` of their probabilities, or
            the ``first`` and largest alone (the paper's); ``sum`` with ``events``.
        unaligned_positions: teacher of a row without a partner: none (``skip``), or a ``one-hot``
            on its own token (the paper's); ``skip`` with ``events``.
        tail: compare the probability outside the k entries too; the paper takes it as zero.
    """

    k: int = between(16, 0)
    top_p: float = between(0.99, 0, 1, above=True)
    logprob_bits: int = one_of(16, 16, 8)
    public_share: float = between(1.0, 0, 1, above=True)
    delta_threshold: float = between(0.0, 0, 1)
    alignment: str = one_of("events", "events", "alm", "events+alm", "exact-boundary", "dtw")
    duplicate_tokens: str = one_of("sum", "sum", "first")
    unaligned_positions: str = one_of("skip", "skip", "one-hot")
    tail: bool = True

    def contradictions(self) -> list[str]:
        """Errors for values that are valid alone but not together."""
        found = []

        def expect(key: str, value: object, why: str) -> None:
            given = getattr(self, key)
            if given != value:
                name = key.replace("_", "-")
                found.append(f"knowledge.{name}: expected {value!r} with {why}, got {given!r}")

        if self.alignment in (*BY_EVENTS, "alm"):
            for key, value in (("duplicate_tokens", "sum"), ("unaligned_positions", "skip")):
                expect(key, value, f"knowledge.alignment {self.alignment!r}")
        if not self.k:
            expect("alignment", "alm", "a knowledge.k of 0")
            expect("delta_threshold", 0, "a knowledge.k of 0, where rows have no entries")
        if self.public_share < 1:
            share = f"a knowledge.public-share of {self.public_share}"
            expect("delta_threshold", 0, f"{share}, as every round has other samples")
        return found
