"""The messages of a round: their names, and what travels in them.

A request carries a ``config`` (ConfigRecord: run, round, phase settings); a reply carries
``metrics`` (MetricRecord, numbers only) and ``info`` (ConfigRecord: the round that it answers,
text). Knowledge travels as the bytes of ``knowledge.codec`` in one array; adapters as plain float32
arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from jaxtyping import Float32, Shaped
from numpy import ndarray

from fedfuse.distillation.training import MAX_TOKENS
from fedfuse.errors import FedfuseError, check
from fedfuse.evaluation.acceptance import AcceptanceResult
from fedfuse.evaluation.scoring import Score
from fedfuse.knowledge.payload import Payload
from fedfuse.tokenizers.tokenizer import TextTokenizer
from fedfuse.tracking.checkpoints import strip_prefix

REGISTER = "query.register"
LOCAL = "train.local"
DISTILL = "train.distill"
BASELINE = "train.baseline"
EVALUATE = "evaluate"

# What a MetricRecord takes.
Metrics = dict[str, int | float | list[int] | list[float]]

_KNOWLEDGE, _CONTEXTS = "knowledge", "contexts"
# All of it, and what changed of it.
_PAYLOADS = ({"message"}, {"message", "row_mask", "base"})


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request belongs to.

    Attributes:
        run: name of the run folder.
        id: of the run; a resumed one keeps its own.
        round: of the run.
    """

    run: str
    id: str
    round: int


def pack_context(config: ConfigRecord, request_context: RequestContext) -> None:
    """Add to the ``config`` of a request what it belongs to."""
    config["run"], config["run-id"] = request_context.run, request_context.id
    config["round"] = request_context.round


def unpack_context(content: RecordDict) -> RequestContext:
    """Read out of a request what it belongs to.

    Raises:
        FedfuseError: when it does not say.
    """
    values = content.config_records.get("config", ConfigRecord())
    run, run_id, number = (values.get(name) for name in ("run", "run-id", "round"))
    if not (isinstance(run, str) and isinstance(run_id, str) and isinstance(number, int)):
        raise FedfuseError(
            f"the request's config: expected run, run-id and round, got {sorted(values)}"
        )
    return RequestContext(run, run_id, number)


def pack_round(content: RecordDict, answered: int) -> None:
    """Add to a reply the round of the request that it answers."""
    info = content.config_records.get("info", ConfigRecord())
    content["info"] = ConfigRecord({**info, "round": answered})


def check_round(content: RecordDict, wanted: int) -> None:
    """Refuse a reply about another round: what its sender knew then is out of date.

    Raises:
        FedfuseError: naming both rounds.
    """
    found = content.config_records.get("info", ConfigRecord()).get("round")
    check("round of the reply", repr(found), wanted, found == wanted)


def arrays_to_record(arrays: Mapping[str, ndarray]) -> ArrayRecord:
    """Named arrays as Flower carries them."""
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in arrays.items()})


def record_to_arrays(record: ArrayRecord) -> dict[str, ndarray]:
    """The inverse of ``arrays_to_record``."""
    return {name: array.numpy() for name, array in record.items()}


def unpack_array(
    content: RecordDict, record: str, name: str, dtype: type[np.generic]
) -> Shaped[ndarray, " n"]:
    """Read a 1-dimensional array out of a message's content.

    Raises:
        FedfuseError: when there is none, or it cannot be read or is another.
    """
    arrays = content.array_records.get(record, ArrayRecord())
    if name not in arrays:
        raise FedfuseError(f"expected {record}.{name}, got the records {sorted(content)}")
    try:
        array = arrays[name].numpy()
    except (ValueError, TypeError, EOFError) as error:
        raise FedfuseError(f"{record}.{name} cannot be read ({error})") from error
    found, expected = f"{array.dtype}{list(array.shape)}", f"1-dimensional {np.dtype(dtype)}"
    check(f"{record}.{name}", found, expected, array.dtype == dtype and array.ndim == 1)
    return array


