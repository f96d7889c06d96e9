"""What every strategy is given: the config, the server's own model, and the run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.distillation.encoded import EncodedSet
from fedfuse.distillation.settings import TrainingSettings
from fedfuse.distillation.state import TrainingState
from fedfuse.distillation.training import Teacher
from fedfuse.evaluation.scoring import SampleNats, Score
from fedfuse.flower.config import RunConfig, flatten
from fedfuse.flower.workspace import (
    derive_seed,
    load_participant,
    load_splits,
    new_translator,
    public_of_round,
)
from fedfuse.knowledge.prompts import PromptView
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.translate import Translator
from fedfuse.models.causal_lm import save_adapter
from fedfuse.models.participant import Participant
from fedfuse.report.writing import RunWriter

SERVER = "server"
log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0


@dataclass(slots=True)
class Session:
    """One run on the server.

    Attributes:
        config: the run config.
        participant: the server's model on the public and test sets.
        run: the run folder.
        public: the public samples that the current round is about.
        translator: from any client's knowledge of them into the server's terms.
        training: state of the server's training by phase.
        untouched: the loss of each test sample when it was first scored, nats.
    """

    config: RunConfig
    participant: Participant
    run: RunWriter
    public: EncodedSet
    translator: Translator
    training: dict[str, TrainingState] = field(default_factory=dict)
    untouched: SampleNats | None = None

    def begin(self, server_round: int) -> None:
        """Take up the public samples of a round."""
        public = public_of_round(self.config, self.participant, server_round)
        if public.fingerprint != self.public.fingerprint:
            self.public, self.translator = public, self.translator.on(public.samples)

    def knowledge(self) -> Knowledge:
        """What the server's model knows about the round's public samples."""
        return self.participant.knowledge(self.config.knowledge.k, self.public)

    def score(self) -> dict[str, Score]:
        """The server's model on the test set."""
        scores, nats = self.participant.measure(self.untouched)
        if self.untouched is None:
            self.untouched = nats
        return scores

    def learn(self, server_round: int, teacher: Teacher | None, label_share: float) -> float:
        """One phase on the public set (FedMKT Eq. 5); the next one goes on where it stops."""
        settings = self.config.server_distill.settings()
        return self.fit("distill", self.public, settings, server_round, teacher, label_share)

    def learn_on_trial(self, server_round: int, teacher: Teacher, label_share: float) -> None:
        """The same phase, taken back if it made a domain of the held-out set worse."""
        state = self.training.get("distill")
        _, verdict = self.participant.on_trial(
            lambda: self.learn(server_round, teacher, label_share),
            derive_seed(self.config, SERVER, "promotion", server_round),
        )
        if not verdict.keep:
            self.training.pop("distill")
            if state is not None:
                self.training["distill"] = state
            log.info(
                "round %d: rolled back, %s", server_round, "worse: " + ", ".join(verdict.worse)
            )
        changes = {domain: change.mean for domain, change in verdict.changes.items()}
        self.run.verdict(server_round, SERVER, keep=verdict.keep, changes=changes)

    def view_prompts(self) -> PromptView:
        """What the server's model makes of the round's public prompts."""
        return self.participant.view_prompts(self.public)

    def fit(
        self,
        phase: str,
        data: EncodedSet,
        settings: TrainingSettings,
        server_round: int,
        teacher: Teacher | None = None,
        label_share: float = 1.0,
    ) -> float:
        """Train the server's adapter; returns the final loss."""
        loss, self.training[phase] = self.participant.learn(
            data,
            settings,
            seed=derive_seed(self.config, SERVER, phase),
            teacher=teacher,
            label_share=label_share,
            state=self.training.get(phase),
            on_step=progress(f"round {server_round}: {phase}", settings.steps),
        )
        return loss

    def restart(self) -> None:
        """Back to the untrained adapter, and to the whole public set."""
        self.public = self.participant.public
        self.participant.reset()
        self.training.clear()

    def checkpoint(self, server_round: int, strategy: Mapping[str, ndarray]) -> None:
        """Save the server's adapter, the state of its training and of the strategy; whole or not
        at all.
        """
        folder = self.run.folder / SERVER
        save_adapter(self.participant.model, folder / "adapter")
        flat = {
            f"{phase}|{k}": v for phase, state in self.training.items() for k, v in state.items()
        }
        flat |= {f"strategy|{name}": value for name, value in strategy.items()}
        scratch = folder / ".training.npz.new"
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, round=np.array(server_round), **flat)
        scratch.replace(folder / "training.npz")


def progress(what: str, steps: int) -> Callable[[int, float], None]:
    """For ``on_step``: a line in the log where a phase takes long, every few seconds."""
    told = time.monotonic()

    def tell(step: int, loss: float) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s, step %d of %d, loss %.4f nats/row", what, step, steps, loss)

    return tell


def open_session(config: RunConfig) -> Session:
    """Load data and model, then make the run folder: bad input leaves none behind."""
    splits = load_splits(config.data, config.seed, 1)
    participant = load_participant(
        SERVER, config.server.model, config.server, config.data, config.seed
    )
    participant.reset()
    translator = new_translator(participant, config.knowledge)
    run = RunWriter(Path(config.output), config.name, flatten(config))
    floor = splits.floor
    run.describe(
        domains=splits.domains,
        models={SERVER: config.server.model},
        names={SERVER: SERVER},
        floor={"loss": floor.loss, "accuracy": floor.accuracy} if floor else None,
    )
    return Session(config, participant, run, participant.public, translator)


def all_private(config: RunConfig) -> Sequence[Sample]:
    """Every client's private samples: only a simulation, for the centralized baseline, may ask."""
    return load_splits(config.data, config.seed, 1).private[0]
