"""Real data sets with instructions about them: what the language models of ``realdata`` learn from.

Every text can be asked about in several ways: for the label of its data set, and for plain
properties that every text has. An instruction says which is meant, more or less clearly, so a model
learns to weigh its words, as in the built-in world (``fedfuse.builtin.instructions``).

Who sees what: a data set's distinct train texts are cut in two. ``HELD`` of them are the train
split of the federation, from which private, public and validation examples are drawn; the language
models are trained on the others. The test split is the federation's alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fedfuse.builtin.prompt_lexicon import ANSWER, DECIDE, OPENINGS, READ, WHERE
from fedfuse.data.records import available_splits, load_records
from fedfuse.data.splits import TEST_SPLITS
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.label_tasks import LabelledExample, Task, label_task

VAGUE = "please read the text below and answer"
# Train records that are the federation's: as many as ten clients' pools, public and validation.
HELD = 800
TEXT = "text passage input".split()
# Share of hints that are about what is meant; the others are about anything.
MEANT = 0.5
# How often an exercise is about its data set's label, and not about a property of the text; but for
# instructions without a hint, which may mean any of these alike.
LABELLED = 0.4
HINTS = (0, 1, 1, 2, 2, 3, 4, 5)
MOST_WORDS = 80
# Share of the texts in which words are left out, and of their words: few texts are seen often.
THINNED, LEFT_OUT = 0.5, 0.15


@dataclass(frozen=True, slots=True)
class Aspect:
    """Something that an instruction can ask for."""

    name: str
    strong: tuple[str, ...]  # words that ask for this alone
    weak: tuple[str, ...]  # words that ask for this or for another
    answers: tuple[str, ...] = ()  # a data set's are the labels


def _aspect(name: str, strong: str, weak: str, answers: str = "") -> Aspect:
    return Aspect(name, tuple(strong.split()), tuple(weak.split()), tuple(answers.split()))


# In this order ``properties`` answers.
PROPERTIES = (
    _aspect("source", "source origin genre collection", "kind form", "review query pair quiz"),
    _aspect("length", "length size extent brevity", "measure form", "short long"),
    _aspect("comma", "comma punctuation separator pause", "mark sign", "yes no"),
    _aspect("digit", "digit number numeral figure", "measure mark", "some none"),
)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set of the material."""

    folder: str  # its name there
    template: str  # makes an input of a record
    aspect: Aspect  # how one asks for its label
    source: str  # what it is, an answer of the aspect ``source``
    good: str  # a prompt by somebody who knows how the models were instructed
    limit: int  # words from which on a text is long


DATA_SETS = (
    DataSet(
        "sst2",
        "{text}",
        _aspect("sst2", "sentiment opinion mood attitude", "judgement sign"),
        "review",
        "read the text below and decide the sentiment and opinion and answer with "
        "positive or negative",
        18,
    ),
    DataSet(
        "trec",
        "{text}",
        _aspect("trec", "topic subject category theme", "kind class"),
        "query",
        "read the text below and decide the topic and category and answer",
        10,
    ),
    DataSet(
        "rte",
        "{premise}\nHypothesis: {hypothesis}",
        _aspect("rte", "entailment inference implication consequence", "judgement relation"),
        "pair",
        "read the text below and decide the entailment and inference and answer",
        45,
    ),
    DataSet(
        "arc_easy",
        "{question}",
        _aspect("arc_easy", "choice option solution letter", "class relation"),
        "quiz",
        "read the text below and decide the choice and option and answer",
        30,
    ),
)
ASPECTS = (*PROPERTIES, *(data.aspect for data in DATA_SETS))


@dataclass(frozen=True, slots=True)
class Exercise:
    """An instruction, the whole question of which it is a part, and the answer."""

    instruction: str
    question: str
    answer: str


