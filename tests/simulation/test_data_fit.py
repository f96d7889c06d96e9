"""What is cut off is counted by split and model, and too much of it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfuse.config.run_config import parse
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.simulation import simulate
from fedfuse.simulation.data_fit import QUESTIONS, SplitFit, check_fits, fits, table
from fedfuse.tokenizers.fit import Fit, fit_questions, fit_samples
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.federations import FAST
from tests.federations import tiny_builtin as tiny_builtin
from tests.tokenizer_kinds import by_hand

WORDS = ["[UNK]", "[CLS]", "the", "cat", "##s", "sat"]


@pytest.fixture
def words() -> TextTokenizer:
    return by_hand("wordpiece", WORDS, cls="[CLS]")


def test_counts_by_hand(words: TextTokenizer) -> None:
    samples = [
        Sample("the", " cat"),
        Sample("the the the", " cat sat"),  # its prompt is cut
        Sample("", "the cat sat the cat"),  # its answer is
        Sample("the", ""),
    ]
    assert fit_samples(words, samples, 5) == Fit(
        samples=4, label_tokens=1 + 2 + 4, prompts_cut=1, answers_cut=1, unscored=1
    )
    assert fit_samples(words, samples, 5).lost == 0.5
    assert fit_samples(words, samples, 9).lost == 0.25


def test_questions_that_nothing_can_decide_are_counted(words: TextTokenizer) -> None:
    questions = [
        Sample("the", " cat", options=(" cat", " sat"), label=0),
        Sample("the", " dog", options=(" dog", " cow"), label=0),  # both unknown
        Sample("the", " cat", options=(" cat", " sat the cat sat the cat"), label=0),
    ]
    found = fit_questions(words, questions, 5)
    assert (found.samples, found.undecided) == (3, 2)
    assert fit_questions(words, questions, 20).undecided == 1


@pytest.mark.usefixtures("tiny_builtin")
def test_every_model_sees_its_own_private_samples() -> None:
    config = parse({**FAST, "clients.model": "builtin:gpt2, builtin:llama", "data.private": 24})
    found = fits(config, 4)
    places = [(of.model, of.split, of.fit.samples) for of in found]
    shared = [("public", 16), ("test", 120), (QUESTIONS, 12)]
    assert [place for place in places if place[0] == "builtin:server"] == [
        ("builtin:server", *each) for each in shared
    ]
    for name in ("builtin:gpt2", "builtin:llama"):
        own = [(split, samples) for model, split, samples in places if model == name]
        assert own == [("private", 48), *shared]
    assert all(of.fit.lost == of.fit.prompts_cut == of.fit.undecided == 0 for of in found)
    assert table(found).row_count == len(found) == 11


@pytest.mark.usefixtures("tiny_builtin")
def test_too_much_that_is_cut_off_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "build_models", lambda names: None)
    config = parse({**FAST, "data.max-length": 3, "output": str(tmp_path / "runs")})
    with pytest.raises(
        FedfuseError,
        match=r"data.max-length = 3: expected .* at least 80% .* of private for builtin:gpt2",
    ):
        simulate.run_federation(config, 4, in_process=True)
    assert not (tmp_path / "runs").exists()


def test_a_little_that_is_cut_off_is_not_refused() -> None:
    def split(cut: int, name: str = "public") -> SplitFit:
        return SplitFit("m", name, Fit(100, 500, 100, cut, 0))

    check_fits([split(20), split(100, QUESTIONS)], 128)
    with pytest.raises(FedfuseError, match=r"21% of public for m$"):
        check_fits([split(21)], 128)
