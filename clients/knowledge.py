"""The client that trains on private data, sends knowledge, and learns from the server.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 1 to 3 and 9 to 11, which are functions in
``fedfuse.algorithms.fedmkt``; ``fedfuse.algorithms.fedavg`` where adapters are averaged. Between
messages only what ``Context.state`` holds remains: the adapter and the state of each training.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from jaxtyping import Float32
from numpy import ndarray

from clients.base import BaseClient
from clients.baselines import train_baselines
from clients.record_cache import RecordCache
from fedfuse.algorithms import fedavg, fedmkt
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.model import shown_name
from fedfuse.config.node import ClientConfig
from fedfuse.config.run_config import derive_seed
from fedfuse.data.sample import Sample, SharedSamples
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import MAX_TOKENS
from fedfuse.errors import FedfuseError, check
from fedfuse.evaluation.options import OptionLogprobs
from fedfuse.factory.data import private_samples, public_subset
from fedfuse.factory.models import load_local_model, new_aligner
from fedfuse.flower.baseline_messages import unpack_count
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
from fedfuse.flower.questions import pack_options, pack_questions, unpack_questions
from fedfuse.flower.samples import copy_samples, unpack_held_out, unpack_samples
from fedfuse.fusion.rules import RULES, LearningRule, NamedRule, Rule, find_rule
from fedfuse.fusion.teacher_shares import teacher_shares
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.knowledge.channel import KnowledgeChannel
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset

ADAPTER = "adapter"
# State of a learning rule; loss of each test sample under the zero-shot model.
RULE, INITIAL_NLL = "rule", "initial-nll"
# Digests of what the client learns from and of what it trains.
CONTENT = "content"
# Losses of public contexts with the adapter that is kept.
CONTEXT_LOSS = "context-loss"


class KnowledgeClient(BaseClient):
    """Trains on private data, sends its knowledge or its adapter, learns from the server.

    Attributes:
        local_model: its model, as the last message left it.
        channel: encodes and decodes knowledge.
        shared: what the server told of the run's data, at registration.
        private: the client's own data, as its model sees it; what validates is the model's holdout.
    """

    def __init__(self, context: Context, request: RecordDict) -> None:
        super().__init__(context, request)
        copy_samples(request, self.records)
        self.shared = unpack_samples(self.records)
        data = self.config.data
        self.local_model = load_local_model(
            "client",
            self.config.clients.model,
            self.config.clients,
            self.shared,
            data.max_length,
            self.config.seed,
        )
        self.private, self.local_model.holdout = _private(
            self.client, self.shared, self.local_model
        )
        self.channel = KnowledgeChannel(self.config.knowledge, RecordCache(self.records))
        kept = self.records.get(ADAPTER)
        if isinstance(kept, ArrayRecord):
            self.local_model.adapter = record_to_arrays(kept)
        else:
            self.local_model.reset()

    def _check_content(self) -> None:
        """Compare private data and base model with those that the run began with here."""
        now = {"private samples": self.private.fingerprint, "model": self.local_model.fingerprint}
        kept = self.records.get(CONTENT)
        for name, known in (kept or now).items():
            expected = f"those that the run began with, of digest {known!s}"
            check(f"client {self.partition}: {name}", now[name], expected, now[name] == known)
        if kept is None:
            self.records[CONTENT] = ConfigRecord({**now})

    @property
    def model_name(self) -> str:
        """Name of the base model, as the server may see it."""
        return shown_name(self.config.clients.model)

    def register(self, request: RecordDict) -> RecordDict:
        """Reply with model, tokenizer, size and domain of the data.

        The shared samples, the server's tokenizer and its blind questions come with this message
        only, and are kept: they may be larger than all that follows.

        Raises:
            FedfuseError: for an acceptance test without samples to judge by; for private samples or
                a model that are not those that the run began with here.
        """
        self._check_content()
        if self.config.acceptance_test:
            found = f"{len(self.private)} private samples, none of them for validation"
            enough = "10 of a domain or more, of which one in ten validates"
            check("acceptance-test", found, enough, self.local_model.holdout)
        pack_tokenizer(self.records, unpack_tokenizer(request))
        pack_questions(self.records, questions := unpack_questions(request))
        if questions and not self.local_model.learns:
            self.answer(questions)  # or it is refused now, not in the first round
        domains = Counter(sample.domain for sample in self.private.samples)
        domain, count = domains.most_common(1)[0]
        own = domain if 2 * count > domains.total() else ""
        reply = RecordDict(
            {
                "info": self.registration_info(
                    **{"own-domain": own, "adapter": self.local_model.cover},
                    learns=self.local_model.learns,
                ),
                "metrics": MetricRecord({"private-samples": len(self.private)}),
            }
        )
        pack_tokenizer(reply, self.local_model.tokenizer)
        return reply

    def train(self, request: RecordDict) -> RecordDict:
        """Train on private data; reply with knowledge or the adapter, as the request asks."""
        started = time.perf_counter()
        config, reply = request.config_records["config"], RecordDict({})
        phase, seed = self.config.local, derive_seed(self.config, "local", self.partition)
        state, sent = self._training("local"), None
        if config["reply"] == "knowledge":
            public = public_subset(self.config, self.local_model, _round(request))
            loss, state, sent = fedmkt.local_step(
                self.local_model,
                self.private,
                public,
                self.config.knowledge.k,
                phase,
                seed=seed,
                state=state,
                with_contexts=bool(config.get("contexts")),
            )
        else:
            # Where weights are averaged, training starts from the server's.
            given = request.get(ADAPTER)
            adapter = record_to_arrays(given) if isinstance(given, ArrayRecord) else None
            loss, state = fedavg.client_step(
                self.local_model, self.private, phase, seed=seed, state=state, adapter=adapter
            )
        self.records["training.local"] = arrays_to_record(state)
        self._save_adapter()
        if sent:
            if sent.context_loss is not None:
                losses = {public.fingerprint: sent.context_loss}
                self.records[CONTEXT_LOSS] = arrays_to_record(losses)
                pack_context_loss(reply, sent.context_loss)
            receivers = {"server": str(config.get("cache-digest", ""))}
            told = self.tell(sent.knowledge, public)
            pack_knowledge(reply, self.channel.encode(told, receivers)["server"])
            if questions := unpack_questions(self.records):
                pack_options(reply, self.answer(questions))
            cache_digest = self.channel.cache.digest("server")
            reply["info"] = ConfigRecord({"cache-digest": cache_digest})
        elif config["reply"] == "adapter":
            reply[ADAPTER] = arrays_to_record(self.local_model.adapter)
        seconds = time.perf_counter() - started
        metrics: Metrics = {"loss": loss, "seconds": seconds, "num-examples": len(self.private)}
        reply["metrics"] = MetricRecord(metrics | self._max_tokens("local"))
        return reply

    def tell(self, knowledge: Knowledge, public: TokenizedDataset) -> Knowledge:
        """What is sent of the model's knowledge of the public samples; override to change it."""
        return knowledge

    def answer(self, questions: Sequence[Sample]) -> OptionLogprobs:
        """``[Q, O]`` log-probabilities of the options; override to answer otherwise."""
        return self.local_model.option_logprobs(questions)

    def distill(self, request: RecordDict) -> RecordDict:
        """Learn from the server where the rule trusts it (Algorithm 1, steps 9 to 11)."""
        started = time.perf_counter()
        config, tokenizer = self.config.knowledge, unpack_tokenizer(self.records)
        public = public_subset(self.config, self.local_model, _round(request))
        aligner = new_aligner(self.local_model, config, public)
        payload = unpack_knowledge(request)
        knowledge = self.channel.decode("server", payload, tokenizer, aligner, public.fingerprint)
        named, context_loss, own_context_loss = self._named_rule(request), None, None
        self.rule = self._load_rule(named)
        if named.reads_contexts:
            context_loss = unpack_context_loss(request, len(public))
            own_context_loss = self._context_losses(public)
        phase = self.config.client_distill
        distilled = fedmkt.client_step(
            self.local_model,
            public,
            fedmkt.KnowledgeSet(knowledge, tokenizer, context_loss),
            self.weigh,
            aligner,
            config,
            phase,
            seed=derive_seed(self.config, "distill", self.partition),
            state=self._training("distill"),
            replay=self.private if phase.replay else None,
            reads_contexts=named.reads_contexts,
            context_loss=own_context_loss,
            beside_base=self.config.fusion.evidence == "blind",
            acceptance_seed=derive_seed(self.config, "promotion", self.partition, _round(request))
            if self.config.acceptance_test
            else None,
        )
        reply = RecordDict({})
        if distilled.acceptance:
            pack_acceptance(reply, distilled.acceptance)
        if distilled.state is not None:
            self.records["training.distill"] = arrays_to_record(distilled.state)
        self._save_adapter()
        if isinstance(self.rule, LearningRule) and self.rule.last:
            self.records[RULE] = arrays_to_record(self.rule.state())
            pack_gate_loss(reply, self.rule.last.before, self.rule.last.after)
        shares = teacher_shares(public.samples, distilled.weights, distilled.teachers)
        flat: Metrics = {f"{domain}/{name}": share for (domain, name), share in shares.items()}
        reply["teacher-shares"] = MetricRecord(flat)
        metrics: Metrics = {"loss": distilled.loss, "seconds": time.perf_counter() - started}
        reply["metrics"] = MetricRecord(metrics | self._max_tokens("distill"))
        return reply

    def weigh(self, stats: StackedStats) -> ndarray:
        """How much to trust the server where, by the rule; override it for one of your own.

        Args:
            stats: about N samples with T label rows; column 0 is this client, column 1 the server.

        Returns:
            ``[N, 2]`` weights per sample or ``[T, 2]`` per label row, not negative; a row of zeros
            learns from labels alone.
        """
        return self.rule(stats)

    def _context_losses(self, public: TokenizedDataset) -> Float32[ndarray, " samples"]:
        """``[N]`` context losses; those that were sent, if the model has not learned since."""
        kept = self.records.get(CONTEXT_LOSS)
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

    def _load_rule(self, named: NamedRule) -> Rule:
        """The rule as the last message left it."""
        seed = derive_seed(self.config, "selector", self.partition)
        rule, kept = named.make(self.config.gate, seed), self.records.get(RULE)
        if isinstance(rule, LearningRule) and isinstance(kept, ArrayRecord):
            rule.load(record_to_arrays(kept))
        return rule

    def evaluate(self, request: RecordDict) -> RecordDict:
        """Score the model on the test set, per domain, and save its adapter on this machine."""
        if ADAPTER in request:  # weights were averaged: score the server's
            self.local_model.adapter = record_to_arrays(request.array_records[ADAPTER])
            self._save_adapter()
        self.local_model.save_adapter(self.folder / "adapter")
        before = self.records.get(INITIAL_NLL)
        known = record_to_arrays(before)["nats"] if isinstance(before, ArrayRecord) else None
        scores, nats = self.local_model.evaluate(known)
        if known is None and ADAPTER not in self.records:  # nothing has been learned yet
            self.records[INITIAL_NLL] = arrays_to_record({"nats": nats})
        return RecordDict({"metrics": MetricRecord(scores_to_metrics(scores))})

    def measure_baselines(self, request: RecordDict) -> RecordDict:
        """Score this client's model as it would be without the federation."""
        return train_baselines(
            self.config,
            self.local_model,
            self.private,
            self.partition,
            steps=unpack_count(request, "steps"),
            rounds=unpack_count(request, "rounds"),
            held_out=unpack_held_out(request),
        )

    def _save_adapter(self) -> None:
        self.records[ADAPTER] = arrays_to_record(self.local_model.adapter)
        self.records.pop(CONTEXT_LOSS, None)

    def _max_tokens(self, phase: str) -> Metrics:
        """Tokens at once of a phase whose memory ran out."""
        state = self._training(phase) or {}
        return {MAX_TOKENS: int(state[MAX_TOKENS])} if MAX_TOKENS in state else {}

    def _training(self, phase: str) -> TrainingState | None:
        record = self.records.get(f"training.{phase}")
        return record_to_arrays(record) if isinstance(record, ArrayRecord) else None


@lru_cache(maxsize=16)
def _private(
    client: ClientConfig, shared: SharedSamples, local_model: LocalModel
) -> tuple[TokenizedDataset, TokenizedDataset | None]:
    """Private samples to train on, and to validate by if there are any."""
    samples = private_samples(client, shared)
    validation = local_model.encode(samples.validation) if samples.validation else None
    return local_model.encode(samples.train), validation


def _round(request: RecordDict) -> int:
    return int(request.config_records["config"]["round"])  # type: ignore[arg-type]