def pack_knowledge(content: RecordDict, payload: Payload) -> None:
    """Add knowledge, or what changed of it, to a message's content."""
    parts = {
        "message": payload.message,
        "row_mask": payload.row_mask,
        "base": payload.base.encode(),
    }
    content[_KNOWLEDGE] = arrays_to_record(
        {name: np.frombuffer(part, dtype=np.uint8) for name, part in parts.items() if part}
    )


def unpack_knowledge(content: RecordDict) -> Payload:
    """Read a payload out of a message's content; what it says is not checked yet.

    Raises:
        FedfuseError: when there is none or it has not the form of one.
    """
    names = set(content.array_records.get(_KNOWLEDGE, ArrayRecord()))
    if names not in _PAYLOADS:
        raise FedfuseError(f"expected knowledge, got the records {sorted(content)}")
    parts = {name: unpack_array(content, _KNOWLEDGE, name, np.uint8).tobytes() for name in names}
    base = parts.get("base", b"").decode("ascii", errors="replace")
    return Payload(parts["message"], parts.get("row_mask", b""), base)


def pack_context_loss(content: RecordDict, loss: Float32[ndarray, " samples"]) -> None:
    """Add a model's loss of the public prompts, ``[N]`` nats per byte, in half precision."""
    content[_CONTEXTS] = arrays_to_record({"loss": loss.astype(np.float16)})


def unpack_context_loss(content: RecordDict, samples: int) -> Float32[ndarray, " samples"]:
    """Read it out of a message's content.

    Raises:
        FedfuseError: when there is none, or it is not N numbers from 0 on or NaN.
    """
    record = content.get(_CONTEXTS)
    if not isinstance(record, ArrayRecord) or set(record) != {"loss"}:
        raise FedfuseError(f"expected contexts with a loss, got the records {sorted(content)}")
    loss = record_to_arrays(record)["loss"]
    found, good = f"{loss.dtype}{list(loss.shape)}", loss.shape == (samples,)
    check("contexts.loss", found, f"float16[{samples}]", good and loss.dtype == np.float16)
    wrong = ((loss < 0) | np.isinf(loss)).any()
    check("contexts.loss", "a negative or infinite number", "0 or more, or NaN", not wrong)
    return loss.astype(np.float32)


def unpack_cache_digest(content: RecordDict) -> str:
    """Digest of what a client holds of the server's knowledge; empty when it says none."""
    return str(content.config_records.get("info", ConfigRecord()).get("cache-digest", ""))


def unpack_max_tokens(content: RecordDict) -> int:
    """Tokens that a client trains on at once since its memory ran out; 0 while it has not.

    Raises:
        FedfuseError: when it is no number.
    """
    known = MAX_TOKENS in content.metric_records.get("metrics", MetricRecord())
    return int(unpack_number(content, MAX_TOKENS)) if known else 0


def pack_tokenizer(content: RecordDict, tokenizer: TextTokenizer) -> None:
    """Add a tokenizer to a message's content, as its own JSON."""
    content["tokenizer"] = ConfigRecord({"json": tokenizer.to_json()})


def unpack_tokenizer(content: RecordDict) -> TextTokenizer:
    """Read a tokenizer out of a message's content; only JSON is parsed, no code is run.

    Raises:
        FedfuseError: when there is none or it is malformed.
    """
    text = content.config_records.get("tokenizer", ConfigRecord()).get("json")
    if not isinstance(text, str):
        raise FedfuseError(f"expected a tokenizer, got the records {sorted(content)}")
    return TextTokenizer.from_json(text)


def unpack_number(
    content: RecordDict, name: str, low: float = -math.inf, high: float = math.inf
) -> float:
    """Read a number out of a reply's metrics.

    Raises:
        FedfuseError: when there is none, or it is not finite or outside [low, high].
    """
    return _number(_metrics(content), name, low, high)


