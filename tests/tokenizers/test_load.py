"""Tokenizers by name: the same from a folder as from its file, and clear errors for all others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.load import load_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import MATERIAL, REAL, SPECIALS


@pytest.fixture
def saved(rust: dict[str, Tokenizer], tmp_path: Path) -> Path:
    """A folder as transformers writes it."""
    fast: Any = PreTrainedTokenizerFast
    named = {f"{role}_token": token for role, token in SPECIALS.items()}
    fast(tokenizer_object=rust["byte-level"], **named).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_folder_and_its_file_are_the_same(
    saved: Path, tokenizers: dict[str, TextTokenizer]
) -> None:
    folder, file = load_tokenizer(str(saved)), load_tokenizer(str(saved / "tokenizer.json"))
    assert folder.fingerprint == file.fingerprint
    assert folder.vocabulary == tokenizers["byte-level"].vocabulary
    assert folder.special_ids == tokenizers["byte-level"].special_ids


def test_a_file_alone_knows_no_roles_but_unk(saved: Path, tmp_path: Path) -> None:
    lone = shutil.copy(saved / "tokenizer.json", tmp_path / "mine.json")
    assert set(load_tokenizer(str(lone)).special_ids) <= {"unk"}
    (tmp_path / "bare").mkdir()
    shutil.copy(saved / "tokenizer.json", tmp_path / "bare")
    bare = load_tokenizer(str(tmp_path / "bare"))
    assert bare.fingerprint == load_tokenizer(str(lone)).fingerprint


def test_own_format(tokenizers: dict[str, TextTokenizer], tmp_path: Path) -> None:
    for kind, tokenizer in tokenizers.items():
        file = tmp_path / f"{kind}.json"
        file.write_text(tokenizer.to_json(), encoding="utf-8")
        assert load_tokenizer(str(file)).fingerprint == tokenizer.fingerprint


def test_home(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert load_tokenizer("~/saved").fingerprint == load_tokenizer(str(saved)).fingerprint


@pytest.mark.parametrize(
    "name", ["./none", "/no/folder", "~/none", "a/b/c", "none.json", "", " ", ".."]
)
def test_what_is_not_there_never_goes_to_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("asks transformers")
    )
    with pytest.raises(FedfuseError, match=r"expected a folder with tokenizer\.json") as caught:
        load_tokenizer(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    for name in (file, tmp_path):
        with pytest.raises(FedfuseError, match=r"tokenizer '.*tokenizer\.json'"):
            load_tokenizer(str(name))


def test_hub_errors_are_one_line_and_no_code_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: Any) -> None:
        assert options == {"trust_remote_code": False, "local_files_only": False}
        raise OSError(f"no {name}\nat all\n" + "x" * 1000)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(FedfuseError, match="'owner/name' cannot be loaded") as caught:
        load_tokenizer("owner/name")
    assert "got OSError: no owner/name at all xxx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_tokenizer_without_fast_form_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        name_or_path = "owner/slow"

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(FedfuseError, match="owner/slow") as caught:
        load_tokenizer("owner/slow")
    with pytest.raises(FedfuseError) as plain:
        TextTokenizer.from_pretrained(Slow())  # type: ignore[arg-type]
    assert str(caught.value) == str(plain.value)


@pytest.mark.parametrize("name", REAL)
def test_real_ones(name: str) -> None:
    folder = MATERIAL / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer {name} in ../shared/material/tokenizers")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    loaded = load_tokenizer(str(folder))
    for role, token_id in loaded.special_ids.items():
        assert loaded.vocabulary[config[f"{role}_token"]] == token_id
    assert loaded.special_ids
