"""A strategy that changes the client half: learn from the server only where it is far better.

Run it from this folder: ``fedfuse simulate --set strategy=own_client:FarBetter``.
"""

import numpy as np

from clients.knowledge import KnowledgeClient
from strategies.fedmkt import FedMKT


class CautiousClient(KnowledgeClient):
    """Takes a sample from the server where its loss is at most 80 % of the client's own."""

    def weigh(self, stats):
        """Trust the server by losses alone."""
        own, server = stats.loss.T  # [N] each, nats per byte; column 0 is the client itself
        weights = np.zeros_like(stats.loss)
        weights[:, 1] = server < 0.8 * own
        return weights  # [N, 2]; a row of zeros: nobody teaches this sample


class FarBetter(FedMKT):
    """FedMKT whose clients are cautious."""

    client = CautiousClient
