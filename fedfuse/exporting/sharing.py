"""What the parties of a run shared, in words, and what that says of privacy: no more than holds."""

from __future__ import annotations

from typing import Any

from fedfuse.tracking.json_fields import clean
from fedfuse.tracking.run import SERVER, RunFolder

# Strategies whose clients send what they know of the public set.
_BOTH_WAYS = ("fedfuse", "fusion-x", "fedmkt")
_DOWN_ALONE, _WEIGHTS = "llm2slm", "fedavg-lora"

_SERVER_SENT = (
    "The server sent its tokenizer, the public samples and the tested ones, and what its own model "
    "expects as next tokens on the public samples."
)
_NO_PRIVATE_TEXT = "Private text was not sent."
_NO_GUARANTEE = (
    "No differential privacy was applied and no bound is known on what can be learned of private "
    "text from what was sent, or from the weights in this folder."
)


def what_was_shared(run: RunFolder, model: str) -> str:
    """Paragraphs about what travelled, where it ran, and what the weights may hold."""
    strategy = clean(str(run.config.get("strategy", "")))
    parts = [_travelled(strategy, run.config), _weights(strategy, model), _NO_GUARANTEE]
    if (run.folder / "clients").is_dir():
        parts.append(
            "The run was a simulation: all parties were on one machine, so data was kept apart by "
            "the program and not by different owners."
        )
    return "\n\n".join(parts)


def _travelled(strategy: str, config: dict[str, Any]) -> str:
    everybody = (
        "Each client sent its tokenizer, the names of its base model and domain, and the scores of "
        "its model on the test set."
    )
    if strategy in _BOTH_WAYS:
        knowledge = (
            "Each round it also sent what its model expects as next tokens on the public samples: "
            f"the {config.get('knowledge.k')} most probable tokens of each position with their "
            "probabilities, and its loss there."
        )
        if config.get("fusion.evidence") == "blind":
            knowledge += (
                " It answered multiple-choice questions of which the server alone knew the answers."
            )
        weights = "Neither weights nor private text left a client."
        return f"{everybody} {knowledge} {_SERVER_SENT} {weights}"
    if strategy == _DOWN_ALONE:
        weights = "Neither weights nor private text left a client, nor what it knows."
        return f"{everybody} {_SERVER_SENT} {weights}"
    if strategy == _WEIGHTS:
        return (
            f"{everybody} Each round it also sent the weights of its adapter, which were trained "
            "on private text, and the number of its private samples. The server sent the public "
            f"samples, the tested ones, and the mean of the adapters. {_NO_PRIVATE_TEXT}"
        )
    return (
        f"The strategy `{strategy}` is not one of fedfuse's own: what its messages hold is for its "
        "author to say."
    )


def _weights(strategy: str, model: str) -> str:
    """What the exported weights were trained on."""
    if model != SERVER or strategy == _WEIGHTS:
        whose = "every client's" if strategy == _WEIGHTS else "the client's"
        return (
            f"The weights in this folder come from training on {whose} private text, and may "
            "repeat parts of it: passing them on is a decision about that text."
        )
    if strategy in _BOTH_WAYS:
        return (
            "The weights in this folder were trained on the public samples and on what clients "
            "know of them. Private text has shaped them through that knowledge alone."
        )
    return "What the weights in this folder were trained on follows from the strategy."
