"""FedMKT's messages on the server: requests, replies, and the step in between.

Fan et al., "FedMKT: Federated Mutual Knowledge Transfer for Large and Small Language Models",
COLING 2025, arXiv 2406.02224. The algorithm is ``fedfuse.algorithms.fedmkt``, which says what
differs from the paper; every received S_k is verified (``fedfuse.knowledge.aligner``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy import ndarray

from fedfuse.algorithms.effort import Effort
from fedfuse.algorithms.fedmkt import KnowledgeSet, server_step
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.flower.questions import pack_questions, unpack_options
from fedfuse.fusion.disk_buffer import DiskBuffer
from fedfuse.fusion.rules import LearningRule, NamedRule, find_rule
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.knowledge.channel import KnowledgeChannel
from fedfuse.knowledge.record import Knowledge
from fedfuse.tracking.checkpoints import strip_prefix
from fedfuse.tracking.run import SERVER
from strategies.baselines import learn_labels_first
from strategies.knowledge_cache import DiskCache
from strategies.model import ModelStrategy, mean_loss, take_loss
from strategies.server_state import ServerState, log_progress


class FedMKT(ModelStrategy):
    """Clients teach the server, the server teaches the clients.

    Raises:
        FedfuseError: for a rule that learns and a ``knowledge.public-share`` below 1: it needs the
            same samples in every round.

    Attributes:
        server_rule: name of the rule by which the server trusts clients, unless the run config
            has one: DualMinCE (Algorithm 2).
        client_rule: the same of the clients.
        reads_contexts: whether ``weigh`` looks at what models make of the public contexts, whatever
            the rule does; clients are then asked.
    """

    server_rule = "dual-min-ce"
    client_rule = "dual-min-ce"
    reads_contexts = False

    def __init__(self, server: ServerState) -> None:
        super().__init__(server)
        own, self.clients_by = self.rules(self.config)
        share = self.config.knowledge.public_share
        if share < 1 and (learning := [r.name for r in (own, self.clients_by) if r.learns]):
            raise FedfuseError(
                f"knowledge.public-share = {share}: expected 1 with the rule {learning[0]!r}, "
                "which needs the same samples in every round"
            )
        self.rule = own.make(self.config.gate, derive_seed(self.config, SERVER, "selector"))
        self.reads_contexts = self.reads_contexts or own.reads_contexts
        self.cache = DiskCache(server.run.folder / SERVER / "knowledge")
        self.channel = KnowledgeChannel(self.config.knowledge, self.cache)
        self._knowledge: KnowledgeSet | None = None

    @classmethod
    def check_inputs(cls, config: RunConfig, clients: int) -> None:
        """Check the rules, devices, models and data of a run without loading a model."""
        cls.rules(config)
        super().check_inputs(config, clients)

    @classmethod
    def open(cls, config: RunConfig) -> ServerState:
        """The server's model and data, if there are rules to use them by."""
        cls.rules(config)
        return super().open(config)

    @classmethod
    def rules(cls, config: RunConfig) -> tuple[NamedRule, NamedRule]:
        """The server's and the clients' rule: the run config's, or else the strategy's.

        Raises:
            FedfuseError: for a rule that there is not.
        """
        server = find_rule(config.fusion.server_rule or cls.server_rule)
        return server, find_rule(config.fusion.client_rule or cls.client_rule)

    def registration_request(self) -> RecordDict:
        """The server's tokenizer, and the blind questions without their answers."""
        request = super().registration_request()
        if blind := self.server.blind:
            pack_questions(request, blind.asked)
        return request

    def label_rounds(self) -> int:
        """One more than there are rounds, where the server learns labels first."""
        return super().label_rounds() + self.config.labels_first

    def client_efforts(self) -> dict[str, Effort]:
        """What a round takes of a client: training on private data, and on the public set."""
        phase, public = self.config.client_distill, self.server.public
        distill = Effort.of(phase, private=phase.replay, public=True, queries=len(public))
        return {**super().client_efforts(), "distill": distill}

    def weigh(self, stats: StackedStats) -> ndarray:
        """How much to trust each client where, by the rule; override it for one of your own.

        Args:
            stats: about C candidates on N samples with T label rows; column 0 is the server, then
                one per client.

        Returns:
            ``[N, C]`` weights per sample or ``[T, C]`` per label row, not negative; a row of zeros
            learns from labels alone, weight in column 0 holds the server where it is.
        """
        return self.rule(stats)

    def receive(self, reply: Message) -> Knowledge:
        """Decode and verify a client's knowledge (step 3).

        Raises:
            FedfuseError: for knowledge that is malformed, about something else, or contradicts
                itself.
        """
        node, server = reply.metadata.src_node_id, self.server
        payload, tokenizer = messages.unpack_knowledge(reply.content), self.tokenizers[node]
        client, public = self.messenger.name(node), server.public.fingerprint
        return self.channel.decode(client, payload, tokenizer, server.aligner, public)

    def server_knowledge(self) -> Knowledge:
        """Knowledge that the server sends to the clients (step 7)."""
        known = self._knowledge
        return known.knowledge if known else self.server.knowledge()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 1 to 3: ask for training on private data and knowledge of the public set.

        A server that does not learn has no use for the latter.
        """
        if not self.server.local_model.learns:
            return super().configure_train(server_round, arrays, config, grid)
        requests = []
        for node, client in self.participants(server_round).items():
            asked = {
                **config,
                "reply": "knowledge",
                "cache-digest": self.cache.digest(client),
                "contexts": self.reads_contexts,
            }
            content = RecordDict({"config": ConfigRecord(asked)})
            requests.append(Message(content, node, messages.LOCAL))
        return requests

    def while_clients_train(self, server_round: int) -> None:
        """Before it hears clients for the first time, learn the public labels."""
        learns = self.server.local_model.learns
        if server_round == 1 and self.config.labels_first and learns:
            learn_labels_first(self.server)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 4 to 7: align, select, fuse, distil into the server's model.

        Each reply is aligned when it arrives, and waits in a file; of all of them together no more
        is in memory than what the rule reads.
        """
        server, phase = self.server, self.config.server_distill
        if not server.local_model.learns:
            return super().aggregate_train(server_round, replies)
        losses: dict[str, float] = {}

        def refuse(client: str, error: FedfuseError) -> None:
            del losses[client]
            self.messenger.refuse(server_round, messages.LOCAL, client, error)

        with DiskBuffer(server.run.folder) as buffer:
            distilled, self._knowledge = server_step(
                server.local_model,
                server.public,
                self._received(server_round, replies, losses),
                self.weigh,
                server.aligner,
                self.config.knowledge,
                phase,
                seed=derive_seed(self.config, SERVER, "distill"),
                state=server.training.get("distill"),
                reads_contexts=self.reads_contexts,
                blind=server.blind,
                acceptance_seed=derive_seed(self.config, SERVER, "promotion", server_round)
                if self.config.acceptance_test
                else None,
                store=buffer.put,
                refuse=refuse,
                on_step=log_progress(f"round {server_round}: distill", phase.steps),
            )
        server.record_step(server_round, distilled)
        if isinstance(self.rule, LearningRule) and (learned := self.rule.last):
            server.run.gate_loss(server_round, SERVER, learned.before, learned.after)
        adapter = messages.arrays_to_record(server.local_model.adapter)
        return adapter, mean_loss([losses[client] for client in sorted(losses)])

    def _received(
        self, server_round: int, replies: Iterable[Message], losses: dict[str, float]
    ) -> Iterator[tuple[str, KnowledgeSet]]:
        """Clients' knowledge as it arrives; their losses are put into ``losses``.

        Raises:
            FedfuseError: at the end, when too few clients sent usable knowledge.
        """

        def parse_reply(reply: Message) -> tuple[float, KnowledgeSet, str]:
            loss, knowledge, context_loss = take_loss(reply), self.receive(reply), None
            if self.reads_contexts:
                context_loss = messages.unpack_context_loss(reply.content, knowledge.num_samples)
            tokenizer = self.tokenizers[reply.metadata.src_node_id]
            options = None
            if blind := self.server.blind:
                options = unpack_options(reply.content, blind.asked)
            sent = KnowledgeSet(knowledge, tokenizer, context_loss, options)
            return loss, sent, messages.unpack_cache_digest(reply.content)

        parsed = self.parse_replies(server_round, replies, parse_reply)
        for client, (loss, sent, digest) in parsed:
            self.cache.client_digests[client], losses[client] = digest, loss
            yield client, sent
        least = self.least_replies()
        if len(losses) < least:
            raise FedfuseError(
                f"round {server_round}: expected usable knowledge of at least "
                f"{least} clients (min-clients), got {len(losses)}"
            )

    def configure_distill(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Step 8: send the server's knowledge to the clients."""
        digests, names = self.cache.client_digests, self.participants(server_round)
        cached = {client: digests.get(client, "") for client in names.values()}
        payloads = self.channel.encode(self.server_knowledge(), cached)
        self._knowledge = None
        contexts = self.server.view_contexts() if self.clients_by.reads_contexts else None
        requests = []
        for node, client in names.items():
            asked = {**config, "rule": self.clients_by.name}
            content = RecordDict({"config": ConfigRecord(asked)})
            if contexts:
                messages.pack_context_loss(content, contexts.loss)
            messages.pack_knowledge(content, payloads[client])
            requests.append(Message(content, node, messages.DISTILL))
        return self.learners(requests)

    def aggregate_distill(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """After steps 9 to 11: write down where the clients trusted the server."""

        def parse_reply(reply: Message) -> float:
            loss = take_loss(reply)
            client = self.messenger.name(reply.metadata.src_node_id)
            shares = {}
            for key, share in reply.content.metric_records["teacher-shares"].items():
                domain, _, teacher = key.rpartition("/")
                shares[domain, teacher] = float(share)  # type: ignore[arg-type]
            self.server.run.teacher_shares(server_round, "down", client, shares)
            if self.config.acceptance_test:
                keep, changes = messages.unpack_acceptance(reply.content)
                self.server.run.acceptance(server_round, client, keep=keep, changes=changes)
            if self.clients_by.learns:
                before, after = messages.unpack_gate_loss(reply.content)
                self.server.run.gate_loss(server_round, client, before, after)
            return loss

        return mean_loss(
            [loss for _, loss in self.parse_replies(server_round, replies, parse_reply)]
        )

    def state(self) -> dict[str, ndarray]:
        """What the rule has learned; with a delta threshold, the copies of sent knowledge."""
        learned = self.rule.state() if isinstance(self.rule, LearningRule) else {}
        copies = self.cache.state() if self.config.knowledge.delta_threshold else {}
        return copies | {f"rule/{name}": value for name, value in learned.items()}

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""
        if isinstance(self.rule, LearningRule):
            self.rule.load(strip_prefix(state, "rule/"))
        if self.config.knowledge.delta_threshold:
            self.cache.load(state)
