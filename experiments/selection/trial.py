"""One rule's trial: the same teachers and the same budget, and what the server has of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from benchmarks.harness import model_of
from experiments.selection.material import Material, losses
from experiments.selection.variants import Variant
from fedfuse.algorithms.fedmkt import ask
from fedfuse.config.run_config import derive_seed
from fedfuse.distillation.targets import Teacher
from fedfuse.evaluation.acceptance import acceptance_test
from fedfuse.factory.models import new_aligner
from fedfuse.fusion.fuser import KnowledgeFuser
from fedfuse.fusion.rules import LearningRule, Rule
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.knowledge.contexts import view_contexts
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import AdapterState


@dataclass(slots=True)
class Outcome:
    """What a rule came to, over all rounds.

    A round's choice has ``right``, the mean weight on whoever knows the sample's domain best;
    ``gate_loss``, what a learned gate minimises on samples that it did not learn from, before and
    after it learns, nats per label row; and ``shares``, by domain ``[C]`` mean weights of the
    candidates. What a row lacks to one counts for the server; a client that is not there has 0.
    """

    choices: list[dict[str, Any]] = field(default_factory=list)
    rolled_back: int = 0  # rounds that were not kept
    rule_seconds: float = 0.0
    learn_seconds: float = 0.0  # of the server's training
    # Per byte of each test answer, at the end.
    nats: Float64[ndarray, " samples"] = field(default_factory=lambda: np.empty(0))


class Trial:
    """A material made ready once for all variants."""

    def __init__(self, material: Material) -> None:
        config = material.config
        self.material = material
        self.round = 0
        self.server = model_of(config, None)
        self.data = self.server.encode(material.public)
        self.domains = np.array([sample.domain for sample in material.splits.test])
        self.public_domains = np.array([sample.domain for sample in material.public])
        self.aligner = new_aligner(self.server, config.knowledge, self.data)
        self.server.adapter = material.start
        self.before = losses(self.server, material.splits.test)

    @property
    def present(self) -> Int64[ndarray, " present"]:
        """The clients of the current round."""
        scenario = self.material.scenario
        here = [c for c in range(scenario.clients) if scenario.present(c, self.round)]
        return np.array(here, dtype=np.int64)

    def right_source(self) -> Int64[ndarray, " samples"]:
        """``[N]`` the column, among those present, of whoever knows each public sample's domain
        best; 0 is the server.
        """
        columns = np.concatenate([[0], self.present + 1])
        best = {d: int(loss[columns].argmin()) for d, loss in self.material.held_out.items()}
        return np.array([best[domain] for domain in self.public_domains])

    def run(self, variant: Variant) -> Outcome:
        """Rounds of selection and distillation; without a rule, on labels alone."""
        config, server, outcome = self.material.config, self.server, Outcome()
        server.adapter = self.material.start
        rule = variant.rule(config.seed, self.right_source) if variant.rule else None
        settings, state = config.server_distill, None
        if not variant.estimate_ewc:
            settings = replace(settings, ewc=0.0)
        for number in range(1, self.material.scenario.rounds + 1):
            self.round = number
            teacher = self._fuse(rule, outcome, blind=variant.blind) if rule else None
            started = time.perf_counter()
            kept = server.adapter, state
            _, state = server.learn(
                self.data,
                settings,
                seed=derive_seed(config, "server", "distill") + variant.order,
                teacher=teacher,
                state=state,
            )
            outcome.learn_seconds += time.perf_counter() - started
            if variant.promote and not self._better(kept[0]):
                server.adapter, state = kept
                outcome.rolled_back += 1
        outcome.nats = losses(server, self.material.splits.test)
        return outcome

    def _better(self, before: AdapterState) -> bool:
        """Whether the server's adapter makes no domain worse than another one, on held-out text."""
        samples = self.material.splits.holdout
        after = self.server.adapter
        new = losses(self.server, samples)
        self.server.adapter = before
        old = losses(self.server, samples)
        self.server.adapter = after
        return acceptance_test(old, new, [sample.domain for sample in samples]).keep

    def _fuse(self, rule: Rule, outcome: Outcome, *, blind: bool) -> Teacher:
        """The round's teacher; who is trusted, and the seconds that choosing took, are noted."""
        k = self.material.config.knowledge.k
        own = extract(self.server.lm, self.data, k)
        fuser = KnowledgeFuser(self.aligner, own, view_contexts(self.server.lm, self.data))
        if blind:
            fuser.ask(*ask(self.server, self.data, self.material.blind))
        others = []
        for client in self.present:
            sent = self.material.candidates[client]
            options = sent.options if blind else None
            others.append(
                fuser.align_teacher(sent.knowledge, sent.tokenizer, sent.context_loss, options)
            )

        def watched(stats: StackedStats) -> ndarray:
            started = time.perf_counter()
            weights = rule(stats)
            outcome.rule_seconds += time.perf_counter() - started
            return weights

        fused_targets = fuser.fuse(others, watched, k)
        fit = rule.last if isinstance(rule, LearningRule) else None
        gate_loss = (round(fit.before, 4), round(fit.after, 4)) if fit else None
        outcome.choices.append(self._choice(fused_targets.weights, gate_loss))
        return fused_targets.teacher

    def _choice(self, weights: ndarray, gate_loss: tuple[float, float] | None) -> dict[str, Any]:
        shares = weights.copy()
        shares[:, 0] += 1 - shares.sum(1)  # no teacher is trust in oneself
        right = float(shares[np.arange(len(shares)), self.right_source()].mean())
        whole = np.zeros((len(shares), self.material.scenario.clients + 1))
        whole[:, 0], whole[:, self.present + 1] = shares[:, 0], shares[:, 1:]
        by_domain = {
            domain: [round(float(x), 4) for x in whole[self.public_domains == domain].mean(0)]
            for domain in self.material.splits.domains
        }
        return {"right": round(right, 4), "gate_loss": gate_loss, "shares": by_domain}
