"""The server's side of a run: its config, model and run folder; checkpoints and resuming."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy import ndarray

from fedfuse.algorithms.effort import Effort
from fedfuse.algorithms.fedmkt import Distilled
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, derive_seed, flatten
from fedfuse.data.blind import BlindSamples, blind_questions
from fedfuse.data.sample import Sample, whole_fingerprint
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import MAX_TOKENS
from fedfuse.errors import FedfuseError, check
from fedfuse.evaluation.losses import SampleNLL
from fedfuse.evaluation.scoring import Score
from fedfuse.factory.data import load_splits, public_subset, shared_samples
from fedfuse.factory.models import load_local_model, new_aligner
from fedfuse.fusion.teacher_shares import teacher_shares
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.contexts import ContextView
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tracking.checkpoints import Checkpoint, Checkpoints, strip_prefix
from fedfuse.tracking.run import SERVER
from fedfuse.tracking.run_writer import RunWriter

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
# What a resumed run may do otherwise than the one that it goes on with.
RESUMABLE_KEYS = (
    "name",
    "preset",  # what it stands for is in the other keys
    "output",
    "resume",
    "timeout",
    "min-clients",
    "log-format",
    "metrics-port",
)


@dataclass(slots=True)
class ServerState:
    """One run on the server.

    Attributes:
        config: run config.
        local_model: the server's model with the public and test sets.
        run: run folder.
        public: public samples of the current round.
        aligner: aligns clients' knowledge of them to the server's tokens.
        blind: samples by which the server judges clients; None with open evidence.
        training: training states by phase.
        initial_nll: loss of each test sample when it was first scored, nats.
    """

    config: RunConfig
    local_model: LocalModel
    run: RunWriter
    public: TokenizedDataset
    aligner: KnowledgeAligner
    blind: BlindSamples | None = None
    training: dict[str, TrainingState] = field(default_factory=dict)
    initial_nll: SampleNLL | None = None
    _parts: dict[tuple[str, str], int] = field(default_factory=dict)

    def select_public_samples(self, server_round: int) -> None:
        """Select the public samples of a round."""
        public = public_subset(self.config, self.local_model, server_round)
        if public.fingerprint != self.public.fingerprint:
            self.public, self.aligner = public, self.aligner.for_samples(public.samples)

    def knowledge(self) -> Knowledge:
        """Knowledge of the server's model about the round's public samples."""
        return self.local_model.knowledge(self.config.knowledge.k, self.public)

    def score(self) -> dict[str, Score]:
        """Score the server's model on the test set."""
        scores, nats = self.local_model.evaluate(self.initial_nll)
        if self.initial_nll is None:
            self.initial_nll = nats
        return scores

    def record_step(self, server_round: int, distilled: Distilled) -> None:
        """Keep the training state of a ``server_step`` and write its result into the run."""
        if distilled.state is not None:
            self._keep_training("distill", distilled.state, server_round)
        queries = len(self.public) * len(distilled.teachers)
        effort = Effort.of(self.config.server_distill, public=True, queries=queries)
        self.run.training("federated", server_round, SERVER, "distill", effort)
        shares = teacher_shares(self.public.samples, distilled.weights, distilled.teachers)
        self.run.teacher_shares(server_round, "up", SERVER, shares)
        if (result := distilled.acceptance) is None:
            return
        if not result.keep:
            log.info("round %d: rolled back, %s", server_round, "worse: " + ", ".join(result.worse))
        changes = {domain: change.mean for domain, change in result.changes.items()}
        self.run.acceptance(server_round, SERVER, keep=result.keep, changes=changes)

    def _keep_training(self, phase: str, state: TrainingState, server_round: int) -> None:
        self.training[phase] = state
        if MAX_TOKENS in state:
            self.record_memory(server_round, SERVER, phase, int(state[MAX_TOKENS]))

    def view_contexts(self) -> ContextView:
        """Context losses and hidden states of the server's model on the public samples."""
        return self.local_model.view_contexts(self.public)

    def record_memory(self, server_round: int, model: str, phase: str, tokens: int) -> None:
        """Write an event, once, for a model that trains in smaller parts since memory ran out."""
        if self._parts.get((model, phase)) != tokens:
            self._parts[model, phase] = tokens
            detail = f"{phase}: out of memory; {tokens} tokens at once from now on"
            self.run.event(server_round, "out-of-memory", model, detail)

    def restart(self) -> None:
        """Reset to the untrained adapter and the whole public set."""
        self.public = self.local_model.public
        self.local_model.reset()
        self.training.clear()

    def checkpoint(
        self, server_round: int, strategy: Mapping[str, ndarray], result: Mapping[str, Any]
    ) -> None:
        """Save all that is needed to go on after a round.

        Args:
            server_round: the round that is over.
            strategy: state of the strategy.
            result: metrics so far, JSON-serialisable.

        Raises:
            FedfuseError: when it cannot be written; the checkpoint before stays.
        """
        self.local_model.save_adapter(self.run.folder / SERVER / "adapter")
        arrays = {f"adapter|{name}": value for name, value in self.local_model.adapter.items()}
        for phase, state in self.training.items():
            arrays |= {f"training|{phase}|{name}": value for name, value in state.items()}
        arrays |= {f"strategy|{name}": value for name, value in strategy.items()}
        if self.initial_nll is not None:
            arrays["initial-nll"] = self.initial_nll
        facts = {"sizes": self.run.sizes(), "result": result}
        checkpoints(self.run).save(Checkpoint(server_round, arrays, facts))

    def resume(self) -> Checkpoint | None:
        """Go back to the last whole round of the run that the config names, if it names one.

        Returns:
            the checkpoint; None where the run begins.
        """
        found = restore_latest(self.config, self.run)
        if found is None:
            return None
        self.local_model.adapter = strip_prefix(found.arrays, "adapter|")
        phases = {name.split("|")[1] for name in found.arrays if name.startswith("training|")}
        self.training = {p: strip_prefix(found.arrays, f"training|{p}|") for p in sorted(phases)}
        self.initial_nll = found.arrays.get("initial-nll")
        return found


