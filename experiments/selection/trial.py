"""One rule's trial: the same teachers and the same budget, and what the server has of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from experiments.selection.material import Material, local_model, losses
from experiments.selection.variants import Variant
from fedfuse.algorithms.local_model import AdapterState
from fedfuse.builtin.models import cache_root
from fedfuse.config.run_config import derive_seed
from fedfuse.evaluation.acceptance import acceptance_test
from fedfuse.evaluation.scoring import sample_nll
from fedfuse.fusion.fuser import KnowledgeFuser
from fedfuse.fusion.rules import LearningRule, Rule
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.contexts import view_contexts
from fedfuse.knowledge.extract import extract
from fedfuse.sparse import SparseDistribution


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule did in one round.

    Attributes:
        shares: by domain, ``[C]`` mean weight of each candidate over the domain's public samples;
            what a row lacks to one counts for the server. A client that is not there has 0.
        right: mean weight on whoever knows the sample's domain best.
        gate_loss: of the learned gate, what it minimises on samples that it did not learn from,
            before and after the round's learning, nats per label row.
    """

    shares: dict[str, list[float]]
    right: float
    gate_loss: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule came to.

    Attributes:
        nats: ``[test samples]`` the server's loss of each test answer, nats per byte, at the end.
        choices: one per round; none without a rule.
        rolled_back: rounds that were not kept.
        rule_seconds: of the rule, all rounds.
        learn_seconds: of the server's training, all rounds.
    """

    nats: Float64[ndarray, " samples"]
    choices: list[Choice] = field(default_factory=list)
    rolled_back: int = 0
    rule_seconds: float = 0.0
    learn_seconds: float = 0.0


class Trial:
    """A material made ready once for all variants."""

    def __init__(self, material: Material) -> None:
        config = material.config
        self.material = material
        self.round = 0
        self.server = local_model("server", config.server.model, config)
        self.data = self.server.encode(material.public)
        self.test = self.server.encode(material.splits.test)
        self.domains = np.array([sample.domain for sample in material.splits.test])
        self.public_domains = np.array([sample.domain for sample in material.public])
        self.aligner = KnowledgeAligner(
            self.server.tokenizer,
            material.public,
            config.data.max_length,
            config.knowledge,
            cache_root() / "tables",
        )
        self.server.adapter = material.start
        self.before = self._test()

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
        config, server = self.material.config, self.server
        server.adapter = self.material.start
        rule = None
        if variant.rule:
            rule = variant.rule(self.material.config.seed, self.right_source)
        settings, state = config.server_distill, None
        if not variant.estimate_ewc:
            settings = replace(settings, ewc=0.0)
        choices: list[Choice] = []
        rolled_back = 0
        rule_seconds = learn_seconds = 0.0
        for number in range(1, self.material.scenario.rounds + 1):
            self.round = number
            teacher = None
            if rule:
                teacher, choice, seconds = self._fuse(rule)
                choices.append(choice)
                rule_seconds += seconds
            started = time.perf_counter()
            kept = server.adapter, state
            _, state = server.learn(
                self.data,
                settings,
                seed=derive_seed(config, "server", "distill") + variant.order,
                teacher=teacher,
                state=state,
            )
            learn_seconds += time.perf_counter() - started
            if variant.promote and not self._better(kept[0]):
                server.adapter, state = kept
                rolled_back += 1
        return Outcome(self._test(), choices, rolled_back, rule_seconds, learn_seconds)

    def _better(self, before: AdapterState) -> bool:
        """Whether the server's adapter makes no domain worse than another one, on held-out text."""
        samples = self.material.splits.holdout
        after = self.server.adapter
        new = losses(self.server, samples)
        self.server.adapter = before
        old = losses(self.server, samples)
        self.server.adapter = after
        return acceptance_test(old, new, [sample.domain for sample in samples]).keep

    def _fuse(self, rule: Rule) -> tuple[SparseDistribution, Choice, float]:
        """The round's teacher, who is trusted, and the seconds that choosing took."""
        k = self.material.config.knowledge.k
        own = extract(self.server.lm, self.data, k)
        fuser = KnowledgeFuser(self.aligner, own, view_contexts(self.server.lm, self.data))
        others = []
        for c in self.present:
            told = self.material.candidates[c]
            others.append(fuser.align_teacher(told.knowledge, told.tokenizer, told.context_loss))
        seconds, chosen = 0.0, None

        def watched(stats: StackedStats) -> ndarray:
            nonlocal seconds, chosen
            started = time.perf_counter()
            weights = rule(stats)
            seconds, chosen = time.perf_counter() - started, stats
            return weights

        fused_targets = fuser.fuse(others, watched, k)
        assert chosen is not None
        fit = rule.last if isinstance(rule, LearningRule) else None
        gate_loss = (round(fit.before, 4), round(fit.after, 4)) if fit else None
        return (
            fused_targets.teacher,
            self._choice(fused_targets.weights.copy(), chosen, gate_loss),
            seconds,
        )

    def _choice(
        self, shares: ndarray, stats: StackedStats, gate_loss: tuple[float, float] | None
    ) -> Choice:
        shares[:, 0] += 1 - shares.sum(1)  # no teacher is trust in oneself
        right = float(shares[np.arange(stats.samples), self.right_source()].mean())
        whole = np.zeros((len(shares), self.material.scenario.clients + 1))
        whole[:, 0], whole[:, self.present + 1] = shares[:, 0], shares[:, 1:]
        by_domain = {
            domain: [round(float(x), 4) for x in whole[self.public_domains == domain].mean(0)]
            for domain in self.material.splits.domains
        }
        return Choice(by_domain, round(right, 4), gate_loss)

    def _test(self) -> Float64[ndarray, " samples"]:
        nats = sample_nll(self.server.lm, self.test)
        return nats / self.test.label_bytes
