"""Run config keys and values of earlier versions: each is refused, and its successor named."""

from __future__ import annotations

# Dotted key to dotted key, or "key=value" to "key=value" where only a value was renamed.
RENAMED_KEYS: dict[str, str] = {
    "knowledge.mass": "knowledge.top-p",
    "knowledge.wire": "knowledge.logprob-bits",
    "knowledge.wire=default": "knowledge.logprob-bits=16",
    "knowledge.wire=compact": "knowledge.logprob-bits=8",
    "knowledge.freshness": "knowledge.delta-threshold",
    "knowledge.positions": "knowledge.alignment",
    "knowledge.positions=merge": "knowledge.alignment=events",
    "knowledge.alignment=chain-rule": "knowledge.alignment=events",
    "knowledge.positions=boundary": "knowledge.alignment=exact-boundary",
    "knowledge.collisions": "knowledge.duplicate-tokens",
    "knowledge.unmatched": "knowledge.unaligned-positions",
    "client-distill.consolidation": "client-distill.ewc",
    "client-distill.label-share": "client-distill.label-weight",
    "promotion": "acceptance-test",
    "selector.features": "gate.features",
    "selector.feedback": "gate.feedback",
    "selector.folds": "gate.folds",
    "selector.network": "gate.network",
    "selector.signal": "gate.loss",
    "selector.steps": "gate.steps",
    "selector.threshold": "gate.threshold",
    "server-distill.consolidation": "server-distill.ewc",
    "server-distill.label-share": "server-distill.label-weight",
    "prompts.task": "feddtpt.task",
    "prompts.start": "feddtpt.start",
    "prompts.masked-lm": "feddtpt.masked-lm",
    "prompts.private": "feddtpt.examples.private",
    "prompts.public": "feddtpt.examples.public",
    "prompts.validation": "feddtpt.examples.validation",
    "prompts.test": "feddtpt.examples.test",
    "prompts.alpha": "feddtpt.alpha",
    "prompts.clients-per-round": "clients-per-round",
    "feddtpt.clients-per-round": "clients-per-round",
    "prompts.queries": "feddtpt.search.queries",
    "prompts.patience": "feddtpt.search.patience",
    "prompts.length": "feddtpt.search.max-length",
    "prompts.proposer": "feddtpt.search.proposer",
    "prompts.aggregation": "feddtpt.aggregation.method",
    "prompts.choice": "feddtpt.candidates",
}


def renamed(key: str, value: object) -> str:
    """Error for a key, or a value of a key, that was renamed; empty for any other."""
    for old in (f"{key}={value}", key):
        if old in RENAMED_KEYS:
            return f"{old} was renamed: expected {RENAMED_KEYS[old]}, got {old}"
    return ""
