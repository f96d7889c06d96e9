"""``fedfuse align``: what it prints and writes, and what it refuses before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.cli import main as cli
from fedfuse.cli.align import MAX_WARPED_BYTES, SAMPLE
from fedfuse.report import tokenizer_alignment
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import MATERIAL
from tests.tokenizer_kinds import rust as rust
from tests.tokenizer_kinds import tokenizers as tokenizers


@pytest.fixture
def place(
    tokenizers: dict[str, TextTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder: the files ``byte-level.json``, ..., and an own cache."""
    for kind, tokenizer in tokenizers.items():
        (tmp_path / f"{kind}.json").write_text(tokenizer.to_json(), encoding="utf-8")
    monkeypatch.setenv("FEDFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call ``fedfuse align``; returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedfuse", "align", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def align(call: Any) -> Any:
    """Call it and return what it prints; it must succeed, with a quiet stderr."""

    def run(*arguments: str) -> str:
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        assert isinstance(out, str)
        return out

    return run


@pytest.fixture
def refused(call: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it and return its one line of refusal, which comes before any table."""
    monkeypatch.setattr(
        "fedfuse.report.tokenizer_alignment.minimum_edit_distance_table",
        lambda *_, **__: pytest.fail("table is built"),
    )

    def run(*arguments: str) -> str:
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert isinstance(err, str)
        return err

    return run


PAIR = ("byte-level.json", "unigram.json")


def test_prints_statistics_and_texts(align: Any) -> None:
    out = align(*PAIR, "--text", "the cat sat", "--text", "日本 😀")
    assert "SRC  byte-level.json\nDST  unigram.json" in out
    assert "exact match" in out
    assert "2 texts, positions by events" in out
    assert "text 1\nSRC  " in out
    assert "<F0 9F>" in out  # a part of a character, by the byte-level one
    assert "\x1b" not in out


def test_a_sample_is_shown_without_texts(align: Any) -> None:
    out = align(*PAIR)
    assert f"{len(SAMPLE)} texts" in out
    joined = "".join(SAMPLE)
    assert any(c.isdigit() for c in joined)
    assert "日" in joined
    assert "\N{SLIGHTLY SMILING FACE}" in joined


def test_text_file(align: Any, place: Path) -> None:
    (place / "texts.txt").write_bytes("\ufeffthe cat\r\n\n  \nthe hat\n".encode())
    out = align(*PAIR, "--text-file", "texts.txt", "--text", "one")
    assert "3 texts" in out
    assert "feff" not in out
    assert "\\r" not in out


@pytest.mark.parametrize("mode", ["exact-boundary", "events", "dtw"])
def test_positions(align: Any, mode: str) -> None:
    assert f"positions by {mode}" in align(*PAIR, "--alignment", mode)


@pytest.mark.parametrize("unit", ["bytes", "characters"])
def test_export(align: Any, place: Path, tokenizers: dict[str, TextTokenizer], unit: str) -> None:
    (place / "map.json").write_text("old")
    out = align(*PAIR, "--unit", unit, "--export", "map.json")
    assert f"2 {unit} away" in out
    exported = json.loads((place / "map.json").read_text())
    source, target = tokenizers["byte-level"], tokenizers["unigram"]
    table = minimum_edit_distance_table(source, target, None, unit=unit)
    assert exported == {
        "source": source.fingerprint,
        "target": target.fingerprint,
        "unit": unit,
        "map": table.best.tolist(),
        "distance": table.distance[:, 0].tolist(),
    }
    assert len(exported["map"]) == source.vocab_size
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []


def test_html(align: Any, place: Path) -> None:
    align(*PAIR, "--html", "page.html", "--text", "<b>the cat</b>")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert page.lstrip().startswith("<!doctype html>")
    assert "<b>" not in page
    assert "byte-level.json to unigram.json" in page


def test_the_table_is_kept_where_the_federation_keeps_its_own(align: Any, place: Path) -> None:
    align(*PAIR)
    assert list((place / "cache" / "tables").glob("*.npz"))


def test_a_folder_and_a_tokenizer_without_specials(align: Any, place: Path) -> None:
    spec = json.loads((place / "byte-level.json").read_text())["tokenizer"]
    spec["added_tokens"] = []
    (place / "plain").mkdir()
    (place / "plain" / "tokenizer.json").write_text(json.dumps(spec))
    assert "specials mapped to specials, of 0" in align("./plain", "unigram.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./none", "unigram.json"], "tokenizer './none' does not exist: expected a folder"),
        (["byte-level.json", "none.json"], "tokenizer 'none.json' does not exist: expected"),
        ([*PAIR, "--alignment", "guess"], "--alignment: expected events or "),
        ([*PAIR, "--unit", "words"], "--unit: expected bytes or characters, got 'words'"),
        ([*PAIR, "--export", "no/map.json"], "--export: expected a file in a folder"),
        ([*PAIR, "--html", "no/page.html"], "--html: expected a file in a folder"),
        ([*PAIR, "--html", "."], "--html: expected a file in a folder"),
        ([*PAIR, "--html", "a", "--export", "./a"], "expected two files, got 'a' for both"),
        ([*PAIR, "--text", ""], "--text: expected at least one character, got ''"),
        ([*PAIR, "--text", "a\udcff"], "--text: expected UTF-8, got"),
        (
            [*PAIR, "--text-file", "none.txt"],
            "expected a UTF-8 file, got 'none.txt': ",
        ),
        (
            [*PAIR, "--text-file", "blank.txt"],
            "expected a line of text, got 'blank.txt'",
        ),
        ([*PAIR, "--text-file", "latin.txt"], "'latin.txt': "),
    ],
)
def test_refused(refused: Any, place: Path, arguments: list[str], message: str) -> None:
    (place / "blank.txt").write_text("\n \n")
    (place / "latin.txt").write_bytes(b"caf\xe9")
    before = sorted(place.iterdir())
    assert message in refused(*arguments)
    assert sorted(place.iterdir()) == before


def test_long_texts_are_refused_for_dtw_only(refused: Any, align: Any, place: Path) -> None:
    (place / "long.txt").write_text("the " * (MAX_WARPED_BYTES // 4) + "end")
    options = ["--text-file", "long.txt"]
    message = refused(*PAIR, *options, "--alignment", "dtw")
    expected = f"at most {MAX_WARPED_BYTES} bytes with --alignment dtw"
    assert f"expected {expected}, got {MAX_WARPED_BYTES + 3}" in message


def test_a_cache_that_cannot_be_written(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFUSE_CACHE", "unigram.json")
    code, out, err = call(*PAIR)
    assert (code, out) == (1, "")
    assert "error: cache folder: expected " in err
    assert "a writable folder, as FEDFUSE_CACHE names it, got 'unigram.json': " in err


@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_failed_writing_leaves_what_was_there(
    call: Any, place: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (place / "map.json").write_text("old")

    works = getattr(Path, failing)

    def full(path: Any, *others: Any, **options: Any) -> Any:
        if "map.json" not in str(path):
            return works(path, *others, **options)
        Path(path).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, failing, full)
    code, _, err = call(*PAIR, "--export", "map.json")
    assert code == 1
    assert "error: 'map.json' cannot be written" in err
    assert (place / "map.json").read_text() == "old"
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []


def test_progress_is_shown_on_a_terminal_only(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    build = tokenizer_alignment.minimum_edit_distance_table

    def counting(*args: Any, progress: Any, **kwargs: Any) -> Any:
        def both(done: int, total: int) -> None:
            seen.append((done, total))
            progress(done, total)

        return build(*args, progress=both, **kwargs)

    monkeypatch.setattr(tokenizer_alignment, "minimum_edit_distance_table", counting)
    align(*PAIR)
    assert seen
    assert np.all(np.diff([done for done, _ in seen]) >= 0)
    assert seen[-1][0] == seen[-1][1]


def test_a_real_pair(align: Any) -> None:
    pair = [MATERIAL / "gpt2", MATERIAL / "llama2"]
    for folder in pair:
        if not folder.is_dir():
            pytest.skip(f"no tokenizer {folder.name} in ../shared/material/tokenizers")
    out = align(*map(str, pair), "--text", "The cat, 日本 😀 12")
    assert "source vocabulary                     50,257" in out
    assert "SRC  The   ·cat  ," in out
    assert "DST  ·The  ·cat  ," in out
    assert "<F0 9F 98>" in out  # a part of a character
