"""The client of a knowledge exchange: trains on private data, tells what it knows, learns from the
server.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 1-3 and 9-11. Between messages only what ``Memory``
keeps remains: the adapter and the state of each kind of training.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from jaxtyping import Float32
from numpy import ndarray

from clients.client_state import remember, run_folder
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.node import ClientConfig, parse_client
from fedfuse.config.run_config import derive_seed
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import MAX_TOKENS
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import private_samples, public_subset
from fedfuse.factory.models import load_local_model, new_aligner
from fedfuse.flower.messages import (
    Metrics,
    arrays_to_record,
    pack_acceptance,
    pack_context_loss,
    pack_gate_loss,
    pack_knowledge,
    pack_tokenizer,
    record_to_arrays,
    scores_to_metrics,
    unpack_context_loss,
    unpack_knowledge,
    unpack_tokenizer,
)
from fedfuse.fusion.fuser import FusedTargets, KnowledgeFuser
from fedfuse.fusion.rules import RULES, LearningRule, NamedRule, Rule, find_rule
from fedfuse.fusion.teacher_shares import teacher_shares
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.delta import digest
from fedfuse.knowledge.payload import Payload, decode, encode_delta, encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import from_arrays, to_arrays
from fedfuse.models.causal_lm import save_adapter
from fedfuse.tokenizers.dataset import TokenizedDataset

ADAPTER = "adapter"
# With a delta threshold: the knowledge that the server has of this client, and it of the server.
TOLD, HEARD = "told", "heard"
# State of the rule that learns, and the untouched model's loss of each test sample.
RULE, UNTOUCHED = "rule", "untouched"
# Losses of public prompts with the adapter that is kept.
PROMPTS = "prompts"


class DistillationClient:
    """One client for the length of one message.

    Attributes:
        config: the run config, with what this machine's node config says in its place.
        partition: which share of the private data is this client's.
        participant: its model, in the state that the last message left.
        memory: that state.
    """

    def __init__(self, context: Context, request: RecordDict) -> None:
        self._client = parse_client(context.node_config, context.run_config)
        self.config = self._client.config
        self.partition = self._client.node.partition_id
        self._state = context.state
        self.model_name = self.config.clients.model
        if self._client.node.threads:
            torch.set_num_threads(self._client.node.threads)
        self.local_model = load_local_model(
            "client", self.model_name, self.config.clients, self.config.data, self.config.seed
        )
        self.memory = remember(context.state, self._client, self.model_name, request)
        self._restore()

    @property
    def private(self) -> TokenizedDataset:
        """The client's own data, as its model sees it."""
        return _private(self._client, self.local_model)

    def register(self, request: RecordDict) -> RecordDict:
        """Who this client is: model, tokenizer, size and domain of its data.

        The server's tokenizer is told here and kept: it may be larger than all that follows.
        """
        pack_tokenizer(self._state, unpack_tokenizer(request))
        domains = Counter(sample.domain for sample in self.private.samples)
        domain, count = domains.most_common(1)[0]
        own = domain if 2 * count > domains.total() else ""
        reply = RecordDict(
            {
                "info": ConfigRecord(
                    {
                        "partition": self.partition,
                        "model": self.model_name,
                        "own-domain": own,
                        # What an earlier part of the run left, if this is not the first.
                        "state-round": self.memory.round,
                        "damaged": self.memory.damaged,
                    }
                ),
                "metrics": MetricRecord({"private-samples": len(self.private)}),
            }
        )
        pack_tokenizer(reply, self.local_model.tokenizer)
        return reply

    def local(self, request: RecordDict) -> RecordDict:
        """Train on private data; reply with knowledge or the adapter, as the request asks."""
        started = time.perf_counter()
        config = request.config_records["config"]
        wanted = config["reply"]
        if ADAPTER in request:  # weights are averaged: start from the server's
            self.local_model.adapter = record_to_arrays(request.array_records[ADAPTER])
        loss = self._train_local()
        self._keep()
        reply = RecordDict({})
        if wanted == "knowledge":
            public = public_subset(self.config, self.local_model, _round(request))
            k = self.config.knowledge.k
            if config.get("prompts"):
                now, losses = self.local_model.knowledge_with_contexts(k, public)
                self._state[PROMPTS] = arrays_to_record({public.fingerprint: losses})
                pack_context_loss(reply, losses)
            else:
                now = self.local_model.knowledge(k, public)
            pack_knowledge(reply, self._payload(now, str(config.get("held", ""))))
            heard = self._known(HEARD)
            reply["info"] = ConfigRecord({"heard": digest(heard) if heard else ""})
        elif wanted == "adapter":
            reply[ADAPTER] = arrays_to_record(self.local_model.adapter)
        seconds = time.perf_counter() - started
        metrics: Metrics = {"loss": loss, "seconds": seconds, "num-examples": len(self.private)}
        metrics |= self._backed_off("local")
        reply["metrics"] = MetricRecord(metrics)
        return reply

    def distill(self, request: RecordDict) -> RecordDict:
        """Learn from the server where it knows better (Algorithm 1, steps 9-11)."""
        started = time.perf_counter()
        rules, tokenizer = self.config.knowledge, unpack_tokenizer(self._state)
        public = public_subset(self.config, self.local_model, _round(request))
        aligner = new_aligner(self.local_model, rules, public)
        rows = len(aligner.pair(tokenizer).rows.token)
        knowledge = decode(unpack_knowledge(request), self._known(HEARD), num_rows=rows, k=rules.k)
        aligner.verify(knowledge, tokenizer, public.fingerprint)
        if rules.delta_threshold:
            self._state[HEARD] = arrays_to_record(to_arrays(knowledge))
        fused_targets, rule = self._choose(request, public, aligner, knowledge)
        phase, state = self.config.client_distill, self._training("distill")

        def learn() -> tuple[float, TrainingState]:
            return self.local_model.learn(
                public,
                phase,
                seed=derive_seed(self.config, "distill", self.partition),
                teacher=fused_targets.teacher,
                replay=self.private if phase.replay else None,
                state=state,
            )

        reply = RecordDict({})
        if self.config.acceptance_test:
            seed = derive_seed(self.config, "promotion", self.partition, _round(request))
            (loss, learned), verdict = self.local_model.train_with_rollback(learn, seed)
            pack_acceptance(reply, verdict)
            keep = verdict.keep
        else:
            (loss, learned), keep = learn(), True
        if keep:
            self._state["training.distill"] = arrays_to_record(learned)
        self._keep()
        if isinstance(rule, LearningRule) and rule.last:
            self._state[RULE] = arrays_to_record(rule.state())
            pack_gate_loss(reply, rule.last.before, rule.last.after)
        shares = teacher_shares(public.samples, fused_targets.weights, ["server"])
        flat: Metrics = {
            f"{domain}/{teacher}": share for (domain, teacher), share in shares.items()
        }
        reply["teacher-shares"] = MetricRecord(flat)
        metrics: Metrics = {"loss": loss, "seconds": time.perf_counter() - started}
        reply["metrics"] = MetricRecord(metrics | self._backed_off("distill"))
        return reply

    def _choose(
        self,
        request: RecordDict,
        public: TokenizedDataset,
        aligner: KnowledgeAligner,
        knowledge: Knowledge,
    ) -> tuple[FusedTargets, Rule]:
        """What to take from the server, and the rule that said so."""
        rules, tokenizer = self.config.knowledge, unpack_tokenizer(self._state)
        own = self.local_model.knowledge(rules.k, public)
        named, prompts, context_loss = self._named_rule(request), None, None
        rule = self._rule(named)
        if named.reads_contexts:
            prompts = self.local_model.view_contexts(public, self._prompt_losses(public))
            context_loss = unpack_context_loss(request, len(public))
        fuser = KnowledgeFuser(aligner, own, prompts)
        server = fuser.align_teacher(knowledge, tokenizer, context_loss)
        return fuser.fuse([server], rule, rules.k, tail=rules.tail), rule

    def _prompt_losses(self, public: TokenizedDataset) -> Float32[ndarray, " samples"]:
        """``[N]`` as this client told them already, if its model has not learned since."""
        kept = self._state.get(PROMPTS)
        known = record_to_arrays(kept) if isinstance(kept, ArrayRecord) else {}
        if public.fingerprint in known:
            return known[public.fingerprint]
        return self.local_model.context_losses(public)

    def _named_rule(self, request: RecordDict) -> NamedRule:
        """The run config's rule, or else the one that the message names.

        Raises:
            FedfuseError: for a name in a message that is not registered: no message brings code.
        """
        if self.config.fusion.client_rule:
            return find_rule(self.config.fusion.client_rule)
        name = request.config_records["config"].get("rule")
        if name not in RULES:
            raise FedfuseError(f"rule of the message: expected {', '.join(RULES)}, got {name!r}")
        return RULES[str(name)]

    def _rule(self, named: NamedRule) -> Rule:
        """The rule as the last message left it."""
        seed = derive_seed(self.config, "selector", self.partition)
        rule, kept = named.make(self.config.gate, seed), self._state.get(RULE)
        if isinstance(rule, LearningRule) and isinstance(kept, ArrayRecord):
            rule.load(record_to_arrays(kept))
        return rule

    def evaluate(self, request: RecordDict) -> RecordDict:
        """Score the model on the test set, per domain, and save its adapter on this machine."""
        if ADAPTER in request:  # weights were averaged: score the server's
            self.local_model.adapter = record_to_arrays(request.array_records[ADAPTER])
            self._keep()
        folder = run_folder(self._client, self.memory.request_context.run)
        save_adapter(self.local_model.lm.model, folder / "adapter")
        before = self._state.get(UNTOUCHED)
        known = record_to_arrays(before)["nats"] if isinstance(before, ArrayRecord) else None
        scores, nats = self.local_model.evaluate(known)
        if known is None and ADAPTER not in self._state:  # nothing has been learned yet
            self._state[UNTOUCHED] = arrays_to_record({"nats": nats})
        return RecordDict({"metrics": MetricRecord(scores_to_metrics(scores))})

    def _payload(self, now: Knowledge, held: str) -> Payload:
        """What this client knows, or what changed since the server was told what it holds."""
        rules, told = self.config.knowledge, self._known(TOLD)
        if rules.delta_threshold and told and digest(told) == held:
            payload = encode_delta(
                now, told, rules.delta_threshold, rules.logprob_bits, rules.top_p
            )
        else:
            payload, told = encode_full(now, rules.logprob_bits, rules.top_p), None
        if rules.delta_threshold:
            self._state[TOLD] = arrays_to_record(to_arrays(decode(payload, told)))
        return payload

    def _known(self, what: str) -> Knowledge | None:
        """Knowledge that was told or heard in an earlier message."""
        record = self._state.get(what)
        return from_arrays(record_to_arrays(record)) if isinstance(record, ArrayRecord) else None

    def _train_local(self) -> float:
        loss, state = self.local_model.learn(
            self.private,
            self.config.local,
            seed=derive_seed(self.config, "local", self.partition),
            state=self._training("local"),
        )
        self._state["training.local"] = arrays_to_record(state)
        return loss

    def _restore(self) -> None:
        """Put the model into the state that this client's last message left."""
        kept = self._state.get(ADAPTER)
        if isinstance(kept, ArrayRecord):
            self.local_model.adapter = record_to_arrays(kept)
        else:
            self.local_model.reset()

    def _keep(self) -> None:
        self._state[ADAPTER] = arrays_to_record(self.local_model.adapter)
        self._state.pop(PROMPTS, None)

    def _backed_off(self, phase: str) -> Metrics:
        """Tokens at once of a phase whose memory ran out."""
        state = self._training(phase) or {}
        return {MAX_TOKENS: int(state[MAX_TOKENS])} if MAX_TOKENS in state else {}

    def _training(self, phase: str) -> TrainingState | None:
        record = self._state.get(f"training.{phase}")
        return record_to_arrays(record) if isinstance(record, ArrayRecord) else None


@lru_cache(maxsize=16)
def _private(client: ClientConfig, local_model: LocalModel) -> TokenizedDataset:
    return local_model.encode(private_samples(client))


def _round(request: RecordDict) -> int:
    return int(request.config_records["config"]["round"])  # type: ignore[arg-type]