def log_progress(phase: str, steps: int) -> Callable[[int, float], None]:
    """Make an ``on_step`` that logs a line every few seconds of a long phase."""
    last = time.monotonic()

    def log_step(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            log.info("%s, step %d of %d, loss %.4f nats/row", phase, step, steps, loss)

    return log_step


def open_server_state(config: RunConfig) -> ServerState:
    """Load data and model, then make the run folder, so that bad input leaves none behind."""
    splits = load_splits(config.data, config.seed, 1)
    local_model = load_local_model(
        SERVER,
        config.server.model,
        config.server,
        shared_samples(config.data, config.seed),
        config.data.max_length,
        config.seed,
    )
    local_model.reset()
    local_model.holdout = local_model.encode(splits.holdout) if splits.holdout else None
    aligner = new_aligner(local_model, config.knowledge)
    blind = None
    if config.fusion.evidence == "blind" and local_model.learns:
        blind = blind_questions(splits.blind, derive_seed(config, "blind"))
        expected = "different answers, to choose between, or fusion.evidence = 'open'"
        check("blind samples", f"{len(splits.blind)} samples", expected, blind)
    floor = splits.floor
    log.info("server: %s", local_model.cover or "a teacher that does not learn")
    run = open_run(
        config,
        domains=splits.domains,
        models={SERVER: config.server.model},
        adapters={SERVER: local_model.cover},
        floor={"loss": floor.loss, "accuracy": floor.accuracy} if floor else None,
    )
    run.same_content(
        public_samples=whole_fingerprint(splits.public),
        test_samples=whole_fingerprint(splits.test),
        questions=whole_fingerprint(splits.questions),
        held_out_samples=whole_fingerprint(splits.holdout),
        blind_samples=whole_fingerprint(splits.blind),
        server_tokenizer=local_model.tokenizer.fingerprint,
        server_model=local_model.fingerprint,
    )
    return ServerState(config, local_model, run, local_model.public, aligner, blind)


def open_run(config: RunConfig, **facts: Any) -> RunWriter:
    """Open the run that the config resumes, or make a new one.

    Args:
        config: run config.
        facts: further entries of a new run's config.json.

    Raises:
        FedfuseError: for a run that cannot go on, or was begun with another config.
    """
    if config.resume:
        run = RunWriter.reopen(Path(config.resume))
        check_same(config, run.config)
        return run
    run = RunWriter(Path(config.output), config.name, flatten(config))
    run.describe(names={SERVER: SERVER}, **facts)
    return run


def checkpoints(run: RunWriter) -> Checkpoints:
    """The server's checkpoints of a run."""
    return Checkpoints(run.folder / SERVER / "checkpoints")


def restore_latest(config: RunConfig, run: RunWriter) -> Checkpoint | None:
    """Cut a run folder back to its last whole round, if the config resumes it.

    Returns:
        the checkpoint; None where the run begins.
    """
    if not config.resume:
        return None
    kept = checkpoints(run)
    found = kept.latest()
    done = found.round if found else -1
    run.cut(found.facts["sizes"] if found else {})
    for left in run.folder.glob("candidates-*"):
        shutil.rmtree(left)
    run.describe(status="running")
    for error in kept.damaged:
        run.event(max(done, 0), "damaged", SERVER, error)
    what = f"after round {done}" if found else "from the beginning"
    run.event(max(done, 0), "resumed", SERVER, what)
    log.info("resumed %s", what)
    kept.delete_after(done)
    return found


def check_same(config: RunConfig, before: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under another config.

    Raises:
        FedfuseError: naming every key that differs.
    """
    now, was = flatten(config), flatten(RunConfig()) | dict(before)
    other = [
        f"{key}: expected {was[key]!r}, got {now[key]!r}"
        for key in now
        if key not in RESUMABLE_KEYS and now[key] != was[key]
    ]
    if other:
        raise FedfuseError(
            f"{config.resume} was begun with another config:\n  " + "\n  ".join(other)
        )


def all_private(config: RunConfig) -> Sequence[Sample]:
    """Every client's private samples, for the centralized baseline of a simulation."""
    return load_splits(config.data, config.seed, 1).private[0]