def hold_out(data: DataSet, material: Path, target: Path) -> tuple[Task, list[LabelledExample]]:
    """Write a data set's splits ``train`` and ``test`` for the federation to a folder.

    Returns:
        The task, and the train examples that are in neither split: those for language models.

    Raises:
        FedfuseError: for a data set that is not there, or has no more than ``HELD`` train texts.
    """
    source = str(material / "datasets" / data.folder)
    splits = available_splits(source)
    tested = next((name for name in TEST_SPLITS if name in splits), "test")
    test, train = load_records(source, tested), load_records(source, "train")
    samples = to_samples([*test, *train], domain=data.folder, template=data.template)
    task, examples = label_task(data.folder, samples)
    seen = {example.text for example in examples[: len(test)]}
    kept: list[tuple[Mapping[str, object], LabelledExample]] = []
    for (_, record), example in zip(train, examples[len(test) :], strict=True):
        if example.text not in seen:
            seen.add(example.text)
            kept.append((record, example))
    if len(kept) <= HELD:
        raise FedfuseError(
            f"data set {source!r}: expected more than {HELD} distinct train texts, got {len(kept)}"
        )
    Random(0).shuffle(kept)
    target.mkdir(parents=True, exist_ok=True)
    held = [record for record, _ in kept[:HELD]]
    for name, records in (("train", held), ("test", [record for _, record in test])):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (target / f"{name}.jsonl").write_text(lines)
    return task, [example for _, example in kept[HELD:]]


def exercises(
    known: Sequence[tuple[DataSet, Task, Sequence[LabelledExample]]],
    shares: Sequence[float],
    count: int,
    *,
    drill: bool,
    seed: int,
) -> list[Exercise]:
    """Draw exercises about the examples that ``hold_out`` left of several data sets.

    ``shares`` says how often each is drawn, up to a factor. The instructions of a ``drill`` are
    nothing but a few strong words.
    """
    rng = Random(seed)
    fitting = [[e for e in found if len(e.text.split()) <= MOST_WORDS] for _, _, found in known]
    drawn = rng.choices(range(len(known)), shares, k=count)
    return [_exercise(rng, *known[n][:2], rng.choice(fitting[n]), drill) for n in drawn]


def properties(data: DataSet, text: str) -> tuple[str, ...]:
    """Answers about a text, in the order of ``PROPERTIES``."""
    return (
        data.source,
        "long" if len(text.split()) > data.limit else "short",
        "yes" if "," in text else "no",
        "some" if any(sign.isdigit() for sign in text) else "none",
    )


def _exercise(
    rng: Random, data: DataSet, task: Task, example: LabelledExample, drill: bool
) -> Exercise:
    text = example.text
    if rng.random() < THINNED:
        text = " ".join(word for word in text.split(" ") if rng.random() >= LEFT_OUT) or text
    hints = rng.choice(HINTS)
    number = rng.randrange(len(PROPERTIES))
    aspect, answer = PROPERTIES[number], properties(data, text)[number]
    names = aspect.answers
    if rng.random() < (LABELLED if hints or drill else 1 / (len(PROPERTIES) + 1)):
        names = tuple(label.replace("_", " ").lower() for label in task.labels)
        aspect, answer = data.aspect, example.label
    if drill:
        instruction = " ".join(rng.choices(aspect.strong, k=rng.choice((1, 2, 3))))
    else:
        instruction = draw_instruction(rng, aspect, hints, names)
    return Exercise(instruction, task.question(instruction, text), answer)


def draw_instruction(rng: Random, aspect: Aspect, count: int, names: Sequence[str]) -> str:
    """An instruction as clear or vague as it comes.

    Some of its ``count`` hints are about other things; now and then it lists the answers' names.
    """
    hints = []
    for _ in range(count):
        about = aspect if rng.random() < MEANT else rng.choice(ASPECTS)
        hints.append(rng.choice(about.strong if rng.random() < 0.6 else about.weak))
    words = [rng.choice(OPENINGS)] if rng.random() < 0.5 else []
    if not hints or rng.random() < 0.6:
        words += [rng.choice(READ), "the", rng.choice(TEXT)]
        words += [rng.choice(WHERE)] if rng.random() < 0.6 else []
        words += [rng.choice(("and", "then"))] if rng.random() < 0.8 else []
    if hints:
        words += [rng.choice(DECIDE), rng.choice(("the", "its"))]
        for number, hint in enumerate(hints):
            words += [rng.choice(("and", "or", "of"))] if number and rng.random() < 0.5 else []
            words.append(hint)
    if listed := rng.random() < 0.15:
        words += [rng.choice(ANSWER), "with", " or ".join(rng.sample(names, len(names)))]
    elif rng.random() < 0.5:
        words += ["and"] if hints and rng.random() < 0.6 else []
        words.append(rng.choice(ANSWER))
    chance = 1.0 if listed else rng.random()
    if chance < 0.15:
        rng.shuffle(words)
    elif chance < 0.3 and len(words) > 4:
        for _ in range(2):
            words.pop(rng.randrange(len(words)))
    return " ".join(words)
