"""Size and speed of knowledge on the wire.

Bytes per label row of the whole serialized message, fingerprints and all, with the run config's
default k and top-p; megabytes of it in memory that are encoded or decoded in a second. Of two
bodies of knowledge the worse counts: a real model's of worked answers, and one over the 32,000
tokens of Llama 2, of bigrams counted on the same kind of text, each row of it another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.harness import Timings
from benchmarks.material import load_text, load_tokenizer, train_records
from fedfuse.data.sample import Sample
from fedfuse.flower.messages import pack_knowledge
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.payload import encode_full
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim
from fedfuse.models.causal_lm import load_causal_lm
from fedfuse.simulation.in_process import InProcessGrid, message_bytes
from fedfuse.tokenizers.dataset import TokenizedDataset

MODEL, VOCABULARY = "stories260K", "llama2"
ROWS, ROWS_PER_SAMPLE = 20_000, 40
# Entries that compete for a row's k, and how much rows after one token differ, in nats.
_CANDIDATES, _SPREAD = 256, 1.0


def bigrams(material: Path, rows: int, k: int, seed: int) -> Knowledge:
    """Knowledge of a text's next tokens, from the other text's bigrams, k entries a row.

    At most half of the text's tokens become label rows. The seed is that of what differs between
    rows that follow the same token.
    """
    tokenizer = load_tokenizer(material, VOCABULARY)
    ids = tokenizer.encode([load_text(material)])[0].ids
    rows = min(rows, len(ids) // 2) // ROWS_PER_SAMPLE * ROWS_PER_SAMPLE
    rng = np.random.default_rng(seed)
    before, after, counted = ids[:rows], ids[1 : rows + 1], ids[rows:]
    frequency = np.bincount(counted, minlength=tokenizer.vocab_size) + 0.01
    frequency /= frequency.sum()
    order = np.argsort(counted[:-1], kind="stable")
    starts = np.searchsorted(counted[:-1][order], np.arange(tokenizer.vocab_size + 1))
    width = min(_CANDIDATES, tokenizer.vocab_size - 1)
    indices, logs = np.empty((rows, k), dtype=np.int64), np.empty((rows, k))
    tail_logprob, label = np.empty(rows), np.empty(rows)
    for token in np.unique(before):
        at = np.flatnonzero(before == token)
        seen = counted[1:][order[starts[token] : starts[token + 1]]]
        share = np.bincount(seen, minlength=len(frequency)) / max(len(seen), 1)
        trust = len(seen) / (len(seen) + 8)
        probability = trust * share + (1 - trust) * frequency
        probability /= probability.sum()
        top = np.argpartition(-probability, width)[:width]
        mass = probability[top] * np.exp(_SPREAD * rng.normal(size=(len(at), width)))
        mass *= probability[top].sum() / mass.sum(1, keepdims=True)
        best = np.argsort(-mass, axis=1)
        mass, chosen = np.take_along_axis(mass, best, axis=1), top[best]
        indices[at], logs[at] = chosen[:, :k], np.log(mass[:, :k])
        tail_logprob[at] = np.log1p(-mass[:, :k].sum(1))
        is_label = chosen == after[at][:, None]
        known = np.where(is_label, mass, 0).sum(1)
        label[at] = np.log(np.where(known > 0, known, probability[after[at]] * 0.1))
    kept = (indices == after[:, None]).any(1)
    label = np.where(kept, label, np.minimum(label, np.minimum(logs[:, -1], tail_logprob)))
    return Knowledge(
        offsets=np.arange(0, rows + 1, ROWS_PER_SAMPLE),
        indices=indices,
        logprobs=logs.astype(np.float32),
        tail_logprob=tail_logprob.astype(np.float32),
        label_logprob=label.astype(np.float32),
        label_bytes=rng.integers(100, 200, size=rows // ROWS_PER_SAMPLE),
        tokenizer=tokenizer.fingerprint,
        public="0" * 64,
    )


def of_model(material: Path, rows: int, k: int) -> Knowledge:
    """What a real model knows of worked answers: about ``rows`` rows, or all."""
    lm = load_causal_lm(str(material / "models" / MODEL))
    records = train_records(material, "gsm8k")[: math.ceil(rows / 100)]
    samples = [Sample("Answer:", f" {record['target']}") for record in records]
    return extract(lm, TokenizedDataset(lm.tokenizer, samples, lm.max_length), k)


def example_knowledge(material: Path, k: int, *, seed: int, quick: bool) -> dict[str, Knowledge]:
    """The knowledge to encode; for a check, a small one that needs no model."""
    if quick:
        return {"bigrams": bigrams(material, 400, k, seed)}
    return {"bigrams": bigrams(material, ROWS, k, seed), "model": of_model(material, ROWS, k)}


def bytes_per_row(knowledge: Knowledge, bits: int, top_p: float) -> float:
    """Of the serialized message that carries the knowledge."""
    InProcessGrid(ClientApp(), [{}], {})  # messages belong to one
    content = RecordDict({})
    pack_knowledge(content, encode_full(knowledge, bits, top_p))
    return message_bytes(Message(content, 1, "train.local")) / knowledge.num_rows


def measure_codec(
    known: Mapping[str, Knowledge], timings: Timings, *, top_p: float, repeats: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """The worst of all bodies of knowledge, and everything that it was the worst of."""
    raw: dict[str, Any] = {"top_p": top_p}
    results: dict[str, float] = {}
    speeds: list[float] = []
    for bits in QUANTIZERS:
        sizes = {name: bytes_per_row(k, bits, top_p) for name, k in known.items()}
        whole = {name: bytes_per_row(k, bits, 1.0) for name, k in known.items()}
        results[f"wire_bytes_per_row_{bits}_bits"] = max(sizes.values())
        raw[str(bits)] = {"bytes_per_row": sizes, "bytes_per_row_of_all_k": whole}
        for name, knowledge in known.items():
            sent = trim(knowledge, top_p)
            megabytes = sum(values.nbytes for values in sent.arrays().values()) / 1e6
            message = encode(sent, bits)
            decode(message)  # tables are made once
            jobs: dict[str, Callable[[], object]] = {
                f"encode {bits} {name}": partial(encode, sent, bits),
                f"decode {bits} {name}": partial(decode, message),
            }
            timings.alternate(jobs, repeats)
            for step in ("encode", "decode"):
                speed = megabytes / timings.median(f"{step} {bits} {name}")
                raw[str(bits)][f"{step}_mb_per_second {name}"] = speed
                speeds.append(speed)
    results["codec_mb_per_second"] = min(speeds)
    for name, knowledge in known.items():
        kept = np.isfinite(trim(knowledge, top_p).logprobs).sum(1).mean()
        raw[name] = {"rows": knowledge.num_rows, "k": knowledge.k, "mean_kept_k": float(kept)}
    return results, raw
