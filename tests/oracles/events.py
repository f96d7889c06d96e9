"""Slow, obvious versions of events: of a teacher's rows, and of the loss over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedfuse.config.training import Objective
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import LabelRows

Event = frozenset[int]


def alignment(
    source: LabelRows, target: LabelRows, paired: Sequence[int]
) -> list[tuple[int, int, int]]:
    """``Alignment``'s fields of every target row, from the rows paired by their place."""
    result = []
    for t, pair in enumerate(paired):
        answer = (-1, 1, 0)
        if pair >= 0:
            end, goal = int(source.byte_end[pair]), int(target.byte_end[t])
            if end < 0 or goal <= end:
                answer = (pair, 1, 0)
            else:
                for last in range(pair, len(source.token)):
                    same_sample = source.sample_of_row[last] == source.sample_of_row[pair]
                    if same_sample and source.byte_end[last] == goal:
                        answer = (pair, last - pair + 1, 0)
                        break
        else:
            # Go back to the row where the covering source token begins.
            for before in range(t - 1, -1, -1):
                if target.sample_of_row[before] != target.sample_of_row[t]:
                    break
                if result[before][0] >= 0 and result[before][2] == 0:
                    row, num_source_tokens, _ = result[before]
                    inside = 0 <= target.byte_start[t] < source.byte_end[row]
                    if (
                        num_source_tokens == 1
                        and inside
                        and target.byte_end[t] <= source.byte_end[row]
                    ):
                        answer = (row, 1, t - before)
                    break
        result.append(answer)
    return result


def space_shift_of(
    source: LabelRows,
    target: LabelRows,
    row: int,
    t: int,
    source_bytes: Sequence[bytes],
    target_bytes: Sequence[bytes],
) -> int:
    """What is to be done to the source's tokens: 1 a space in front, -1 the space taken away."""

    def extra(rows: LabelRows, at: int, texts: Sequence[bytes]) -> bool:
        text, begin = texts[int(rows.token[at])], rows.byte_start[at]
        # Inside a text a comma has no space in front although words that may come there have one.
        word = begin == 0 or text.decode(errors="replace")[1:2].isalnum()
        return word and text.startswith(b" ") and len(text) == rows.byte_end[at] - begin + 1

    if source.byte_end[row] < 0 or target.byte_end[t] < 0:
        return 0
    return int(extra(target, t, target_bytes)) - int(extra(source, row, source_bytes))


def begins_with(spelled: Mapping[int, Sequence[int]], read: Sequence[int]) -> Event:
    """Student tokens whose spelling in the teacher's tokens begins with those."""
    return frozenset(v for v, s in spelled.items() if list(s[: len(read)]) == list(read))


def ending(
    spelled: Mapping[int, Sequence[int]], read: Sequence[int], texts: Sequence[bytes], byte: bytes
) -> Event:
    """The student tokens that are what was read, if none goes on from there with that byte."""
    whole = frozenset(v for v, s in spelled.items() if list(s) == list(read))
    if not whole:
        return whole
    text = texts[min(whole)]
    longer = begins_with(spelled, read) - whole
    on = {texts[v][len(text) : len(text) + 1] for v in longer} - {b""}
    return frozenset() if byte in on else whole


def joined(events: Iterable[tuple[Event, float]]) -> list[tuple[Event, float]]:
    """Events that share a token made one, until none do."""
    result: list[tuple[Event, float]] = []
    for event, mass in events:
        if not event or mass <= 0:
            continue
        meeting = [other for other in result if other[0] & event]
        result = [other for other in result if not other[0] & event]
        for other, more in meeting:
            event, mass = event | other, mass + more
        result.append((event, mass))
    return result


def along_label(
    knowledge: Knowledge,
    source: LabelRows,
    first: int,
    num_source_tokens: int,
    label: int,
    teacher_spelling: Mapping[int, Sequence[int]],
    student_spelling: Mapping[int, Sequence[int]],
    student_bytes: Sequence[bytes],
    first_byte: Mapping[int, bytes],
) -> list[tuple[Event, float]]:
    """Events and probabilities where teacher and student stand at one place.

    ``first_byte`` is that of each teacher token, none for the end of a text; other special tokens
    have no entry.
    """
    result: list[tuple[Event, float]] = []
    read: list[int] = []
    likelihood = 1.0
    for step in range(num_source_tokens):
        row = first + step
        token = int(source.token[row])
        for entry, logprob in zip(knowledge.indices[row], knowledge.logprobs[row], strict=True):
            if int(entry) == token or logprob == -math.inf:
                continue
            event = begins_with(teacher_spelling, [*read, int(entry)])
            if not event and step == 0 and int(entry) in student_spelling:
                event = frozenset([student_spelling[int(entry)][0]])
            if not event and step and int(entry) in first_byte:
                event = ending(teacher_spelling, read, student_bytes, first_byte[int(entry)])
            result.append((event, likelihood * math.exp(logprob)))
        likelihood *= math.exp(knowledge.label_logprob[row])
        read.append(token)
    event = begins_with(teacher_spelling, read)
    result.append((event if label in event else frozenset([label]), likelihood))
    return joined(result)


def inside(
    knowledge: Knowledge,
    source: LabelRows,
    row: int,
    before: Sequence[int],
    label: int,
    student_spelling: Mapping[int, Sequence[int]],
) -> list[tuple[Event, float]]:
    """Events and probabilities where the student has read ``before`` of the teacher's token."""
    kept: list[tuple[Event, float]] = []
    total = known = 0.0
    for entry, logprob in zip(knowledge.indices[row], knowledge.logprobs[row], strict=True):
        if logprob == -math.inf:
            continue
        spelled = list(student_spelling.get(int(entry), []))
        if spelled or int(entry) == int(source.token[row]):
            known += math.exp(logprob)
        if int(entry) == int(source.token[row]):
            event = frozenset([label])
        elif spelled[: len(before)] == list(before):
            event = frozenset(spelled[len(before) : len(before) + 1])
        else:
            continue
        total += math.exp(logprob)
        kept.append((event, math.exp(logprob)))
    return joined((event, mass / total * known) for event, mass in kept)


def joint_loss(
    logits: Tensor,
    label: Sequence[int],
    teachers: Sequence[Sequence[tuple[Sequence[tuple[Event, float]], float]]],
    objective: Objective,
) -> Tensor:
    """Mean joint loss: ``teachers[r]`` has the events of each teacher of row r, and its weight."""
    temperature, total = objective.temperature, logits.new_zeros(())
    for row, z in enumerate(logits):
        total = total + objective.label_weight * -torch.log_softmax(z, 0)[label[row]]
        for events, weight in teachers[row]:
            covered = frozenset().union(*(event for event, _ in events))
            rest = frozenset(range(len(z))) - covered
            classes = [(e, p) for e, p in events]
            if rest:
                classes.append((rest, max(0.0, 1 - sum(p for _, p in events))))
            scores = torch.stack([z[sorted(e)].logsumexp(0) for e, _ in classes]) / temperature
            student = torch.log_softmax(scores, 0)
            teacher = torch.tensor([p for _, p in classes], dtype=z.dtype) ** (1 / temperature)
            teacher = teacher / teacher.sum()
            if objective.divergence == "reverse-kl":
                loss = (student.exp() * (student - teacher.clamp_min(1e-6).log())).sum()
            else:
                loss = -(teacher * student).sum()
            if objective.divergence == "forward-kl":
                loss = loss + torch.special.xlogy(teacher, teacher).sum()
            share = (1 - objective.label_weight) * weight * temperature**2
            total = total + share * loss
    return total / max(1, len(logits))
