"""FedAvgLoRA's messages on the server; the algorithm is ``fedfuse.algorithms.fedavg``."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedfuse.algorithms.fedavg import check_adapter, server_step
from fedfuse.config.model import can_learn
from fedfuse.config.run_config import RunConfig, model_configs
from fedfuse.errors import check
from fedfuse.flower import messages
from fedfuse.models.causal_lm import AdapterState
from strategies.client_registry import ClientInfo
from strategies.messenger import require
from strategies.model import ModelStrategy, mean_loss, take_loss
from strategies.server_state import ServerState

# More private samples than any client has.
MOST_SAMPLES = 10**9


class FedAvgLoRA(ModelStrategy):
    """The server's adapter is the weighted mean of the clients'.

    Attributes:
        samples: private samples that each node registered with, which no later count may exceed.
    """

    def __init__(self, server: ServerState) -> None:
        super().__init__(server)
        self.samples: dict[int, float] = {}

    @classmethod
    def check_inputs(cls, config: RunConfig, clients: int) -> None:
        """As of every strategy; and that all models have adapters to average."""
        super().check_inputs(config, clients)
        for name in model_configs(config, clients):
            found = "a teacher that does not learn"
            check(f"fedavg-lora: model {name!r}", found, "one with an adapter", can_learn(name))

    def parse_registration(self, reply: Message) -> ClientInfo:
        """As every client's, with the number of its private samples."""
        number = messages.unpack_number(reply.content, "private-samples", 1, MOST_SAMPLES)
        self.samples[reply.metadata.src_node_id] = number
        info = super().parse_registration(reply)
        check(f"model {info.model!r}", "a teacher that does not learn", "an adapter", info.learns)
        return info

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter; clients train it on their private data and send it back."""
        request = ConfigRecord({**config, "reply": "adapter"})
        adapter = messages.arrays_to_record(self.server.local_model.adapter)
        content = RecordDict({"adapter": adapter})
        return self.requests(messages.LOCAL, request, content, server_round=server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came back, weighted by the number of private samples."""
        own = self.server.local_model.adapter

        def parse_reply(reply: Message) -> tuple[AdapterState, float, float]:
            adapter = messages.record_to_arrays(reply.content.array_records["adapter"])
            check_adapter(adapter, own)
            most = self.samples[reply.metadata.src_node_id]
            number = messages.unpack_number(reply.content, "num-examples", 1, most)
            return adapter, number, take_loss(reply)

        found = dict(self.parse_replies(server_round, replies, parse_reply))
        require(len(found), self.least_replies(), messages.LOCAL)
        averaged = server_step({c: (adapter, n) for c, (adapter, n, _) in found.items()})
        self.server.local_model.adapter = averaged
        losses = [found[client][2] for client in sorted(found)]
        return messages.arrays_to_record(averaged), mean_loss(losses)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Clients score the global adapter."""
        requests = list(super().configure_evaluate(server_round, arrays, config, grid))
        for request in requests if server_round else []:
            adapter = self.server.local_model.adapter
            request.content["adapter"] = messages.arrays_to_record(adapter)
        return requests
