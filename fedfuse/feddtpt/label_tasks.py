"""Label tasks for a language model that answers in words.

An answer counts only if it names exactly one label: what names none, or several, is wrong and is
not guessed. A label behind a "not", a "never" or the like is not named, whether it follows at once
or after a "really" or a "be": "not good" is no "good", and a "bad" only where that is listed among
its words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

from fedfuse.data.sample import Sample
from fedfuse.data.templates import parse_template
from fedfuse.errors import check

TEMPLATE = "{prompt}\n\n{input}\nAnswer:"
# Between the words of a phrase, as labels are spelled and as tokenizers give them back.
_BETWEEN = r"[\s_]+"
_DENIALS = r"not|no|never|nor|neither|cannot|without|hardly|barely|scarcely|\w+n['\u2019]t"
_FILLERS = (
    r"an?|the|any|all|at|in|way|that|so|very|too|really|quite|truly|exactly|entirely|completely|"
    r"particularly|especially|necessarily|actually|be|been|being|considered|called|described|as"
)
_DENIED = rf"(?i:(?:{_DENIALS}){_BETWEEN}|non-)(?i:(?:{_FILLERS}){_BETWEEN}){{0,4}}?"


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """A labelled input.

    Attributes:
        text: the input.
        label: one of the labels of its task.
    """

    text: str
    label: str


@dataclass(frozen=True)
class Task:
    """Makes a question of a prompt and an input, and a label of an answer.

    Attributes:
        name: name of the task.
        verbalizer: words or phrases that name a label, by label. They are found as whole words in
            any case, with spaces or underscores between the words of a phrase; a single letter is
            found only as it is written, since "a" is also a word.
        template: text of a question, with ``{prompt}`` and ``{input}`` once each.

    Raises:
        FedfuseError: for fewer than two labels, a label without words, a word that names two
            labels, or another template.
    """

    name: str
    verbalizer: Mapping[str, Sequence[str]]
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        name, given = f"task {self.name!r}", ", ".join(self.verbalizer) or "none"
        check(name, given, "two or more labels", len(self.verbalizer) > 1)
        owner: dict[str, str] = {}
        for label, words in self.verbalizer.items():
            expected = f"at least one word for label {label!r} and none empty"
            check(name, list(words), expected, words and all(map(_folded, words)))
            for word in words:
                other = owner.setdefault(_folded(word), label)
                found = f"{word!r} for {other!r} and {label!r}"
                check(name, found, "words of one label", other == label)
        fields = sorted(field for _, field in parse_template(self.template) if field is not None)
        expected = "a template with {prompt} and {input}, once each"
        check(name, repr(self.template), expected, fields == ["input", "prompt"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.verbalizer)

    def question(self, prompt: str, text: str) -> str:
        """Text that the language model is given."""
        values = {"prompt": prompt, "input": text}
        parts = parse_template(self.template)
        return "".join(literal + (values[field] if field else "") for literal, field in parts)

    def read(self, answer: str) -> str | None:
        """Label that an answer names; None if it names none or more than one."""
        # The group is empty for a denied word.
        found = (_folded(word) for word in self._words.findall(answer) if word)
        named = {self._labels_by_word[word] for word in found}
        return named.pop() if len(named) == 1 else None

    def right(self, answers: Sequence[str], examples: Sequence[LabelledExample]) -> int:
        """Number of answers that name their example's label."""
        pairs = zip(answers, examples, strict=True)
        return sum(self.read(answer) == example.label for answer, example in pairs)

    @cached_property
    def _labels_by_word(self) -> dict[str, str]:
        return {_folded(w): label for label, words in self.verbalizer.items() for w in words}

    @cached_property
    def _words(self) -> re.Pattern[str]:
        # The longest first: "not entailment" is not "entailment".
        words = sorted(self._labels_by_word, key=len, reverse=True)
        parts = (
            re.escape(w) if len(w) == 1 else f"(?i:{_BETWEEN.join(map(re.escape, w.split()))})"
            for w in words
        )
        any_word = "|".join(parts)
        # Listed words before denied ones: "not entailment" may be a label.
        return re.compile(rf"(?<!\w)(?:({any_word})|{_DENIED}(?:{any_word}))(?!\w)")


def label_task(
    name: str,
    samples: Sequence[Sample],
    *,
    words: Mapping[str, Sequence[str]] | None = None,
    template: str = TEMPLATE,
) -> tuple[Task, list[LabelledExample]]:
    """Make a task and its examples of samples with options.

    Where all samples have the same options, these are the labels. Where they differ (multiple
    choice), the labels are letters, and the options are listed below the input.

    Args:
        name: name of the task.
        samples: samples whose prompts are the inputs; see ``fedfuse.data.templates.to_samples``.
        words: words that name a label, by label, for labels that are not words themselves; by
            default a label names itself, with spaces for underscores too.
        template: template of the task.

    Raises:
        FedfuseError: for no samples, samples with fewer than 2 or more than 26 options, or words
            for labels that are not.
    """
    sizes, most = [len(sample.options) for sample in samples], len(ascii_uppercase)
    found = f"{len(sizes)} samples with {sorted(set(sizes))} options"
    expected = f"at least one sample, each with 2 to {most} options"
    check(f"task {name!r}", found, expected, sizes and min(sizes) >= 2 and max(sizes) <= most)
    if len({sample.options for sample in samples}) == 1:
        labels = [option.strip() for option in samples[0].options]
        examples = [LabelledExample(sample.prompt, labels[sample.label]) for sample in samples]
    else:
        labels = list(ascii_uppercase[: max(sizes)])
        examples = [LabelledExample(_choices(sample), labels[sample.label]) for sample in samples]
    given = dict(words or {})
    found = f"some for {', '.join(sorted(given.keys() - labels))}"
    expected = f"words for its labels {', '.join(labels)}"
    check(f"task {name!r}", found, expected, given.keys() <= set(labels))
    verbalizer = {
        label: tuple(dict.fromkeys(given.get(label, (label, label.replace("_", " ")))))
        for label in labels
    }
    return Task(name, verbalizer, template), examples


def _choices(sample: Sample) -> str:
    options = zip(ascii_uppercase, sample.options, strict=False)
    return "\n".join([sample.prompt, *(f"{letter}.{option}" for letter, option in options)])


def _folded(word: str) -> str:
    """Fold a word for comparison: a single letter as it is, anything else in lower case, with one
    space between the words of a phrase.
    """
    plain = re.sub(rf"(?<=[^\W_]){_BETWEEN}(?=[^\W_])", " ", " ".join(word.split()))
    return plain if len(plain) == 1 else plain.lower()
