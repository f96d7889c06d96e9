"""A tokenizer by name: a folder, a ``tokenizer.json``, or an id on the Hugging Face hub.

The names are those by which models are loaded, and the result is the same, so that vocabulary
tables between two tokenizers are shared by whoever names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedfuse.data.hub import library_errors, looks_like_path
from fedfuse.errors import FedfuseError, check
from fedfuse.tokenizers.tokenizer import TextTokenizer

FILE = "tokenizer.json"
# What beside the file says which special token plays which role.
_ROLE_FILES = ("tokenizer_config.json", "config.json")
_EXPECTED = f"a folder with {FILE}, a {FILE} file, or the id of a model on the Hugging Face hub"


def load_tokenizer(name: str) -> TextTokenizer:
    """Load a tokenizer with its special tokens; runs no code that comes with it.

    Args:
        name: a folder as ``save_pretrained`` writes it, a ``tokenizer.json`` (alone it knows no
            roles of special tokens but unk; with its configuration beside it, it means the folder),
            or a hub id. Only a hub id uses the network.

    Raises:
        FedfuseError: for a path that does not exist, a name or file that holds no tokenizer, or a
            tokenizer without a fast form; names it.
    """
    path = Path(name).expanduser()
    file = path / FILE if path.is_dir() else path
    has_roles = any((file.parent / role).is_file() for role in _ROLE_FILES)
    if has_roles and (path.is_dir() or (path.is_file() and path.name == FILE)):
        return _from_library(name, str(file.parent), local=True)
    if file.is_file():
        return _from_file(file)
    if path.is_dir():
        raise FedfuseError(f"tokenizer folder {name!r} has no {FILE}: expected {_EXPECTED}")
    if not name.strip() or looks_like_path(name) or name.endswith(".json") or path.exists():
        raise FedfuseError(f"tokenizer {name!r} does not exist: expected {_EXPECTED}")
    return _from_library(name, name, local=False)


def _from_file(path: Path) -> TextTokenizer:
    """What the file says, and what ``TextTokenizer.to_json`` wrote, without transformers."""
    try:
        return TextTokenizer.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FedfuseError(f"tokenizer {str(path)!r} cannot be read ({error})") from error
    except FedfuseError as error:
        raise FedfuseError(f"tokenizer {str(path)!r}: {error}; expected {_EXPECTED}") from error


def _from_library(name: str, source: str, *, local: bool) -> TextTokenizer:
    from transformers.utils import logging

    with library_errors(f"tokenizer {name!r}", _EXPECTED, logging):
        return from_transformers(source, {"trust_remote_code": False, "local_files_only": local})


def from_transformers(source: str, options: dict[str, Any]) -> TextTokenizer:
    """The tokenizer exactly as its ``tokenizer.json`` says, with the roles that transformers knows.

    The class that ``AutoTokenizer`` chooses may put its own normalizer and pre-tokenizer in place
    of the file's, so it is asked for the special tokens only, some of which no file names.

    Args:
        source: a folder or a hub id.
        options: of ``from_pretrained``.

    Raises:
        FedfuseError: when there is no fast form.
        Exception: whatever else transformers raises.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    chosen = TextTokenizer.from_pretrained(AutoTokenizer.from_pretrained(source, **options))
    try:
        verbatim = TextTokenizer.from_pretrained(
            PreTrainedTokenizerFast.from_pretrained(source, **options)
        )
    except ValueError:  # no tokenizer.json: AutoTokenizer has converted an older format
        # Or, where there is none either, made a tokenizer that knows special tokens alone.
        words = len(chosen.vocabulary) - len({*chosen.special_ids.values(), *chosen.marked_special})
        found = f"nothing but special tokens in {source!r}"
        check("tokenizer", found, f"{FILE} with tokens of text", words > 0)
        return chosen
    token_of = {token_id: token for token, token_id in chosen.vocabulary.items()}
    roles = {role: token_of[token_id] for role, token_id in chosen.special_ids.items()}
    known = {role: token for role, token in roles.items() if token in verbatim.vocabulary}
    loaded = TextTokenizer.from_json(verbatim.to_json(), known)
    # JSON has what others need to know of chats, which is no template.
    loaded.use_chat_template(chosen.chat.template if chosen.chat else None)
    return loaded
