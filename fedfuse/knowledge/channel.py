"""One side's knowledge messages: whole, or only what changed since the receiver's copy.

With a ``knowledge.delta-threshold`` each side keeps what it sent last and received, as it is after
decoding, and both say which copy they have by its digest. A copy that is lost, or another one,
costs no more than a whole message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.delta import digest
from fedfuse.knowledge.payload import Payload, decode, encode_delta, encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.tokenizer import TextTokenizer


class KnowledgeCache(Protocol):
    """Copies of knowledge that outlive a message.

    Attributes:
        last_sent: knowledge that was sent last, as it is after decoding.
    """

    last_sent: Knowledge | None

    def get(self, sender: str) -> Knowledge | None:
        """Knowledge that was received last from a sender."""

    def put(self, sender: str, knowledge: Knowledge) -> None:
        """Keep knowledge from a sender."""

    def digest(self, sender: str) -> str:
        """Digest of the copy of a sender's knowledge; empty for none."""


class KnowledgeChannel:
    """Encodes what a side sends, decodes and verifies what it receives.

    Args:
        config: precision, nucleus and threshold of deltas.
        cache: copies of either side's knowledge; used with a threshold only.
    """

    def __init__(self, config: KnowledgeConfig, cache: KnowledgeCache) -> None:
        self._config = config
        self.cache = cache

    def encode(self, now: Knowledge, receivers: Mapping[str, str]) -> dict[str, Payload]:
        """Payloads by receiver: a delta for each that has the last one sent, else all of it.

        Args:
            now: knowledge to send.
            receivers: digest of each one's copy of the sender's knowledge; empty for none.
        """
        config = self._config
        base = self.cache.last_sent if config.delta_threshold else None
        base_digest = digest(base) if base else ""
        if not base or base_digest not in receivers.values():
            whole = encode_full(now, config.logprob_bits, config.top_p)
            if config.delta_threshold:
                self.cache.last_sent = decode(whole)
            return dict.fromkeys(receivers, whole)
        delta = encode_delta(now, base, config.delta_threshold, config.logprob_bits, config.top_p)
        # All receivers are to have the same afterwards.
        self.cache.last_sent = after = decode(delta, base)
        others = [name for name, copy in receivers.items() if copy != base_digest]
        whole = encode_full(after, config.logprob_bits, 1.0) if others else delta
        return {name: whole if name in others else delta for name in receivers}

    def decode(
        self,
        sender: str,
        payload: Payload,
        tokenizer: TextTokenizer,
        aligner: KnowledgeAligner,
        public: str,
    ) -> Knowledge:
        """Knowledge of a sender after a payload, verified and kept.

        Args:
            sender: name of the sender.
            payload: as received.
            tokenizer: the sender's.
            aligner: of the receiver, on the public samples of the round.
            public: fingerprint of these samples.

        Raises:
            FedfuseError: for knowledge that is malformed, about something else, or contradicts
                itself.
        """
        rows = len(aligner.pair(tokenizer).rows.token)
        knowledge = decode(payload, self.cache.get(sender), num_rows=rows, k=self._config.k)
        aligner.verify(knowledge, tokenizer, public)
        if self._config.delta_threshold:
            self.cache.put(sender, knowledge)
        return knowledge
