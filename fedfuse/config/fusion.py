"""The rules of fusion, by name."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import one_of, text


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Rules by which each side chooses its teachers, in place of what the strategy stands for.

    A name that ``fedfuse.fusion.rules`` registers, or your own as ``module:function``; empty for
    the strategy's.

    Attributes:
        server_rule: how much the server trusts each client.
        client_rule: when a client trusts the server.
        evidence: what the server's rule judges clients by: their answers to ``blind`` questions,
            whose answers the server alone knows (needs ``data.blind``), or the labels that
            everybody knows (``open``, the papers' way). Under ``blind`` evidence nobody is believed
            who shows less than the learning side knows: the server itself, or a client's base.
    """

    server_rule: str = text("", empty=True)
    client_rule: str = text("", empty=True)
    evidence: str = one_of("blind", "blind", "open")
