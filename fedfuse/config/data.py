"""The data of a run: where it is from, how it is split, and how clients share it."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, one_of, text

# Source of the synthetic world that is made on the spot.
BUILTIN_DATA = "builtin"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What the federation learns from.

    Attributes:
        source: ``builtin``, or data sets joined by ``+``: a .jsonl file, a folder of them, a hub
            id; each becomes a domain.
        domains: number of domains of the built-in world, 1 to 4.
        partition: how private samples are dealt to clients: one ``domain`` each, evenly at random
            (``iid``), with ``dirichlet`` label skew, or with that and equally many samples each
            (``dirichlet-equal``).
        alpha: concentration of the Dirichlet partition, above 0; 0.1 is very skewed, 100 even.
        private: private samples per domain, 1 or more.
        public: public samples per domain, 0 or more; the labelled set that everyone holds.
        holdout: held-out samples per domain, 0 or more, which the server judges by; clients hold
            back as many of their private ones, at most a tenth. The acceptance test needs some.
        blind: samples per domain of which only the server knows the answers, 0 or more; what
            clients say of them shows whom to trust (``fusion.evidence``).
        test: test samples per domain (built-in: repeats per entity), 1 or more.
        questions: multiple-choice questions per domain, 0 or more.
        template: prompt template of real records, such as ``{question} Answer:``; empty for the
            default of the record's fields.
        max_length: tokens per sample, 2 or more; the rest is cut off.
    """

    source: str = text(BUILTIN_DATA)
    domains: int = between(4, 1, 4)
    partition: str = one_of("domain", "domain", "iid", "dirichlet", "dirichlet-equal")
    alpha: float = between(0.5, 0, above=True)
    private: int = between(4000, 1)
    public: int = between(150, 0)
    holdout: int = between(60, 0)
    blind: int = between(24, 0)
    test: int = between(10, 1)
    questions: int = between(120, 0)
    template: str = text("", empty=True)
    max_length: int = between(128, 2)
