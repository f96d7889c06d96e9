"""The client of FedDTPT: searches for a better prompt, and says what it found.

Wu et al., "FedDTPT", arXiv 2411.00985, Algorithm 1. Searches are in this machine's run folder,
``clients/N``: see ``fedfuse.feddtpt.tuner``. ``Memory`` keeps no more than the prompt that this
client was told last, and the round of it: so it knows a request that came late.
"""

from __future__ import annotations

import torch
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict

from clients.client_state import remember, run_folder
from fedfuse.factory.client import parse_client
from fedfuse.factory.feddtpt import (
    load_backend,
    load_masked_lm,
    load_task,
    private_examples,
    search_seed,
)
from fedfuse.feddtpt.accuracy import draw
from fedfuse.feddtpt.prompt import Prompt
from fedfuse.feddtpt.tuner import ClientPromptTuner
from fedfuse.flower.feddtpt_messages import pack_prompt, pack_tuned, unpack_prompt
from fedfuse.flower.messages import Metrics, unpack_context


class PromptClient:
    """One client for the length of one message.

    Attributes:
        memory: what the last message left.
    """

    def __init__(self, context: Context, request: RecordDict) -> None:
        self._client = parse_client(context.node_config, context.run_config)
        self._config, self._state = self._client.config, context.state
        self._name = self._client.node.partition_id
        if self._client.node.threads:
            torch.set_num_threads(self._client.node.threads)
        model = self._config.black_box.model
        self.memory = remember(context.state, self._client, model, request)

    def register(self, request: RecordDict) -> RecordDict:
        """Who this client is: its partition, its black box, and the vocabulary of prompts."""
        self._told(request)
        device = self._config.clients.device
        lm = load_masked_lm(self._config.prompts.masked_lm, device)
        load_backend(self._config.black_box, device)
        private_examples(self._client)
        info = ConfigRecord(
            {
                "partition": self._name,
                "model": self._config.black_box.model,
                "vocabulary": lm.tokenizer.fingerprint,
                # What an earlier part of the run left, if this is not the first.
                "state-round": self.memory.round,
                "damaged": self.memory.damaged,
            }
        )
        return RecordDict({"info": info})

    def local(self, request: RecordDict) -> RecordDict:
        """Search from the global prompt; reply with the best one found."""
        reply = RecordDict({})
        now = unpack_context(request).round
        pack_tuned(reply, self._searcher().search(self._told(request), now))
        return reply

    def standalone(self, request: RecordDict) -> RecordDict:
        """The same searches without the federation: each goes on from this client's own prompt."""
        searcher, prompt = self._searcher("standalone"), self._told(request)
        queries = 0
        for turn in range(1, self._config.rounds + 1):
            tuned = searcher.search(prompt, turn)
            prompt, queries = tuned.prompt, queries + tuned.queries
        reply = RecordDict({})
        pack_tuned(reply, tuned)
        reply.metric_records["metrics"]["queries"] = queries
        return reply

    def evaluate(self, request: RecordDict) -> RecordDict:
        """How the global prompt, and this client's last one, do on its private examples."""
        searcher, now = self._searcher(), unpack_context(request).round
        private = private_examples(self._client)
        metrics: Metrics = {"global": searcher.accuracy(self._told(request), private, now + 1)}
        if last := searcher.last(now):
            metrics["own"] = searcher.accuracy(last.prompt, private, now + 1)
        return RecordDict({"metrics": MetricRecord(metrics)})

    def _told(self, request: RecordDict) -> Prompt:
        """The prompt that a request is about, which is kept."""
        prompt = unpack_prompt(request)
        pack_prompt(self._state, prompt)
        return prompt

    def _searcher(self, what: str = "federated") -> ClientPromptTuner:
        config, device = self._config, self._config.clients.device
        prompts = config.prompts
        task, splits = load_task(
            prompts, config.data.template, config.seed, self._client.node.num_partitions
        )
        seed = search_seed(config, self._name)
        sizes = prompts.private, prompts.public
        return ClientPromptTuner(
            run_folder(self._client, self.memory.request_context.run) / what,
            task,
            draw(private_examples(self._client), splits.public, sizes, seed),
            load_masked_lm(prompts.masked_lm, device),
            load_backend(config.black_box, device),
            prompts.search_settings(),
            prompts.queries,
            seed,
        )
