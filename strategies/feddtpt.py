"""FedDTPT: clients search a prompt for a black-box language model, and the server makes one of all.

Wu et al., "FedDTPT: Federated Discrete and Transferable Prompt Tuning for Black-Box Large Language
Models", arXiv 2411.00985. Algorithm 1 is the clients', Algorithm 2 ``fedfuse.feddtpt.aggregation``.

Differs from the paper: see ``fedfuse.feddtpt.aggregation`` and ``fedfuse.feddtpt.next_prompt``
(what becomes of the clients' prompts); the paper's way is ``prompts.aggregation = "paper"`` with
``prompts.choice = "none"``. The test set is asked about by the server alone, so that no question is
paid for twice; clients say how prompts do on their private examples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from statistics import mean

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy import ndarray

from fedfuse.config.run_config import RunConfig
from fedfuse.factory.feddtpt import check_prompt_inputs, prompt_models
from fedfuse.feddtpt.next_prompt import AggregationResult, next_prompt
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.flower import messages
from fedfuse.flower.feddtpt_messages import pack_prompt, unpack_registration
from fedfuse.report.prompt_origin import aggregation_line
from fedfuse.tracking.checkpoints import as_array, as_texts
from fedfuse.tracking.feddtpt_records import PromptLine
from strategies.base import FEDERATED, ZERO_SHOT, BaseStrategy
from strategies.client_registry import ClientInfo
from strategies.feddtpt_baselines import centralized, standalone
from strategies.feddtpt_state import TEST, VALIDATION, FedDTPTState, open_feddtpt_state
from strategies.messenger import require
from strategies.server_state import SERVER

log = logging.getLogger(__name__)


class FedDTPT(BaseStrategy):
    """The global prompt goes down; each client's best one, with measured gains, comes up.

    Attributes:
        prompt: the global one.
        tuned: what the clients of the round sent, by name.
        paid: queries of the clients' searches so far.
    """

    session: FedDTPTState

    def __init__(self, session: FedDTPTState) -> None:
        super().__init__(session)
        self.prompt = session.start
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
        """Examples, masked language model and black box."""
        return open_feddtpt_state(config)

    def select(self, tuned: dict[str, TunedPrompt]) -> AggregationResult:
        """The next global prompt, out of the clients' and the present one.

        Override this for a rule of your own.
        """
        session, rules = self.session, self.config.prompts

        def score(prompt: Prompt) -> float:
            return session.accuracy(prompt, session.splits.validation, VALIDATION)

        return next_prompt(
            tuned,
            session.lm,
            self.prompt,
            rules.aggregation_settings(self.config.seed),
            rules.choice,
            score,
        )

    def turn(self, server_round: int) -> list[int]:
        """The nodes that search in a round."""
        nodes = list(self.messenger.names)
        size = self.config.prompts.clients_per_round or len(nodes)
        first = (server_round - 1) * size
        return list(dict.fromkeys(nodes[(first + n) % len(nodes)] for n in range(size)))

    def summary(self) -> None:
        """Log what will run, and what it may cost."""
        super().summary()
        rules = self.config.prompts
        log.info(
            "a client pays for %d queries a round at most; the server asks about %d validation "
            "examples a candidate and %d test examples a prompt",
            *(rules.queries, 0 if rules.choice == "none" else rules.validation, rules.test),
        )

    def initial(self) -> ArrayRecord:
        """The global prompt."""
        return messages.arrays_to_record(self._prompt())

    def registration_request(self) -> RecordDict:
        """The global prompt."""
        return self._content()

    def parse_registration(self, reply: Message) -> ClientInfo:
        """A client's partition and black box; its vocabulary must be the server's."""
        client, model = unpack_registration(reply.content, self.session.lm.tokenizer.fingerprint)
        return ClientInfo(client, model, f"client {client}")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's clients to search from the global prompt."""
        content = self._content(config)
        return [Message(content, node, messages.LOCAL) for node in self.turn(server_round)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check what clients found, aggregate it, choose."""
        rules, given = self.config.prompts, self.prompt

        def read(reply: Message) -> TunedPrompt:
            return self.session.take(reply, given, rules.queries)

        found = dict(self.parse_replies(server_round, replies, read))
        asked = rules.clients_per_round or len(self.messenger.names)
        require(len(found), min(self.config.min_clients, asked), messages.LOCAL)
        # By name: who is the first of equals is not a matter of who was quicker.
        found = dict(sorted(found.items()))
        self.tuned = found
        self.paid += sum(tuned.queries for tuned in found.values())
        succession = self.select(found)
        self.prompt = succession.choice.prompt
        self.session.run.aggregation(aggregation_line(server_round, succession, self.session.word))
        log.info(
            "round %d: %s: %s",
            *(server_round, succession.choice.name, self.session.lm.text(self.prompt)),
        )
        accuracy = mean(tuned.accuracy for tuned in found.values())
        return self.initial(), MetricRecord({"accuracy": accuracy})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask how the global prompt, and their own, do on private examples: those who search next,
        which begins with the same questions.
        """
        content = self._content(config)
        return [Message(content, node, messages.EVALUATE) for node in self.turn(server_round + 1)]

    def evaluate_server(self, server_round: int) -> MetricRecord:
        """The global prompt on the test set."""
        self._test = self.session.accuracy(self.prompt, self.session.splits.test, TEST)
        log.info("round %d: accuracy %.3f", server_round, self._test)
        return MetricRecord({"accuracy": self._test})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Write prompts and accuracies down; at the end, of clients' own on the test set too."""
        session, last = self.session, server_round == self.config.rounds

        def read(reply: Message) -> tuple[float, float | None]:
            content = reply.content
            own = "own" in content.metric_records["metrics"]
            return (
                messages.unpack_number(content, "global", 0, 1),
                messages.unpack_number(content, "own", 0, 1) if own else None,
            )

        heard = dict(sorted(self.parse_replies(server_round, replies, read)))
        together = mean(shared for shared, _ in heard.values()) if heard else None
        stage = FEDERATED if server_round else ZERO_SHOT
        paid = self.paid + session.paid(VALIDATION)
        session.run.prompt(
            PromptLine(
                *(stage, server_round, SERVER, session.words(self.prompt), paid),
                *(self._test, together),
            )
        )
        for client, tuned in sorted(self.tuned.items()):
            test = session.accuracy(tuned.prompt, session.splits.test, TEST) if last else None
            own = heard.get(client, (0.0, None))[1]
            words = session.words(tuned.prompt)
            session.run.prompt(
                PromptLine(stage, server_round, client, words, tuned.queries, test, own)
            )
        return None if together is None else MetricRecord({"accuracy": together})

    def measure_baselines(self, turn: int) -> None:
        """Local search only, and one searcher with everybody's data."""
        log.info("baselines: standalone, centralized")
        config = ConfigRecord({})
        messages.pack_context(config, self.request_context(turn))
        content = self._content(config, self.session.start)
        requests = [Message(content, node, messages.BASELINE) for node in self.messenger.names]
        replies = self.messenger.send_and_receive(self.config.rounds, requests)
        most = self.config.rounds * self.config.prompts.queries

        def read(reply: Message) -> TunedPrompt:
            return self.session.take(reply, self.session.start, most)

        standalone(self.session, dict(self.parse_replies(turn, replies, read)))
        centralized(self.session, len(self.messenger.names), self.paid)

    def state(self) -> dict[str, ndarray]:
        """The global prompt, what the round's clients sent, and what all searches cost."""
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

    def _prompt(self) -> dict[str, ndarray]:
        return {"prompt": np.array(self.prompt.tokens, dtype=np.int64)}

    def _content(
        self, config: ConfigRecord | None = None, prompt: Prompt | None = None
    ) -> RecordDict:
        """A request with a prompt, by default the global one."""
        content = RecordDict({"config": config or ConfigRecord()})
        pack_prompt(content, prompt or self.prompt)
        return content
