"""The built-in world: text domains whose source is known, so that every result has an exact floor.

A sentence is drawn from a small probabilistic grammar that all domains share (when, where, a frame
around an entity), then its answer from the domain's table ``P(answer | entity)``. Base models are
pretrained on the same grammar with uniform answers: they know the language and none of the
associations. What a model can learn at best is therefore exact: the table's conditional entropy,
and the Bayes choice on questions.

Everything follows from the seed; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from fedfuse.builtin.text_lexicon import (
    COLOURS,
    DAYS,
    FETCH,
    LEXICONS,
    MONTHS,
    PLACES,
    SHELVE,
    Lexicon,
)
from fedfuse.config.data import DataConfig
from fedfuse.data.partition import partition
from fedfuse.data.sample import Floor, Sample, Splits
from fedfuse.errors import FedfuseError, check

# Concentration of the Dirichlet prior of a table's rows: about five plausible answers of 16.
CONCENTRATION = 0.15
# Grammar parts are drawn anew until the sentence is in no other split; so many draws suffice.
MAX_DRAWS = 1000
OPTIONS_PER_QUESTION = 4


class Domain:
    """One domain: its words and its table of answers given entities."""

    def __init__(self, lexicon: Lexicon, seed: int) -> None:
        rng = np.random.default_rng([seed, *lexicon.name.encode()])
        self.lexicon = lexicon
        # [entities, answers] P(answer | entity)
        self.table: Float64[ndarray, "entities answers"] = rng.dirichlet(
            np.full(len(lexicon.answers), CONCENTRATION), size=len(lexicon.entities)
        )

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.lexicon.name

    def sentence(self, entity: int, answer: int, rng: np.random.Generator) -> Sample:
        """Draw the grammar around a given entity and answer."""
        frame = self.lexicon.frames[rng.integers(len(self.lexicon.frames))]
        prompt = _prompt(frame, {"entity": self.lexicon.entities[entity]}, rng)
        return Sample(prompt, answer_text(self.lexicon.answers[answer]), self.name)

    def draw_answers(self, entities: Sequence[int], rng: np.random.Generator) -> list[int]:
        """One independent draw from the table per entity."""
        return [int(rng.choice(self.table.shape[1], p=self.table[e])) for e in entities]

    def systematic_answers(self, entity: int, repeats: int, rng: np.random.Generator) -> list[int]:
        """``repeats`` draws from the entity's row by systematic sampling.

        Unbiased like independent draws, with a far smaller variance: a perfect model's test loss is
        then almost exactly the entropy floor.
        """
        points = (np.arange(repeats) + rng.random()) / repeats
        answers = np.searchsorted(self.table[entity].cumsum(), points)
        return [int(a) for a in answers.clip(max=self.table.shape[1] - 1)]

    def entropy(self) -> float:
        """Exact conditional entropy of the answer given the entity, nats per answer."""
        positive = np.where(self.table > 0, self.table, 1.0)
        return float(-(self.table * np.log(positive)).sum(1).mean())

    def answer_bytes(self) -> float:
        """Expected UTF-8 bytes of an answer."""
        lengths = np.array([len(answer_text(a).encode()) for a in self.lexicon.answers])
        return float((self.table @ lengths).mean())

    def question(self, seen: set[str], rng: np.random.Generator) -> tuple[Sample, float]:
        """A multiple-choice question and the probability that the Bayes choice is right.

        With its right answer it is in no other split, or a model could have it by heart.

        The right answer is drawn from the table, the wrong ones uniformly from the rest. So given
        the options the right one is each with probability proportional to its table entry.
        """
        entity = int(rng.integers(len(self.lexicon.entities)))
        right = self.draw_answers([entity], rng)[0]
        others = [a for a in range(self.table.shape[1]) if a != right]
        wrong = rng.choice(others, size=OPTIONS_PER_QUESTION - 1, replace=False)
        choices = rng.permutation([right, *wrong])
        weights = self.table[entity, choices]
        sentence = _unseen(self, entity, right, seen, rng)
        options = tuple(answer_text(self.lexicon.answers[c]) for c in choices)
        label = int(np.flatnonzero(choices == right)[0])
        asked = Sample(sentence.prompt, options[label], self.name, options, label)
        return asked, float(weights.max() / weights.sum())


class World:
    """All domains of one seed, and the splits drawn from them."""

    def __init__(self, seed: int, domains: int = len(LEXICONS)) -> None:
        """Draw the tables.

        Raises:
            FedfuseError: for a number of domains that the lexicon does not hold.
        """
        good = 1 <= domains <= len(LEXICONS)
        check("data.domains", domains, f"1 to {len(LEXICONS)}", good)
        self.seed = seed
        self.domains = [Domain(lexicon, seed) for lexicon in LEXICONS[:domains]]

    def splits(self, data: DataConfig, num_partitions: int) -> Splits:
        """Draw disjoint splits and deal the private one to the clients.

        ``data.test`` counts test sentences per entity, whose answers are drawn systematically from
        the entity's row; the other sizes count samples per domain.
        """
        rng, seen = np.random.default_rng([self.seed, 1]), set[str]()
        private, public, holdout, test, questions = (list[Sample]() for _ in range(5))
        bayes: dict[str, float] = {}
        for domain in self.domains:
            # The test set first: its answers must not depend on what other splits took.
            test += _test(domain, data.test, seen, rng)
            public += _draw(domain, data.public, seen, rng)
            holdout += _draw(domain, data.holdout, seen, rng)
            private += _draw(domain, data.private, seen, rng)
            asked = [domain.question(seen, rng) for _ in range(data.questions)]
            questions += [sample for sample, _ in asked]
            bayes[domain.name] = float(np.mean([right for _, right in asked])) if asked else 0.0
        blind = [s for domain in self.domains for s in _draw(domain, data.blind, seen, rng)]
        loss = {d.name: d.entropy() / d.answer_bytes() for d in self.domains}
        parts = partition(private, data.partition, num_partitions, data.alpha, self.seed)
        return Splits(parts, public, test, holdout, questions, blind, Floor(loss, bayes))


def _test(domain: Domain, repeats: int, seen: set[str], rng: np.random.Generator) -> list[Sample]:
    entities = range(len(domain.lexicon.entities))
    answers = [domain.systematic_answers(entity, repeats, rng) for entity in entities]
    pairs = [(entity, answer) for entity in entities for answer in answers[entity]]
    return [_unseen(domain, entity, answer, seen, rng) for entity, answer in pairs]


def _draw(domain: Domain, count: int, seen: set[str], rng: np.random.Generator) -> list[Sample]:
    entities = rng.integers(len(domain.lexicon.entities), size=count).tolist()
    pairs = zip(entities, domain.draw_answers(entities, rng), strict=True)
    return [_unseen(domain, entity, answer, seen, rng) for entity, answer in pairs]


def pretraining_text(samples_per_domain: int, seed: int) -> list[Sample]:
    """Pretraining text of base models: the language without the associations.

    Half of the sentences are the domains' own, with uniform answers. The other half are facts about
    single words: the shelf mark under which each is filed, asked both ways. As in real pretrained
    models, every word therefore has a meaning of its own before fine-tuning (with uniform answers
    alone, a domain's answers would be interchangeable, and no adapter could tell them apart), while
    what links a domain's entities to its answers is still unknown.
    """
    rng = np.random.default_rng([seed, 2])
    marks = shelf_marks(seed)
    drawn: list[Sample] = []
    for lexicon in LEXICONS:
        domain = Domain(lexicon, seed)
        words = lexicon.entities + lexicon.answers
        entities = rng.integers(len(lexicon.entities), size=samples_per_domain)
        answers = rng.integers(len(lexicon.answers), size=samples_per_domain)
        facts = rng.integers(len(words), size=samples_per_domain)
        for i in range(samples_per_domain):
            if i % 2 == 0:
                drawn.append(domain.sentence(int(entities[i]), int(answers[i]), rng))
                continue
            prompt, answer = SHELVE if i % 4 == 1 else FETCH
            word = words[facts[i]]
            first, second = marks[word]
            fill = {"word": word, "first": first, "second": second}
            drawn.append(Sample(_prompt(prompt, fill, rng), answer.format(**fill), domain.name))
    return drawn


def shelf_marks(seed: int) -> dict[str, tuple[str, str]]:
    """A pair of colours of its own for every word of every domain."""
    words = [word for lexicon in LEXICONS for word in lexicon.entities + lexicon.answers]
    pairs = [(first, second) for first in COLOURS for second in COLOURS]
    chosen = np.random.default_rng([seed, 3]).permutation(len(pairs))[: len(words)]
    return {word: pairs[i] for word, i in zip(words, chosen, strict=True)}


def _prompt(frame: str, fill: dict[str, str], rng: np.random.Generator) -> str:
    when, moments = ("on", DAYS) if rng.random() < 0.5 else ("in", MONTHS)
    place = PLACES[rng.integers(len(PLACES))]
    moment = moments[rng.integers(len(moments))]
    return f"{when} {moment} {frame.format(place=place, **fill)}"


def answer_text(word: str) -> str:
    """An answer as it stands behind a prompt."""
    return f" {word}."


def _unseen(
    domain: Domain, entity: int, answer: int, seen: set[str], rng: np.random.Generator
) -> Sample:
    """A sentence that no split holds yet: only the grammar is drawn anew, never the answer."""
    for _ in range(MAX_DRAWS):
        sample = domain.sentence(entity, answer, rng)
        if sample.text not in seen:
            seen.add(sample.text)
            return sample
    raise FedfuseError(
        f"the built-in world has no more distinct sentences for domain {domain.name!r}; "
        "ask for fewer private, public or test samples"
    )
