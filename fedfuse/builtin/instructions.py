"""Notes, instructions about them, and the answers, on which the built-in models are trained.

An instruction asks for one aspect in one form, more or less clearly: it has up to five hints, of
which some are about other aspects, and up to three words for the form, of which some are wrong. So
a model learns to weigh words, and each good one that is added to a prompt makes its answers more
often right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from fedfuse.builtin import prompt_lexicon as lexicon
from fedfuse.builtin.prompt_lexicon import ASPECTS, BRANDS, FORMS, LAYOUT, Aspect

# Shares of hints and of words for the form that are meant; the rest are drawn from all.
MEANT_HINTS, MEANT_FORMS = 0.45, 0.6
# Share of the instructions that name one label, which then is the answer, and that name all.
ONE_LABEL, ALL_LABELS = 0.1, 0.2
# Aspects that nobody asks for are left open this often.
OPEN = 0.2
MAX_WORDS = 22


@dataclass(frozen=True, slots=True)
class Exercise:
    """An instruction, a note, and the word that answers."""

    instruction: str
    note: str
    answer: str

    @property
    def question(self) -> str:
        """Text that a language model is given."""
        return LAYOUT.format(prompt=self.instruction, input=self.note)


def draw_note(rng: Random, values: Mapping[str, int]) -> tuple[str, dict[str, int]]:
    """Draw a note with given values of some aspects.

    Args:
        rng: random source of the rest.
        values: index of the label by name of the aspect; any other is drawn, or left open.

    Returns:
        The text, and the label's index of every aspect that it has.
    """
    known, word = {}, {}
    for aspect in ASPECTS:
        value = values.get(aspect.name)
        if value is None and rng.random() < OPEN:
            word[aspect.name] = rng.choice(aspect.neutral)
            continue
        value = rng.randrange(len(aspect.labels)) if value is None else value
        known[aspect.name], word[aspect.name] = value, rng.choice(aspect.words[value])
    parts = [
        word["day"],
        f"{word['amount']} {word['verdict']} {rng.choice(BRANDS)} {word['goods']}",
        f"went by {word['carrier']}",
        f"to the {word['region']}",
    ]
    start = rng.randrange(2)  # the day comes first or last
    return " ".join(parts[start:] + parts[:start]), known


def draw_instruction(
    rng: Random, aspect: Aspect, form: str, hints: int, form_words: int, labels: list[str]
) -> str:
    """Draw an instruction of at most ``MAX_WORDS`` words.

    Args:
        rng: random source.
        aspect: aspect that it asks for.
        form: form of the answer, a key of ``FORMS``.
        hints: number of words about the aspect.
        form_words: number of words about the form.
        labels: labels that it names.
    """
    asked = [
        _hint(rng, aspect if rng.random() < MEANT_HINTS else rng.choice(ASPECTS))
        for _ in range(hints)
    ]
    forms = [
        rng.choice(FORMS[form if rng.random() < MEANT_FORMS else rng.choice(list(FORMS))])
        for _ in range(form_words)
    ]
    words = [rng.choice(lexicon.OPENINGS)] if rng.random() < 0.5 else []
    if not asked or rng.random() < 0.6:
        words += [rng.choice(lexicon.READ), "the", rng.choice(lexicon.NOTE)]
        words += [rng.choice(lexicon.WHERE)] if rng.random() < 0.6 else []
        words += [rng.choice(("and", "then"))] if asked or forms else []
    if asked:
        words += [rng.choice(lexicon.DECIDE), rng.choice(("the", "its"))]
        words += _list(rng, asked, ("and", "or", "of"))
        words += ["of", "the", rng.choice(lexicon.NOTE)] if rng.random() < 0.3 else []
    if forms or labels or rng.random() < 0.3:
        words += ["and"] if asked and rng.random() < 0.6 else []
        words += [rng.choice(lexicon.ANSWER)]
    if forms or labels:
        words += [rng.choice(("with", "using", "by", "in", "as"))]
        words += ["a"] if rng.random() < 0.5 else []
        words += forms + _list(rng, labels, ("or",))
    return " ".join(_disorder(rng, words)[:MAX_WORDS])


def draw_exercise(rng: Random) -> Exercise:
    """Draw an instruction, clear or vague, and a note that can answer it."""
    aspect, form = rng.choice(ASPECTS), rng.choice(list(FORMS))
    value = rng.randrange(len(aspect.labels))
    labels: list[str] = []
    chance = rng.random()
    note, _ = draw_note(rng, {aspect.name: value})
    if chance < ONE_LABEL:
        value = rng.randrange(len(aspect.labels))
        labels = [aspect.labels[value]]
    elif chance < ONE_LABEL + ALL_LABELS:
        labels, form = rng.sample(aspect.labels, len(aspect.labels)), "word"
    hints, form_words = rng.choice((0, 1, 2, 2, 3, 4, 5)), rng.choice((0, 0, 1, 2, 3))
    instruction = draw_instruction(rng, aspect, form, hints, form_words, labels)
    return Exercise(instruction, note, answer(aspect, value, form))


def draw_drill(rng: Random) -> Exercise:
    """Draw an exercise for the first stage: its instruction is nothing but clear words."""
    aspect, form = rng.choice(ASPECTS), rng.choice(list(FORMS))
    value = rng.randrange(len(aspect.labels))
    note, _ = draw_note(rng, {aspect.name: value})
    words = rng.choices(aspect.strong, k=rng.choice((1, 2)))
    words += rng.choices(FORMS[form], k=rng.choice((1, 2)))
    return Exercise(" ".join(rng.sample(words, len(words))), note, answer(aspect, value, form))


def answer(aspect: Aspect, value: int, form: str) -> str:
    """Answer for a value of an aspect."""
    return (aspect.labels if form == "word" else aspect.codes)[value]


def _hint(rng: Random, aspect: Aspect) -> str:
    return rng.choice(aspect.strong if rng.random() < 0.6 else aspect.weak)


def _list(rng: Random, words: list[str], links: tuple[str, ...]) -> list[str]:
    """Words in order, some with a link between them."""
    linked: list[str] = []
    for number, word in enumerate(words):
        linked += [rng.choice(links)] if number and rng.random() < 0.5 else []
        linked.append(word)
    return linked


def _disorder(rng: Random, words: list[str]) -> list[str]:
    """Shuffle words, or leave some out, now and then, so that a model knows odd prompts."""
    chance = rng.random()
    if chance < 0.15:
        return rng.sample(words, len(words))
    if chance < 0.3 and len(words) > 4:
        left_out = set(rng.sample(range(len(words)), 2))
        return [word for number, word in enumerate(words) if number not in left_out]
    return words
