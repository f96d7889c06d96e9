"""Blind questions and their answers in messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError, check
from fedfuse.evaluation.options import OptionLogprobs, existing, possible
from fedfuse.flower.messages import arrays_to_record, record_to_arrays

_QUESTIONS = "questions"


def pack_questions(content: RecordDict, questions: Sequence[Sample]) -> None:
    """Add blind questions to a message's content: prompts and options, and nothing else."""
    groups = [
        [list(options), [[question.prompt, question.turns] for question in group]]
        for options, group in groupby(questions, key=lambda question: question.options)
    ]
    content[_QUESTIONS] = ConfigRecord({"json": json.dumps(groups, ensure_ascii=False)})


def unpack_questions(content: RecordDict) -> list[Sample]:
    """Read blind questions out of a message's content, in their order; none where it has none.

    Raises:
        FedfuseError: when they are malformed.
    """
    if _QUESTIONS not in content:
        return []
    try:
        groups = json.loads(str(content.config_records[_QUESTIONS]["json"]))
        return [
            Sample(str(prompt), "", options=tuple(map(str, options)), turns=_turns(turns))
            for options, prompts in groups
            for prompt, turns in prompts
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FedfuseError(f"{_QUESTIONS}: expected prompts with options, got {error}") from error


def _turns(found: Sequence[Sequence[object]]) -> tuple[tuple[str, str], ...]:
    return tuple((str(role), str(text)) for role, text in found)


def pack_options(content: RecordDict, logprobs: OptionLogprobs) -> None:
    """Add a model's log-probabilities of the options of questions, ``[Q, O]``."""
    content[_QUESTIONS] = arrays_to_record({"logprobs": logprobs.astype(np.float32)})


def unpack_options(content: RecordDict, questions: Sequence[Sample]) -> OptionLogprobs:
    """Read them out of a message's content; no question's add to more than one, whatever was sent.

    Raises:
        FedfuseError: when there are none, or not a finite number for each option.
    """
    record, exists = content.get(_QUESTIONS), existing(questions)
    if not isinstance(record, ArrayRecord) or set(record) != {"logprobs"}:
        raise FedfuseError(f"expected answers to questions, got the records {sorted(content)}")
    sent = record_to_arrays(record)["logprobs"]
    found, good = f"{sent.dtype}{list(sent.shape)}", sent.shape == exists.shape
    check("options", found, f"float32{list(exists.shape)}", good and sent.dtype == np.float32)
    logprobs = np.where(exists, sent.astype(np.float64), -np.inf)
    good = bool((np.isfinite(logprobs) == exists).all())
    check("options", "a number that is not finite", "a finite number for each option", good)
    return possible(logprobs)
