"""Special tokens that no text can spell.

A text that spells ``</s>`` is text. Where special tokens are among a model's own pieces, as in
unigram models, it would become the token. So in the copy that tokenizes they have names that are in
no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Two noncharacters of Unicode, of the same length in UTF-8.
MARK, _NO_MARK = "\U0010ffff", "\U0010fffe"


def unspellable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed ``tokenizer.json`` with other names for the tokens that it marks special.

    For which tokens see ``special_names``.
    """
    added, model = spec.get("added_tokens"), spec.get("model")
    if not isinstance(added, list) or not isinstance(model, dict):
        return dict(spec)  # for the Rust library to refuse
    names = special_names(spec)

    def hide(token: Any) -> Any:
        return MARK + token if token in names else token

    model = dict(model)
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {hide(token): number for token, number in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[hide(piece), *score] for piece, *score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = hide(model["unk_token"])
    renamed = [{**token, "content": hide(token["content"])} for token in added]
    return {**spec, "model": model, "added_tokens": renamed}


def special_names(spec: Mapping[str, Any]) -> frozenset[str]:
    """Tokens that a ``tokenizer.json`` marks special and that get other names.

    Not a single character, which some tokenizers have for a special token, and which is still a
    character; nor the parts and results of merges.
    """
    added, model = spec.get("added_tokens"), spec.get("model")
    names = {token["content"] for token in added or [] if token.get("special")}
    merges = model.get("merges") if isinstance(model, dict) else None
    return frozenset(name for name in names if len(name) > 1) - _merged(merges)


def unmarked(text: str) -> str:
    """A text that spells no special token's other name."""
    return text.replace(MARK, _NO_MARK)


def spelled(token: str) -> str:
    """A token's name in the original."""
    return token.removeprefix(MARK)


def _merged(merges: Any) -> set[str]:
    """Parts and results of a byte-pair model's merges."""
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges or []]
    return {part for pair in pairs for part in (*pair, "".join(pair))}
