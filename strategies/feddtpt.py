"""FedDTPT: clients search a prompt for a black-box language model, and the server makes one of all.

Wu et al., "FedDTPT: Federated Discrete and Transferable Prompt Tuning for Black-Box Large Language
Models", arXiv 2411.00985. Algorithm 1 is ``fedfuse.feddtpt.search``, the clients'; Algorithm 2 is
``fedfuse.feddtpt.aggregation``.

Differs from the paper: see ``fedfuse.feddtpt.aggregation`` and ``fedfuse.feddtpt.selection``; the
paper's way is ``feddtpt.aggregation.method = "paper"`` with ``feddtpt.candidates = "none"``. The
server alone asks about the test set, so that no question is paid for twice; clients measure prompts
on their private examples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy import ndarray

from fedfuse.config.run_config import RunConfig
from fedfuse.factory.feddtpt import (
    centralized_tuner,
    check_prompt_inputs,
    load_backend,
    load_masked_lm,
    load_task,
    prompt_models,
)
from fedfuse.feddtpt.centralized import search_centrally
from fedfuse.feddtpt.label_datasets import ExampleSplits
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.scorer import PromptScorer
from fedfuse.feddtpt.selection import AggregationResult, select_prompt
from fedfuse.files import atomic_write
from fedfuse.flower import messages
from fedfuse.flower.feddtpt_messages import pack_prompt, unpack_registration, unpack_tuned
from fedfuse.tracking.checkpoints import Checkpoint, as_array, as_texts
from fedfuse.tracking.feddtpt_records import PromptLine, aggregation_line
from fedfuse.tracking.run import SERVER
from fedfuse.tracking.run_writer import RunWriter
from strategies.base import FEDERATED, ZERO_SHOT, BaseStrategy
from strategies.client_registry import ClientInfo
from strategies.messenger import require
from strategies.server_state import checkpoints, open_run, restore_latest

log = logging.getLogger(__name__)

VALIDATION, TEST, CENTRALIZED = "validation", "test", "centralized"


@dataclass(slots=True)
class FedDTPTState:
    """One run on the server, which has no language model of its own.

    Attributes:
        config: run config.
        run: run folder.
        splits: public, validation and test examples; the server does not use private ones.
        scorer: task, masked language model and black box, to score prompts.
        start: prompt that the first round begins with.
    """

    config: RunConfig
    run: RunWriter
    splits: ExampleSplits
    scorer: PromptScorer
    start: Prompt

    def checkpoint(
        self, server_round: int, strategy: Mapping[str, ndarray], result: Mapping[str, Any]
    ) -> None:
        """Save the state after a round, and the global prompt as text in ``server/prompt.json``.

        Raises:
            FedfuseError: when it cannot be written; the checkpoint before stays.
        """
        tokens = tuple(strategy["prompt"].tolist())
        text = self.scorer.lm.text(Prompt(tokens))
        with atomic_write(self.scorer.folder / "prompt.json") as scratch:
            whole = {"round": server_round, "text": text, "tokens": tokens}
            scratch.write_text(json.dumps(whole) + "\n")
        arrays = {f"strategy|{name}": value for name, value in strategy.items()}
        facts = {"sizes": self.run.sizes(), "result": result}
        checkpoints(self.run).save(Checkpoint(server_round, arrays, facts))

    def resume(self) -> Checkpoint | None:
        """Go back to the last whole round of the run that the config names, if it names one."""
        return restore_latest(self.config, self.run)


class FedDTPT(BaseStrategy):
    """The global prompt goes down; each client's best one, with measured gains, comes up.

    Attributes:
        prompt: global prompt.
        tuned: prompts of the round's clients, by client name.
        paid: number of queries of the clients' searches so far.
    """

    client = "feddtpt"
    server: FedDTPTState

    def __init__(self, server: FedDTPTState) -> None:
        super().__init__(server)
        self.prompt = server.start
        self.tuned: dict[str, TunedPrompt] = {}
        self.paid = 0
        self._test = 0.0

    @classmethod
    def models(cls, config: RunConfig, clients: int) -> list[str]:
        """The masked language model, and the black box unless it is a service."""
        return prompt_models(config)

    @classmethod
    def check_inputs(cls, config: RunConfig, clients: int) -> None:
        """Check devices, models and examples of a run without loading a model."""
        check_prompt_inputs(config, clients)

    @staticmethod
    def open(config: RunConfig) -> FedDTPTState:
        """Load data and models, then make the run folder: bad input leaves none behind."""
        settings, device = config.feddtpt, config.server.device
        task, splits = load_task(settings, config.data.template, config.seed, 1)
        lm = load_masked_lm(settings.masked_lm, device)
        start = lm.encode(settings.start)
        backend = load_backend(config.black_box, device)
        run = open_run(config, domains=[task.name], models={SERVER: config.black_box.model})
        folder = run.folder / SERVER
        folder.mkdir(exist_ok=True)
        return FedDTPTState(config, run, splits, PromptScorer(folder, task, lm, backend), start)

    def select(self, tuned: dict[str, TunedPrompt]) -> AggregationResult:
        """Select the next global prompt out of the clients' and the present one.

        Override this for a rule of your own.
        """
        server, settings = self.server, self.config.feddtpt

        def score(prompt: Prompt) -> float:
            return server.scorer.accuracy(prompt, server.splits.validation, VALIDATION)

        return select_prompt(
            tuned,
            server.scorer.lm,
            self.prompt,
            settings.aggregation,
            settings.candidates,
            score,
            self.config.seed,
        )

    def summary(self) -> None:
        """Log what will run, and what it may cost."""
        super().summary()
        settings = self.config.feddtpt
        log.info(
            "a client pays for %d queries a round at most; the server asks about %d validation "
            "examples a candidate and %d test examples a prompt",
            settings.search.queries,
            0 if settings.candidates == "none" else settings.examples.validation,
            settings.examples.test,
        )

    def initial(self) -> ArrayRecord:
        """The global prompt."""
        return messages.arrays_to_record(self._prompt())

    def registration_request(self) -> RecordDict:
        """The global prompt."""
        return self._content()

    def parse_registration(self, reply: Message) -> ClientInfo:
        """Parse a client's partition and black box; its vocabulary must be the server's."""
        client, model = unpack_registration(
            reply.content, self.server.scorer.lm.tokenizer.fingerprint
        )
        return ClientInfo(client, model, f"client {client}")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's clients to search from the global prompt."""
        content = self._content(config)
        return [Message(content, node, messages.LOCAL) for node in self.participants(server_round)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the clients' prompts, aggregate them, select the next global one."""
        settings, given, lm = self.config.feddtpt, self.prompt, self.server.scorer.lm

        def parse_reply(reply: Message) -> TunedPrompt:
            return self._parse_tuned(reply, given, settings.search.queries)

        found = dict(self.parse_replies(server_round, replies, parse_reply))
        require(len(found), self.least_replies(), messages.LOCAL)
        # By name: which of equals is the first does not depend on which was quicker.
        found = dict(sorted(found.items()))
        self.tuned = found
        self.paid += sum(tuned.queries for tuned in found.values())
        selected = self.select(found)
        self.prompt = selected.prompt
        self.server.run.write(aggregation_line(server_round, selected, lm.word))
        log.info("round %d: %s: %s", server_round, selected.name, lm.text(self.prompt))
        accuracy = mean(tuned.accuracy for tuned in found.values())
        return self.initial(), MetricRecord({"accuracy": accuracy})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask those who search next, which begins with the same questions, for accuracies on
        private examples.
        """
        content, nodes = self._content(config), self.participants(server_round + 1)
        return [Message(content, node, messages.EVALUATE) for node in nodes]

    def evaluate_server(self, server_round: int) -> MetricRecord:
        """Score the global prompt on the test set."""
        self._test = self._test_accuracy(self.prompt)
        log.info("round %d: accuracy %.3f", server_round, self._test)
        return MetricRecord({"accuracy": self._test})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Write prompts and accuracies down; at the end, of clients' own on the test set too."""
        last = server_round == self.config.rounds

        def parse_reply(reply: Message) -> tuple[float, float | None]:
            content = reply.content
            own = "own" in content.metric_records["metrics"]
            return (
                messages.unpack_number(content, "global", 0, 1),
                messages.unpack_number(content, "own", 0, 1) if own else None,
            )

        private = dict(sorted(self.parse_replies(server_round, replies, parse_reply)))
        average = mean(shared for shared, _ in private.values()) if private else None
        stage = FEDERATED if server_round else ZERO_SHOT
        paid = self.paid + self.server.scorer.paid(VALIDATION)
        numbers = paid, self._test, average
        self._write_prompt(stage, server_round, SERVER, self.prompt, *numbers)
        for client, tuned in sorted(self.tuned.items()):
            test = self._test_accuracy(tuned.prompt) if last else None
            own = private.get(client, (0.0, None))[1]
            self._write_prompt(stage, server_round, client, tuned.prompt, tuned.queries, test, own)
        if last and (cut := sum(map(self.server.scorer.cut, (VALIDATION, TEST)))):
            limit = self.config.black_box.max_tokens
            what = f"{cut} answers ended at black-box.max-tokens = {limit}"
            self.server.run.event(server_round, "cut-answers", SERVER, what)
        return None if average is None else MetricRecord({"accuracy": average})

    def measure_baselines(self, last: int) -> None:
        """Measure local search alone, and one search with everybody's data."""
        log.info("baselines: standalone, centralized")
        config = ConfigRecord({})
        messages.pack_context(config, self.request_context(last))
        content = self._content(config, self.server.start)
        requests = [Message(content, node, messages.BASELINE) for node in self.messenger.names]
        replies = self.messenger.send_and_receive(self.config.rounds, requests)
        queries = self.config.rounds * self.config.feddtpt.search.queries

        def parse_reply(reply: Message) -> TunedPrompt:
            return self._parse_tuned(reply, self.server.start, queries)

        found = dict(sorted(self.parse_replies(last, replies, parse_reply)))
        measured = [
            *(("standalone", name, found[name].prompt, found[name].queries) for name in found),
            ("centralized", SERVER, *self._search_centrally(len(requests))),
        ]
        for stage, model, prompt, paid in measured:
            numbers = paid, self._test_accuracy(prompt)
            self._write_prompt(stage, self.config.rounds, model, prompt, *numbers)

    def _search_centrally(self, clients: int) -> tuple[Prompt, int]:
        """One search with everybody's examples for what all searches together were paid."""
        rounds, scorer, splits = self.config.rounds, self.server.scorer, self.server.splits
        tuner = centralized_tuner(self.config, scorer, clients, self.paid // rounds)

        def score(prompt: Prompt) -> float:
            return scorer.accuracy(prompt, splits.validation, CENTRALIZED)

        prompt, paid = search_centrally(tuner, self.server.start, rounds, score)
        return prompt, paid + scorer.paid(CENTRALIZED)

    def state(self) -> dict[str, ndarray]:
        """The global prompt, the round's tuned prompts, and the queries of all searches."""
        tuned = {client: json.dumps(asdict(sent)) for client, sent in self.tuned.items()}
        return {**self._prompt(), "tuned": as_array(tuned), "paid": np.array(self.paid)}

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""
        self.prompt, self.paid = Prompt(tuple(state["prompt"].tolist())), int(state["paid"])
        for client, text in as_texts(state["tuned"]).items():
            sent = json.loads(text)
            self.tuned[client] = TunedPrompt(
                Prompt(tuple(sent["prompt"]["tokens"])),
                tuple(sent["gain"]),
                sent["accuracy"],
                sent["queries"],
            )

    def _test_accuracy(self, prompt: Prompt) -> float:
        return self.server.scorer.accuracy(prompt, self.server.splits.test, TEST)

    def _write_prompt(
        self, stage: str, server_round: int, model: str, prompt: Prompt, *numbers: Any
    ) -> None:
        """Write a line of prompts.jsonl; the numbers are queries and accuracies."""
        words = self.server.scorer.lm.words(prompt)
        self.server.run.write(PromptLine(stage, server_round, model, words, *numbers))

    def _parse_tuned(self, reply: Message, given: Prompt, queries: int) -> TunedPrompt:
        """Parse a client's prompt, made of the given one for at most so many queries."""
        lm, length = self.server.scorer.lm, self.config.feddtpt.search.max_length
        fits = partial(lm.may_become, given)
        return unpack_tuned(reply.content, fits, max(length, len(given.tokens)), queries)

    def _prompt(self) -> dict[str, ndarray]:
        return {"prompt": np.array(self.prompt.tokens, dtype=np.int64)}

    def _content(
        self, config: ConfigRecord | None = None, prompt: Prompt | None = None
    ) -> RecordDict:
        """A request with a prompt, by default the global one."""
        content = RecordDict({"config": config or ConfigRecord()})
        pack_prompt(content, prompt or self.prompt)
        return content
