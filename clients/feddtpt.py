"""The client of FedDTPT: searches for a better prompt, and sends it with what it measured.

Wu et al., "FedDTPT", arXiv 2411.00985, Algorithm 1. Searches are in this machine's run folder,
``clients/N``: see ``fedfuse.feddtpt.tuner``. The client's state keeps no more than the last prompt
that it received and the round of it, by which a request that comes late is recognised.
"""

from __future__ import annotations

from flwr.app import MetricRecord, RecordDict

from clients.base import BaseClient
from fedfuse.factory.feddtpt import (
    client_tuner,
    load_backend,
    load_masked_lm,
    private_examples,
)
from fedfuse.feddtpt.prompt import Prompt
from fedfuse.feddtpt.tuner import ClientPromptTuner
from fedfuse.flower.feddtpt_messages import pack_prompt, pack_tuned, unpack_prompt
from fedfuse.flower.messages import Metrics, unpack_context


class FedDTPTClient(BaseClient):
    """Searches prompts for a black box."""

    strategies = ("feddtpt",)

    @property
    def model_name(self) -> str:
        """Name of the black box."""
        return self.config.black_box.model

    def register(self, request: RecordDict) -> RecordDict:
        """Reply with this client's partition, its black box, and the vocabulary of prompts."""
        self._receive(request)
        device = self.config.clients.device
        lm = load_masked_lm(self.config.feddtpt.masked_lm, device)
        load_backend(self.config.black_box, device)
        private_examples(self.client)
        info = self.registration_info(vocabulary=lm.tokenizer.fingerprint)
        return RecordDict({"info": info})

    def train(self, request: RecordDict) -> RecordDict:
        """Search from the global prompt; reply with the best one found."""
        reply = RecordDict({})
        now = unpack_context(request).round
        pack_tuned(reply, self._tuner().search(self._receive(request), now))
        return reply

    def measure_baselines(self, request: RecordDict) -> RecordDict:
        """Search as often without the federation, each time from this client's own last prompt."""
        tuner, prompt = self._tuner("standalone"), self._receive(request)
        queries = 0
        for number in range(1, self.config.rounds + 1):
            tuned = tuner.search(prompt, number)
            prompt, queries = tuned.prompt, queries + tuned.queries
        reply = RecordDict({})
        pack_tuned(reply, tuned)
        reply.metric_records["metrics"]["queries"] = queries
        return reply

    def evaluate(self, request: RecordDict) -> RecordDict:
        """Measure the global prompt, and this client's last one, on its private examples."""
        tuner, now = self._tuner(), unpack_context(request).round
        private = private_examples(self.client)
        metrics: Metrics = {"global": tuner.accuracy(self._receive(request), private, now + 1)}
        if last := tuner.last(now):
            metrics["own"] = tuner.accuracy(last.prompt, private, now + 1)
        return RecordDict({"metrics": MetricRecord(metrics)})

    def _receive(self, request: RecordDict) -> Prompt:
        """Read the prompt of a request, and keep it."""
        prompt = unpack_prompt(request)
        pack_prompt(self.records, prompt)
        return prompt

    def _tuner(self, name: str = "federated") -> ClientPromptTuner:
        return client_tuner(self.client, self.folder / name)
