"""From raw records to samples: a prompt template with named fields, and an answer to score.

The answer is ``" " + options[label]`` or ``" " + target``. A record with ``text`` and neither of
them is plain text, of which every position is scored; one with ``messages`` is a chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import Any

from fedfuse.data.chats import chat_samples
from fedfuse.data.records import Origin, Record
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError, check

# The first whose fields a record all has is used; the order matters where a record has several.
DEFAULT_TEMPLATES = {
    ("premise", "hypothesis"): "{premise}\nHypothesis: {hypothesis}\nEntailment:",
    ("question",): "Question: {question}\nAnswer:",
    ("text",): "{text}\nLabel:",
}


def to_samples(records: Sequence[Origin], *, domain: str, template: str = "") -> list[Sample]:
    """Turn records into samples.

    Args:
        records: as ``load_records`` returns them. Fields ``options`` and ``label`` (an index into
            them), or ``target``, give the answer; ``domain`` overrides the argument. For
            ``messages`` see ``chat_samples``.
        domain: name of the data set.
        template: prompt with ``{field}`` in the style of ``str.format``; lists are joined by
            commas. Empty: the default for the fields each record has.

    Raises:
        FedfuseError: naming file and line, for missing fields, a label outside the options, an
            empty answer; for no records at all; for a template that is not well formed.
    """
    if not records:
        raise FedfuseError(f"data set {domain!r} is empty; at least one record is needed")
    parts = parse_template(template) if template else None
    return [
        sample
        for origin, record in records
        for sample in _to_samples(origin, record, domain, parts)
    ]


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs of literal text and the field that follows it (None: none).

    Raises:
        FedfuseError: for unbalanced braces, or anything but a plain name inside them.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise FedfuseError(
            f"template {template!r} is not well formed ({error}): "
            "expected text with {field}, and {{ for a brace"
        ) from error
    for _, field, spec, conversion in parsed:
        # Attributes, indices and formats of a record's values are nothing a prompt needs.
        if field is not None and (spec or conversion or not field.isidentifier()):
            raise FedfuseError(
                f"template {template!r}: expected plain names like {{question}} as fields, "
                f"got {field!r}"
            )
    return [(literal, field) for literal, field, _, _ in parsed]


def _to_samples(
    origin: str, record: Record, domain: str, parts: list[tuple[str, str | None]] | None
) -> list[Sample]:
    """A record's sample; of a chat, one for each answer."""
    named = record.get("domain", domain)
    if not isinstance(named, str):
        raise FedfuseError(f"{origin}: field 'domain': expected text, got {named!r}")
    if "messages" in record and parts is None:
        samples = chat_samples(origin, record["messages"], named)
    else:
        samples = [_to_sample(origin, record, named, parts)]
    try:
        for sample in samples:
            sample.text.encode()
    except UnicodeEncodeError as error:
        raise FedfuseError(f"{origin}: text with half a surrogate pair: {error}") from error
    return samples


def _to_sample(
    origin: str, record: Record, named: str, parts: list[tuple[str, str | None]] | None
) -> Sample:
    options, label = _options(origin, record)
    if options:
        sample = Sample(_prompt(origin, record, parts), options[label], named, options, label)
    elif "target" in record:
        answer = _answer(origin, "target", record["target"])
        sample = Sample(_prompt(origin, record, parts), answer, named)
    elif parts is None and "text" in record:
        sample = Sample("", _render(origin, "text", record["text"]), named)
        check(f"{origin}: field 'text'", "''", "text that is not empty", sample.answer)
    else:
        raise FedfuseError(
            f"{origin}: no answer: neither 'options' with 'label' nor 'target' among the fields; "
            f"it has: {_keys(record)}"
        )
    return sample


def _options(origin: str, record: Record) -> tuple[tuple[str, ...], int]:
    """The record's options as answers, and its label; nothing and -1 where it has neither."""
    missing = {"options", "label"} - record.keys()
    if len(missing) == 2:
        return (), -1
    if missing:
        raise FedfuseError(
            f"{origin}: field {missing.pop()!r} is missing, 'options' and 'label' go together; "
            f"it has: {_keys(record)}"
        )
    options, label = record["options"], record["label"]
    good = isinstance(options, list) and len(options) >= 2
    check(f"{origin}: field 'options'", repr(options), "a list of at least two texts", good)
    answers = tuple(_answer(origin, "options", option) for option in options)
    # A boolean is an int to Python, and no index to anybody else.
    good = type(label) is int and 0 <= label < len(answers)
    expected = f"0 to {len(answers) - 1}, an index into the options {options!r}"
    check(f"{origin}: field 'label'", repr(label), expected, good)
    return answers, label


def _answer(origin: str, field: str, value: Any) -> str:
    text = _render(origin, field, value).strip()
    check(f"{origin}: field {field!r}", repr(value), "text that is not empty", text)
    return " " + text


def _prompt(origin: str, record: Record, parts: list[tuple[str, str | None]] | None) -> str:
    if parts is None:
        parts = _default_template(origin, record)
    filled: list[str] = []
    for literal, field in parts:
        filled.append(literal)
        if field is None:
            continue
        if field not in record:
            raise FedfuseError(
                f"{origin}: the template's field {field!r} is not in the record; "
                f"it has: {_keys(record)}"
            )
        filled.append(_render(origin, field, record[field]))
    return "".join(filled)


def _default_template(origin: str, record: Record) -> list[tuple[str, str | None]]:
    for fields, template in DEFAULT_TEMPLATES.items():
        if all(field in record for field in fields):
            return parse_template(template)
    wanted = ", or ".join(" and ".join(fields) for fields in DEFAULT_TEMPLATES)
    raise FedfuseError(
        f"{origin}: no default template fits; set a template or give the fields {wanted}; "
        f"it has: {_keys(record)}"
    )


def _render(origin: str, field: str, value: Any) -> str:
    """A record's value as text: texts and numbers as they are, lists joined by commas."""
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(str(item) for item in value)
    raise FedfuseError(
        f"{origin}: field {field!r}: expected text, a number or a list of them, got {value!r}"
    )


def _keys(record: Record) -> str:
    return ", ".join(record) or "none"
