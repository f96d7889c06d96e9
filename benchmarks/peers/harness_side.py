"""Scoring of questions by the lm-evaluation-harness, in its environment.

``python -m benchmarks.peers.harness_side WORK OUTCOME``

Tokenizing is part of a scoring. The harness passes a fixed number of texts at a time; several are
tried. Texts begin with the library's start token, so that both sides score the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.peers.meter import Meter
from benchmarks.peers.work import Measurement, Work, write_outcome


def measure(work: Work) -> dict[str, Measurement]:
    """Scorings of all options, by the size of the batches."""
    torch.set_num_threads(1)
    lm = HFLM(pretrained=work.student, device="cpu", dtype="float32")
    pairs = [
        (work.start + prompt, option) for prompt, options in work.questions for option in options
    ]
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number)
        for number, pair in enumerate(pairs)
    ]
    lm.loglikelihood(asked[:4], disable_tqdm=True)  # the first passes set things up
    encoded = [lm._encode_pair(*pair) for pair in pairs]
    more = {"tokens": [[prompt, option] for prompt, option in encoded]}
    outcome = {}
    for size in work.batch_sizes:
        lm.batch_size_per_gpu = size
        meter, found = Meter(), list[list[float]]()
        meter.repeat(
            lambda found=found: found.append(  # type: ignore[misc]
                [logprob for logprob, _ in lm.loglikelihood(asked, disable_tqdm=True)]
            ),
            1,
        )
        outcome[f"harness {size}"] = Measurement(
            meter.seconds, meter.cpu_seconds, meter.peak_bytes, found[0], more
        )
    return outcome


if __name__ == "__main__":
    write_outcome(Path(sys.argv[2]), measure(Work.read(Path(sys.argv[1]))))
