"""Words of the built-in world of prompts: aspects of a delivery note, and words that ask for them.

An instruction names an aspect by its hints. A strong hint belongs to one aspect, a weak one to two,
so one weak hint leaves open which is meant. Plain data, no logic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Aspect:
    """A property of a note that an instruction can ask for.

    Attributes:
        name: name of the aspect.
        labels: its values.
        codes: a letter for each value.
        words: for each value, the words of a note that mean it.
        neutral: words of a note that leave the value open.
        strong: words of an instruction that ask for this aspect.
        weak: words of an instruction that ask for this aspect or for one other.
    """

    name: str
    labels: tuple[str, ...]
    codes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    neutral: tuple[str, ...]
    strong: tuple[str, ...]
    weak: tuple[str, ...]


def _aspect(name: str, values: dict[str, str], neutral: str, strong: str, weak: str) -> Aspect:
    """Make an aspect of ``{"label code": "words"}`` and lists of words."""
    labels, codes = zip(*(key.split() for key in values), strict=True)
    words = tuple(tuple(words.split()) for words in values.values())
    lists = (tuple(text.split()) for text in (neutral, strong, weak))
    return Aspect(name, labels, codes, words, *lists)


ASPECTS = (
    _aspect(
        "goods",
        {
            "food f": "bread soup apples cheese",
            "tool t": "hammers saws drills pliers",
            "cloth c": "coats shirts scarves hats",
            "toy y": "puzzles dolls kites marbles",
        },
        "things boxes",
        "goods item product article",
        "kind entry type group",
    ),
    _aspect(
        "verdict",
        {
            "good g": "lovely splendid superb charming fine",
            "bad b": "awful broken dull nasty horrid",
        },
        "usual plain",
        "verdict opinion mood feeling",
        "kind state service level",
    ),
    _aspect(
        "day",
        {
            "past p": "yesterday earlier formerly",
            "present n": "today currently presently",
            "future u": "tomorrow soon later",
        },
        "sometimes",
        "day time tense date",
        "entry state range count",
    ),
    _aspect(
        "carrier",
        {
            "land l": "truck train van",
            "water w": "ship ferry barge",
            "air i": "plane drone balloon",
        },
        "carrier",
        "transport vehicle means traffic",
        "type service route load",
    ),
    _aspect(
        "region",
        {
            "town o": "street market station downtown",
            "country r": "farm village meadow barn",
        },
        "place",
        "region location setting area",
        "group range route scale",
    ),
    _aspect(
        "amount",
        {
            "few e": "two three four",
            "many m": "hundred thousand million",
        },
        "some",
        "amount number quantity size",
        "level count load scale",
    ),
)

# Words that ask for the answer's form: a label, or the letter for it.
FORMS = {"word": "word name term spelling".split(), "code": "code letter symbol initial".split()}

OPENINGS = "please kindly just carefully".split()
READ = "read process handle consider check inspect take".split()
NOTE = "note text line message passage".split()
WHERE = "below here given following".split()
DECIDE = "decide tell judge find report identify determine".split()
ANSWER = "answer reply respond output".split()
ARTICLES = "the its a".split()
LINKS = "and or of then with in as by using for to".split()

# Invented names, so that most words are of no use in an instruction.
BRANDS = tuple(
    "".join(letters) for letters in product("bdfgklmnprstvz", "aeiou", "bdklmnrt", "aeiou", "lnrx")
)[::27][:400]

# An instruction, the note it is about, and where the answer begins.
LAYOUT = "{prompt} | {input} =>"


def vocabulary() -> list[str]:
    """Every word of the world, each once, in a fixed order."""
    words = [*LAYOUT.replace("{prompt}", "").replace("{input}", "").split(), "went"]
    for group in (OPENINGS, READ, NOTE, WHERE, DECIDE, ANSWER, ARTICLES, LINKS, *FORMS.values()):
        words += group
    for aspect in ASPECTS:
        for part in (aspect.labels, aspect.codes, aspect.neutral, aspect.strong, aspect.weak):
            words += part
        for meaning in aspect.words:
            words += meaning
    return list(dict.fromkeys([*words, *BRANDS]))
