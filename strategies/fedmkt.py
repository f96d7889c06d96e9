"""FedMKT: mutual knowledge transfer between the server's model and the clients'.

Fan et al., "FedMKT: Federated Mutual Knowledge Transfer for Large and Small Language Models",
COLING 2025, arXiv 2406.02224. Algorithm 1; the step numbers below are its own.

Differs from the paper: see ``fedfuse.distillation.loss`` (tail),
``fedfuse.alignment.projection`` (collisions, unmatched rows), ``fedfuse.knowledge.aligner``
(claims are verified), ``fedfuse.knowledge.top_p`` (adaptive k) and ``ClientDistillConfig.replay``;
the paper's rules can be chosen in the run config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy import ndarray

from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.fusion.disk_buffer import DiskBuffer
from fedfuse.fusion.fuser import AlignedTeacher, FusedTargets, KnowledgeFuser
from fedfuse.fusion.rules import LearningRule, NamedRule, find_rule
from fedfuse.fusion.teacher_shares import teacher_shares
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.knowledge.payload import decode, encode_delta, encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import from_arrays, to_arrays
from fedfuse.tracking.checkpoints import as_array, as_texts, strip_prefix
from strategies.knowledge_cache import Held
from strategies.model import ModelStrategy, mean_loss, take_loss
from strategies.server_state import SERVER, ServerState


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

    def __init__(self, session: ServerState) -> None:
        super().__init__(session)
        server, self.clients_by = self.rules(self.config)
        share = self.config.knowledge.public_share
        if share < 1 and (learning := [r.name for r in (server, self.clients_by) if r.learns]):
            raise FedfuseError(
                f"knowledge.public-share = {share}: expected 1 with the rule {learning[0]!r}, "
                "which needs the same samples in every round"
            )
        self.rule = server.make(self.config.gate, derive_seed(self.config, SERVER, "selector"))
        self.reads_contexts = self.reads_contexts or server.reads_contexts
        self.held = Held(session.run.folder / SERVER / "held")
        # With a delta threshold: what clients were last told, and the digest of what each has.
        self.told: Knowledge | None = None
        self.heard: dict[str, str] = {}

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
        """A client's knowledge, verified (step 3).

        Raises:
            FedfuseError: for knowledge that is malformed, about something else, or contradicts
            itself.
        """
        node = reply.metadata.src_node_id
        client, tokenizer = self.messenger.name(node), self.tokenizers[node]
        session, rules = self.session, self.config.knowledge
        rows = len(session.aligner.pair(tokenizer).rows.token)
        payload = messages.unpack_knowledge(reply.content)
        knowledge = decode(payload, self.held.get(client), num_rows=rows, k=rules.k)
        session.aligner.verify(knowledge, tokenizer, session.public.fingerprint)
        if rules.delta_threshold:
            self.held.put(client, knowledge)
        return knowledge

    def server_knowledge(self) -> Knowledge:
        """What the server tells the clients (step 7)."""
        return self.session.knowledge()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 1 to 3: train on private data, send knowledge of the public set."""
        requests = []
        for node, client in self.messenger.names.items():
            asked = {
                **config,
                "reply": "knowledge",
                "held": self.held.digest(client),
                "prompts": self.reads_contexts,
            }
            content = RecordDict({"config": ConfigRecord(asked)})
            requests.append(Message(content, node, messages.LOCAL))
        return requests

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 4 to 6: align, select, fuse, distil into the server's model.

        Each reply is translated when it arrives, and waits in a file; of all of them together no
        more is in memory than what selection looks at.
        """
        k, aligner = self.config.knowledge.k, self.session.aligner
        # The clients train meanwhile.
        prompts = self.session.view_contexts() if self.reads_contexts else None
        fuser = KnowledgeFuser(aligner, self.session.knowledge(), prompts)

        def listen(reply: Message) -> tuple[float, AlignedTeacher]:
            node, loss = reply.metadata.src_node_id, take_loss(reply)
            knowledge = self.receive(reply)
            context_loss = (
                messages.unpack_context_loss(reply.content, knowledge.num_samples)
                if self.reads_contexts
                else None
            )
            candidate = fuser.align_teacher(knowledge, self.tokenizers[node], context_loss)
            self.heard[self.messenger.name(node)] = messages.unpack_cache_digest(reply.content)
            return loss, candidate

        heard: dict[str, tuple[float, AlignedTeacher]] = {}
        with DiskBuffer(self.session.run.folder) as spool:
            for client, (loss, candidate) in self.parse_replies(server_round, replies, listen):
                heard[client] = loss, spool.put(candidate)
            if len(heard) < self.config.min_clients:
                raise FedfuseError(
                    f"round {server_round}: {len(heard)} clients sent usable knowledge; "
                    f"allowed: at least {self.config.min_clients} (min-clients)"
                )
            # By name: who is the first of equals is not a matter of who was quicker.
            heard = dict(sorted(heard.items(), key=lambda item: item[0]))
            candidates = [candidate for _, candidate in heard.values()]
            tail = self.config.knowledge.tail
            fused_targets = fuser.fuse(candidates, self.weigh, k, tail=tail)
        shares = teacher_shares(self.session.public.samples, fused_targets.weights, list(heard))
        self.session.run.teacher_shares(server_round, "up", SERVER, shares)
        if isinstance(self.rule, LearningRule) and (fit := self.rule.last):
            self.session.run.gate_loss(server_round, SERVER, fit.before, fit.after)
        self.learn(server_round, fused_targets)
        adapter = messages.arrays_to_record(self.session.local_model.adapter)
        return adapter, mean_loss([loss for loss, _ in heard.values()])

    def learn(self, server_round: int, fused_targets: FusedTargets) -> None:
        """Step 6: distil into the server's model."""
        learn = (
            self.session.train_with_rollback if self.config.acceptance_test else self.session.learn
        )
        learn(server_round, fused_targets.teacher)

    def configure_distill(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 7 and 8: the server's knowledge, to every client."""
        now, rules = self.server_knowledge(), self.config.knowledge
        payload, changes, before = encode_full(now, rules.logprob_bits, rules.top_p), None, ""
        if rules.delta_threshold:
            if self.told:
                changes = encode_delta(
                    now, self.told, rules.delta_threshold, rules.logprob_bits, rules.top_p
                )
                before = changes.base
                now = decode(changes, self.told)
                payload = encode_full(now, rules.logprob_bits, 1.0)
            self.told = now if changes else decode(payload)
        prompts = self.session.view_contexts() if self.clients_by.reads_contexts else None
        requests = []
        for node, client in self.messenger.names.items():
            asked = {**config, "rule": self.clients_by.name}
            content = RecordDict({"config": ConfigRecord(asked)})
            if prompts:
                messages.pack_context_loss(content, prompts.loss)
            knows = changes is not None and self.heard.get(client) == before
            messages.pack_knowledge(content, changes if knows and changes else payload)
            requests.append(Message(content, node, messages.DISTILL))
        return requests

    def aggregate_distill(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """After steps 9 to 11: note on what the clients trusted the server."""

        def note(reply: Message) -> float:
            loss = take_loss(reply)
            client = self.messenger.name(reply.metadata.src_node_id)
            shares = {}
            for key, share in reply.content.metric_records["teacher-shares"].items():
                domain, _, teacher = key.rpartition("/")
                shares[domain, teacher] = float(share)  # type: ignore[arg-type]
            self.session.run.teacher_shares(server_round, "down", client, shares)
            if self.config.acceptance_test:
                keep, changes = messages.unpack_acceptance(reply.content)
                self.session.run.verdict(server_round, client, keep=keep, changes=changes)
            if self.clients_by.learns:
                before, after = messages.unpack_gate_loss(reply.content)
                self.session.run.gate_loss(server_round, client, before, after)
            return loss

        return mean_loss([loss for _, loss in self.parse_replies(server_round, replies, note)])

    def state(self) -> dict[str, ndarray]:
        """What the rule has learned; with a delta threshold, what each side was told."""
        learned = self.rule.state() if isinstance(self.rule, LearningRule) else {}
        learned = {f"rule/{name}": value for name, value in learned.items()}
        if not self.config.knowledge.delta_threshold:
            return learned
        told = to_arrays(self.told) if self.told else {}
        sides = {"held": as_array(self.held.state()), "heard": as_array(self.heard)}
        return learned | {f"told/{name}": value for name, value in told.items()} | sides

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""
        if isinstance(self.rule, LearningRule):
            self.rule.load(strip_prefix(state, "rule/"))
        if not self.config.knowledge.delta_threshold:
            return
        if told := strip_prefix(state, "told/"):
            self.told = from_arrays(told)
        self.held.load(as_texts(state["held"]))
        self.heard = as_texts(state["heard"])