def unpack_scores(content: RecordDict) -> dict[str, Score]:
    """Read scores out of a reply's metrics.

    Raises:
        FedfuseError: when there are none or they are out of range.
    """
    scores = metrics_to_scores(_metrics(content))
    if not scores:
        raise FedfuseError("metrics: expected a loss per domain, got no loss")
    return scores


def scores_to_metrics(scores: Mapping[str, Score]) -> Metrics:
    """Scores as flat numbers: ``loss/DOMAIN``, ``samples/DOMAIN``, and where known
    ``accuracy/DOMAIN``, ``noise/DOMAIN`` and ``normalized_accuracy/DOMAIN``.
    """
    metrics: Metrics = {}
    for domain, score in scores.items():
        metrics[f"loss/{domain}"] = score.loss
        metrics[f"samples/{domain}"] = float(score.samples)
        for name in ("accuracy", "noise", "normalized_accuracy"):
            value = getattr(score, name)
            if value is not None and math.isfinite(value):
                metrics[f"{name}/{domain}"] = value
    return metrics


def metrics_to_scores(metrics: Mapping[str, object]) -> dict[str, Score]:
    """The inverse of ``scores_to_metrics``; other keys are ignored.

    Raises:
        FedfuseError: for losses, noise or numbers of samples that are negative or not finite, and
            accuracies outside [0, 1].
    """
    scores = {}
    for key in metrics:
        kind, _, domain = key.partition("/")
        if kind == "loss":
            known = {
                name: _number(metrics, at, low=0, high=high)
                for name, high in (("accuracy", 1), ("noise", math.inf), ("normalized_accuracy", 1))
                if (at := f"{name}/{domain}") in metrics
            }
            scores[domain] = Score(
                _number(metrics, key, low=0),
                known.get("accuracy"),
                int(_number(metrics, f"samples/{domain}", low=0)),
                known.get("noise"),
                known.get("normalized_accuracy"),
            )
    return scores


def pack_acceptance(content: RecordDict, acceptance: AcceptanceResult) -> None:
    """Add to a reply whether its sender kept what it learned, and each domain's change of loss."""
    changes = {f"change/{domain}": change.mean for domain, change in acceptance.changes.items()}
    content["acceptance"] = MetricRecord({"keep": int(acceptance.keep), **changes})


def unpack_acceptance(content: RecordDict) -> tuple[bool, dict[str, float]]:
    """The inverse of ``pack_acceptance``: whether it was kept, and the changes, nats per byte.

    Raises:
        FedfuseError: when there is none or it is no numbers.
    """
    metrics = _metrics(content, "acceptance")
    changes = {
        domain: _number(metrics, f"change/{domain}") for domain in strip_prefix(metrics, "change/")
    }
    return _number(metrics, "keep", 0, 1) == 1, changes


def pack_gate_loss(content: RecordDict, before: float, after: float) -> None:
    """Add to a reply what its sender's gate minimises, before and after its learning."""
    content["gate-loss"] = MetricRecord({"before": before, "after": after})


def unpack_gate_loss(content: RecordDict) -> tuple[float, float]:
    """The inverse of ``pack_gate_loss``, nats per label row.

    Raises:
        FedfuseError: when there is none or it is no numbers.
    """
    metrics = _metrics(content, "gate-loss")
    return _number(metrics, "before"), _number(metrics, "after")


def _metrics(content: RecordDict, name: str = "metrics") -> MetricRecord:
    record = content.metric_records.get(name)
    if record is None:
        raise FedfuseError(f"expected {name}, got the records {sorted(content)}")
    return record


def _number(
    metrics: Mapping[str, object], name: str, low: float = -math.inf, high: float = math.inf
) -> float:
    value = metrics.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise FedfuseError(
            f"metrics.{name}: expected a finite number in [{low:g}, {high:g}], got {value!r}"
        )
    return float(value)
