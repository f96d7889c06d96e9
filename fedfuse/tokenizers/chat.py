"""How a model writes chats: its own template before the answer, which is the text of every model.

Templates differ, so prompts of one chat are different texts under different models; what is
compared is the answer. Of a template the other side needs to know no more than what stands right
before an answer, since the answer's first token may depend on it. So that alone travels with a
tokenizer, and no template of anybody else's is ever run.

A special token that a template writes is that token; one that a turn's text spells is text.

Source of the format: transformers, "Chat templates", which are Jinja programs, run in its sandbox.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from fedfuse.errors import FedfuseError, check
from fedfuse.tokenizers.unspellable import MARK, unmarked

log = logging.getLogger(__name__)

Turn = tuple[str, str]  # role and text
# What stands for a turn's text while the template is run.
_PLACE = re.compile("\ue000([0-9]+)\ue001")
_LONGEST = 1000  # characters before an answer


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Format of a model's chats.

    Attributes:
        special: special token after which the answer's text begins; "" for none.
        literal: text between that token and the answer.
        template: Jinja template; "" where only the tokenizer is known.
        names: special tokens by the names that templates have for them, such as ``bos_token``.
        specials: special tokens that the template may write.
        takes_system: whether the template writes a system turn. Where it does not, as Gemma 2's,
            its text is put before the first user's, as Gemma 3's and Mistral's templates do.
    """

    special: str
    literal: str
    template: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    specials: frozenset[str] = frozenset()
    takes_system: bool = True

    @classmethod
    def from_template(
        cls, template: str, names: Mapping[str, str], specials: Set[str]
    ) -> ChatFormat:
        """Find out what a template writes right before an answer.

        Raises:
            FedfuseError: for a template that cannot be run, or writes no answer.
        """
        before = _before_answer(template, names, _places([("user", "")]))
        *_, border = _PLACE.split(before)
        special, literal = "", border
        for match in _any_of(specials).finditer(border) if specials else ():
            special, literal = match[0], border[match.end() :]
        takes_system = _takes_system(template, names)
        return cls(special, literal, template, dict(names), frozenset(specials), takes_system)

    @classmethod
    def from_wire(cls, values: object, specials: Set[str]) -> ChatFormat:
        """Read what ``to_wire`` wrote.

        Raises:
            FedfuseError: for anything else.
        """
        found = dict(values) if isinstance(values, dict) else {}
        special, literal = found.get("special"), found.get("literal")
        good = isinstance(special, str) and isinstance(literal, str)
        check("tokenizer chat", repr(values)[:100], "texts 'special' and 'literal'", good)
        special, literal = str(special), str(literal)
        check("tokenizer chat", repr(special), "a special token", special in {"", *specials})
        check(
            "tokenizer chat",
            f"{len(literal)} characters",
            f"at most {_LONGEST}",
            len(literal) <= _LONGEST,
        )
        return cls(special, literal)

    def to_wire(self) -> dict[str, str]:
        """What others need to know."""
        return {"special": self.special, "literal": self.literal}

    def head(self, turns: Sequence[Turn]) -> str:
        """Text of some turns up to what stands right before the answer, special tokens marked.

        Raises:
            FedfuseError: where the template does not take the turns, or writes something else
                before this answer.
        """
        contents = _places(turns)
        roles = [role for role, _ in turns[:2]]
        if not self.takes_system and roles == ["system", "user"]:
            (_, system), (_, user), *rest = contents
            contents = [("user", f"{system}\n\n{user}"), *rest]
        before = _before_answer(self.template, self.names, contents)
        border = self.special + self.literal
        check(
            "chat template",
            repr(before[-40:]),
            f"{border!r} before each answer",
            before.endswith(border),
        )
        # The input begins with a begin token anyway.
        before = before[: len(before) - len(border)].removeprefix(self.names.get("bos_token", ""))
        if self.specials:
            before = _any_of(self.specials).sub(lambda match: MARK + match[0], before)
        texts = [unmarked(text) for _, text in turns]
        return _PLACE.sub(lambda match: texts[int(match[1])], before)


def find_format(
    template: object, names: Mapping[str, str], specials: frozenset[str]
) -> ChatFormat | None:
    """Format of a model's chats.

    Args:
        template: the model's Jinja template, or several by name; None for a model without one.
        names: special tokens by the names that templates have for them.
        specials: special tokens that the template may write.

    Returns:
        The format; None without a template, and, with a warning, for one that cannot be used.
    """
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        return None
    try:
        return ChatFormat.from_template(template, names, specials)
    except FedfuseError as error:
        log.warning("%s; chats are written as plain text", error)
        return None


def _places(turns: Sequence[Turn]) -> list[Turn]:
    """Turns with places for their texts."""
    return [(role, f"\ue000{number}\ue001") for number, (role, _) in enumerate(turns)]


def _takes_system(template: str, names: Mapping[str, str]) -> bool:
    """Whether a template writes a system turn before a user's."""
    contents = _places([("system", ""), ("user", "")])
    try:
        return contents[0][1] in _before_answer(template, names, contents)
    except FedfuseError:
        return False


def _before_answer(template: str, names: Mapping[str, str], contents: Sequence[Turn]) -> str:
    """What the template writes before the answer to some turns, with places for their texts."""
    from transformers.utils.chat_template_utils import render_jinja_template

    given: dict[str, Any] = dict(names)
    messages = [{"role": role, "content": content} for role, content in contents]
    answer = "\ue000\ue001"
    chat = [*messages, {"role": "assistant", "content": answer}]
    try:
        rendered: Any = render_jinja_template([chat], chat_template=template, **given)
        [text], _ = rendered
    except Exception as error:  # Jinja's, and whatever a template raises
        roles = ", ".join([role for role, _ in contents] + ["assistant"])
        raise FedfuseError(f"chat template: it does not take turns of {roles}: {error}") from error
    before, found, _ = str(text).partition(answer)
    check("chat template", "none", "one that writes the answer's text", found)
    return before


def _any_of(tokens: Set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
