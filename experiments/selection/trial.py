"""One selector's trial: the same teachers and the same budget, and what the server has of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from experiments.selection.material import Material, participant
from fedfuse.evaluation.scoring import sample_nats
from fedfuse.flower.workspace import derive_seed
from fedfuse.fusion.evidence import CandidateEvidence, examine, gather
from fedfuse.fusion.fuse import fuse
from fedfuse.fusion.learning import LearnedSelector
from fedfuse.fusion.selection import dual_min_ce, min_ce, uniform
from fedfuse.fusion.selectors import Selector, avg_ce, by_loss, on_samples, oracle, untrained_gate
from fedfuse.fusion.settings import SelectorSettings
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.prompts import view_prompts
from fedfuse.knowledge.translate import Translator
from fedfuse.models.builtin import cache_root
from fedfuse.tokenization.projection import Projected

ROUNDS = 2
LABELS_ONLY = "labels-only"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a selector came to.

    Attributes:
        nats: ``[test samples]`` the server's loss of each test answer, nats per byte, at the end.
        right: mean weight on the right source over public samples, in the first round.
        importance: ``[C]`` each candidate's mean weight in the first round; what a row lacks to one
            counts for the server.
        select_seconds: of the selector alone, all rounds.
        learn_seconds: of the server's training, all rounds.
    """

    nats: Float64[ndarray, " samples"]
    right: float
    importance: list[float]
    select_seconds: float
    learn_seconds: float


class Trial:
    """A material made ready once: candidates translated, test set encoded."""

    def __init__(self, material: Material) -> None:
        config = material.config
        self.material = material
        self.server = participant("server", config.server.model, config.seed)
        self.data = self.server.encode(material.public)
        self.test = self.server.encode(material.splits.test)
        self.domains = np.array([sample.domain for sample in material.splits.test])
        rules = config.knowledge
        self.translator = Translator(
            self.server.tokenizer,
            material.public,
            config.data.max_length,
            positions=rules.positions,
            collisions=rules.collisions,
            unmatched=rules.unmatched,
            cache=cache_root() / "tables",
        )
        self.teachers = [
            self.translator(candidate.knowledge, candidate.tokenizer)
            for candidate in material.candidates
        ]

    def before(self) -> Float64[ndarray, " samples"]:
        """``[test samples]`` the server's loss before any round, nats per byte."""
        self.server.adapter = self.material.start
        return self._test()

    def run(self, make: Callable[[Trial], Selector] | None) -> Outcome:
        """Rounds of selection and distillation; without a selector, on labels alone."""
        config, server = self.material.config, self.server
        server.adapter = self.material.start
        selector = make(self) if make else None
        state = None
        phase = config.server_distill
        select_seconds = learn_seconds = right = 0.0
        importance: list[float] = []
        for number in range(1, ROUNDS + 1):
            teacher = None
            if selector:
                own = extract(server.model, self.data, config.knowledge.k)
                view = view_prompts(server.model, self.data)
                started = time.perf_counter()
                own_part = self.translator.own(own)
                evidence = gather(
                    [
                        self._examine(own_part, own_part, own.loss, view.loss),
                        *(
                            self._examine(part, own_part, c.knowledge.loss, c.prompt_loss)
                            for part, c in zip(self.teachers, self.material.candidates, strict=True)
                        ),
                    ],
                    own.offsets,
                    view.state,
                )
                weights = selector(evidence)
                select_seconds += time.perf_counter() - started
                teacher = fuse([own_part, *self.teachers], weights, config.knowledge.k)
                if number == 1:
                    shares = on_samples(weights, evidence)
                    shares[:, 0] += 1 - shares.sum(1)  # no teacher is trust in oneself
                    right = float(shares[np.arange(len(shares)), self.right_source()].mean())
                    importance = [round(float(x), 4) for x in shares.mean(0)]
            started = time.perf_counter()
            _, state = server.learn(
                self.data,
                phase.settings(),
                seed=derive_seed(config, "server", "distill"),
                teacher=teacher,
                label_share=phase.label_share if teacher else 1.0,
                state=state,
            )
            learn_seconds += time.perf_counter() - started
        return Outcome(self._test(), right, importance, select_seconds, learn_seconds)

    def right_source(self) -> ndarray:
        """``[N]`` the column of whoever knows each public sample's domain best."""
        best = self.material.best
        return np.array([best[sample.domain] for sample in self.material.public])

    def _examine(
        self, part: Projected, own: Projected, loss: ndarray, prompt_loss: ndarray
    ) -> CandidateEvidence:
        vocab_size = self.server.tokenizer.vocab_size
        label = self.translator.rows.token
        return examine(part, own, label, vocab_size, loss, prompt_loss)

    def _test(self) -> Float64[ndarray, " samples"]:
        nats = sample_nats(self.server.model, self.test, self.server.tokenizer.vocab_size)
        return nats / self.test.label_bytes


BASE = SelectorSettings()


def learned(settings: SelectorSettings) -> Callable[[Trial], Selector]:
    """A learned selector's maker."""
    return lambda trial: LearnedSelector(settings, trial.material.config.seed)


def rule(select: Selector) -> Callable[[Trial], Selector]:
    """A fixed rule's maker."""
    return lambda _: select


VARIANTS: dict[str, Callable[[Trial], Selector] | None] = {
    LABELS_ONLY: None,
    "dual-min-ce": rule(by_loss(dual_min_ce)),
    "min-ce": rule(by_loss(min_ce)),
    "avg-ce": rule(avg_ce),
    "uniform": rule(by_loss(uniform)),
    "untrained": lambda trial: untrained_gate(trial.material.config.seed, BASE.threshold),
    "oracle": lambda trial: oracle(trial.right_source()),
    "trained": learned(BASE),
}
