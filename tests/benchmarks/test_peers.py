"""The library's side of comparisons on tiny models, and what is made of both sides' numbers."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.peers import compare, environments, hugging_face, ours, trainer_side
from benchmarks.peers.compare import Turns
from benchmarks.peers.meter import Meter
from benchmarks.peers.prepare import choose, make_work
from benchmarks.peers.work import IGNORED, Measurement, Work, read_outcome, write_outcome
from fedfuse.data.sample import Sample
from fedfuse.factory.models import load_model
from tests.federations import tiny_builtin as tiny_builtin

SAMPLES = [
    Sample("Where is the red lamp?", " It is in the old market"),
    Sample("Who sold it?", " a merchant"),
    Sample("What is two and two, four or five?", " four"),
]
OPTIONS = (" in the old market", " far away", " nobody knows", " four")
STEPS = 2


@pytest.fixture(scope="module")
def work(tiny_builtin: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Work:
    questions = [Sample(sample.prompt, "", options=OPTIONS) for sample in SAMPLES]
    models = tiny_builtin["llama"], tiny_builtin["gpt2"]
    return make_work(*models, SAMPLES, questions, tmp_path_factory.mktemp("work"), steps=STEPS)


def test_even_samples_have_the_nearest_lengths() -> None:
    lengths = [300, 900, 20, 31, 30, 33, 34, 400, 32, 36, 35, 40]
    samples = [Sample("p" * (length - 1), "a") for length in lengths]
    assert [len(one.text) for one in choose(samples)] == [300, 20, 31, 30, 33, 34, 400, 32]
    even = [len(one.text) for one in choose(samples, even=True)]
    assert even == [30, 31, 32, 33, 34, 35, 36, 40]


def measured(
    seconds: Sequence[float],
    peak_bytes: Sequence[int] = (1,),
    losses: Sequence[float] = (1.0,),
    **more: Any,
) -> Measurement:
    worked = [second / 2 for second in seconds]
    return Measurement(list(seconds), worked, list(peak_bytes), list(losses), more)


def test_work_is_the_samples_in_the_students_tokens(work: Work, tmp_path: Path) -> None:
    tokenizer = load_model(work.student).tokenizer
    for (prompt, answer), ids, labels in zip(
        work.samples, work.input_ids, work.labels, strict=True
    ):
        whole = tokenizer.encode([prompt + answer])[0].ids.tolist()
        start = len(ids) - len(whole)  # of the text, behind a start token
        assert whole == ids[start:]
        first = next(i for i, label in enumerate(labels) if label != IGNORED)
        assert labels == [IGNORED] * first + ids[first:]
        assert start <= 1 < first < len(ids)
    lengths = [len(ids) for ids in work.input_ids]
    assert work.tokens["all"] == sum(lengths)
    assert work.tokens["padded"] == 3 * max(lengths)
    assert len(work.rates) == 1 + 2 * STEPS
    work.write(tmp_path / "work.json")
    read = Work.read(tmp_path / "work.json")
    assert read.input_ids == work.input_ids
    assert [tuple(pair) for pair in read.samples] == work.samples


def test_both_sides_begin_with_one_adapter_that_has_learned(work: Work) -> None:
    own, other = ours.load_student(work).model, hugging_face.load_student(work)
    ids = torch.tensor([work.input_ids[0]])
    with torch.no_grad():
        logits = own(ids).logits
        torch.testing.assert_close(other(ids).logits, logits)
        with own.disable_adapter():
            assert (own(ids).logits - logits).abs().max() > 1e-3


def test_trainer_takes_the_same_steps(work: Work) -> None:
    mine = ours.main(work, "trainer")["trainer"]
    theirs = hugging_face.run(work, lambda folder: trainer_side.trainer(work, folder))
    assert len(mine.seconds) == len(theirs.seconds) == len(mine.peak_bytes) == STEPS
    assert mine.losses == pytest.approx(theirs.losses, abs=compare.TOLERANCE)
    assert mine.losses[-1] < mine.losses[0]
    assert theirs.more["moved"] == 1
    turns = Turns({"ours trainer": [mine], "theirs trainer": [theirs]})
    results = compare.step_results(turns, "trainer")
    assert 0 <= results["trainer_loss_off"] <= compare.TOLERANCE


def test_one_tokenizer_is_distilled_by_the_whole_divergence(work: Work) -> None:
    found = ours.main(work, "gkd")
    student, teacher = ours.load_student(work).model, load_model(work.student).model
    divergence, rows = 0.0, 0
    with torch.no_grad():
        for ids, labels in zip(work.input_ids, work.labels, strict=True):
            learned = torch.tensor(labels[1:]) != IGNORED
            own, other = (
                model(torch.tensor([ids])).logits[0, :-1][learned].log_softmax(1)
                for model in (student, teacher)
            )
            divergence += float((other.exp() * (other - own)).sum())
            rows += int(learned.sum())
    whole = found["gkd"].more["first_loss_of_all_entries"]
    assert whole == pytest.approx(divergence / rows, rel=1e-2, abs=1e-6)
    # Of few entries, and what is left as one, it is less.
    more = ours.Lesson(work, work.student).loss(100, ours.KL)
    assert 0 < found["gkd"].losses[0] < more < whole
    assert found["gkd"].more["taught"] == 1


def test_distilling_across_tokenizers_with_and_without_extraction(work: Work) -> None:
    found = ours.main(work, "gold")
    alone, whole = found["gold"], found["gold whole"]
    assert len(alone.losses) == 1 + STEPS
    assert len(whole.losses) == len(alone.seconds) == len(whole.seconds) == STEPS
    assert alone.more["learned"] == work.tokens["learned"]
    assert 0.3 < alone.more["taught"] <= 1
    assert np.isfinite(alone.losses + whole.losses).all()
    # Knowledge that is extracted anew is the same, so the loss goes on falling.
    assert whole.losses[-1] < alone.losses[0]
    lesson = ours.Lesson(work, work.teacher)
    objective = ours.OBJECTIVES["gold"]
    assert lesson.loss(16, objective) == pytest.approx(alone.losses[0], rel=1e-5)


def test_scores_are_the_models_log_likelihoods(work: Work) -> None:
    found = ours.main(work, "harness")["harness"]
    lm = load_model(work.student)
    model, tokenizer = lm.model, lm.tokenizer
    assert len(found.losses) == len(SAMPLES) * len(OPTIONS)
    texts = [prompt + option for prompt, options in work.questions for option in options]
    for text, (prompt, option), logprob in zip(
        texts, found.more["tokens"], found.losses, strict=True
    ):
        ids = prompt + option
        assert tokenizer.encode([text])[0].ids.tolist() in (ids, ids[1:])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(1)
        right = logits[torch.arange(len(prompt) - 1, len(ids) - 1), option].sum()
        assert logprob == pytest.approx(float(right), abs=1e-4)


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    outcome = {"gold": measured([1.5], [7], [0.1, 0.2], taught=0.5)}
    write_outcome(tmp_path / "outcome.json", outcome)
    found, versions = read_outcome(tmp_path / "outcome.json")
    assert found == outcome
    assert versions["torch"].startswith(torch.__version__.split("+")[0])
    assert "trl" not in versions


def test_a_step_has_its_own_peak() -> None:
    meter = Meter()
    kept: list[np.ndarray] = []

    def step() -> None:
        np.ones(5_000_000)  # let go before the step is over
        kept.append(np.ones(1_000))

    meter.repeat(step, 3)
    assert len(meter.seconds) == 3
    assert min(meter.seconds) > 0
    assert len(meter.cpu_seconds) == 3
    assert all(0 < worked < 1 for worked in meter.cpu_seconds)
    assert all(39e6 < peak < 60e6 for peak in meter.peak_bytes)
    meter.mark()
    meter.stop()
    assert meter.peak_bytes[-1] < 5e6


def test_steps_of_a_trainer_are_measured_but_the_first() -> None:
    meter = Meter()
    callback = hugging_face.StepMeter(meter, steps=2)
    callback.on_step_end()
    assert not meter.seconds
    callback.on_step_end()
    assert len(meter.seconds) == 1
    callback.on_step_end()
    assert len(meter.seconds) == 2
    meter.stop()
    assert len(meter.seconds) == 2


def test_a_ratio_is_of_turns() -> None:
    turns = Turns()
    # The machine is three times slower in the second turn, on both sides.
    for factor, peak in ((1, 10), (3, 10), (1, 40)):
        turns.add("ours", {"gold": measured([1.0 * factor, 9.0 * factor, 2.0 * factor], [peak])})
        turns.add("theirs", {"gold": measured([4.0 * factor], [20])})
    assert turns.ratio("gold", "gold", "seconds") == 0.5
    assert turns.ratio("gold", "gold", "peak_bytes") == 0.5
    turns.add("ours", {"gold": measured([1.0])})
    with pytest.raises(ValueError, match="zip"):
        turns.ratio("gold", "gold", "seconds")


def trained(**more: Any) -> Measurement:
    given: dict[str, Any] = {
        "moved": 1.0,
        "gradient_norms": [0.5],
        "learned": 7,
        "recomputes": False,
    }
    return measured([2.0], [4], [1.0], **(given | {"same_tokens": True} | more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"moved": 0.5}, "not trained"),
        ({"gradient_norms": [0.0]}, "not trained"),
        ({"gradient_norms": [math.nan]}, "not trained"),
        ({"recomputes": True}, "computed twice"),
        ({"learned": 8}, "other tokens"),
        ({"same_tokens": False}, "tokenized in another way"),
    ],
)
def test_a_peer_that_does_something_else_is_refused(more: dict[str, Any], message: str) -> None:
    mine = measured([1.0], [2], [1.0], learned=7)
    compare.check_trained("gold", (mine, trained()))
    with pytest.raises(SystemExit, match=f"gold: .*{message}"):
        compare.check_trained("gold", (mine, trained(**more)))
    with pytest.raises(SystemExit, match="1 steps here, 2 there"):
        compare.check_trained("gold", (mine, replace(trained(), losses=[1.0, 1.0])))


@pytest.mark.parametrize("wrong", [2.002, math.nan])
def test_losses_that_differ_are_refused(wrong: float) -> None:
    assert compare.losses_off("gkd", [1.0, 2.0], [1.0, 2.0005]) == pytest.approx(5e-4)
    with pytest.raises(SystemExit, match="gkd: losses differ"):
        compare.losses_off("gkd", [1.0, 2.0], [1.0, wrong])


def test_scores_are_compared_where_texts_are_tokenized_alike() -> None:
    turns = Turns()
    tokens: list[Any] = [[[1, 2], [3]], [[1], [2, 3]]]
    turns.add("ours", {"harness": measured([2.0], [5], [-1.0, -2.0], tokens=tokens)})
    other = {"tokens": [[[1, 2], [3]], [[1, 2], [3]]]}
    for size, seconds in ((1, 5.0), (4, 3.0), (16, 4.0)):
        one = measured([seconds], [10 * size], [-1.0002, -9.0], **other)
        turns.add("theirs", {f"harness {size}": one})
    assert compare.scoring_results(turns, [1, 4, 16]) == {
        "questions_over_harness_rate": pytest.approx(1.5),
        "questions_over_harness_cpu_rate": pytest.approx(1.5),
        "questions_over_harness_memory": 0.125,
        "harness_batch_size": 4,
        "harness_alike": 0.5,
        "harness_logprob_off": pytest.approx(2e-4),
    }
    assert "tokens" not in json.dumps(turns.raw())


def test_the_command_reports_all_peers(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, material, calls = tmp_path / "models", tmp_path / "material", list[str]()
    models.mkdir()
    (models / compare.STUDENT).symlink_to(tiny_builtin["llama"])
    (models / compare.TEACHER).symlink_to(tiny_builtin["gpt2"])
    for name in set(compare.TEXTS.values()):
        more = {"options": list(OPTIONS), "label": 1} if name == "arc_easy" else {"target": "four"}
        lines = [json.dumps({"question": f"two and two {n}?", **more}) for n in range(160)]
        (material / "datasets" / name).mkdir(parents=True)
        (material / "datasets" / name / "train.jsonl").write_text("\n".join(lines))

    def take_turn(turns: Turns, work: Work, peer: compare.Peer, _: Path) -> None:
        calls.append(peer.job)
        assert len(work.samples) == compare.BATCH
        assert len(work.questions) == 5
        job = compare.OURS.get(peer.job, peer.job)
        more = {"learned": 7, "first_loss_of_all_entries": 1.0, "tokens": [[[1], [2]]]}
        mine = {job: measured([1.0], [3], **more), f"{job} whole": measured([3.0], [6])}
        turns.add("ours", mine)
        theirs = replace(
            trained(tokens=more["tokens"]), seconds=[2.0], cpu_seconds=[4.0], peak_bytes=[6]
        )
        sizes = work.batch_sizes if job == "harness" else []
        turns.add("theirs", {peer.job: theirs} | {f"harness {n}": theirs for n in sizes})
        turns.versions[peer.environment] = {"torch": "1"}

    monkeypatch.setattr(compare, "take_turn", take_turn)
    file = tmp_path / "peers.json"
    compare.main(models, material, file, tmp_path, repeats=2, questions=5)
    found = json.loads(file.read_text())
    results = found["results"]
    steps = ["gold", "uld", "gkd", "trainer"]
    assert [calls.count(name) for name in steps] == [4, 4, 4, 6]
    assert calls.count("harness") == 2
    for name in steps:
        for prefix in ("", "long_"):
            assert results[f"{prefix}step_over_{name}_time"] == 0.5
            assert results[f"{prefix}step_over_{name}_cpu_time"] == 0.125
            assert results[f"{prefix}step_over_{name}_memory"] == 0.5
    assert results["even_step_over_trainer_time"] == 0.5
    assert results["whole_over_gold_time"] == 1.5
    assert "whole_over_trainer_time" not in results
    assert results["questions_over_harness_rate"] == 2
    assert results["trainer_loss_off"] == results["gkd_loss_off"] == 0
    assert found["raw"]["versions"] == {n: {"torch": "1"} for n in ("trl", "trainer", "harness")}
    assert found["raw"]["short tokens"]["learned"] > 0


def test_environments_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments.NAMES == ("harness", "trainer", "trl")
    assert {peer.environment for peer in compare.PEERS.values()} == set(environments.NAMES)
    commands: list[list[str]] = []

    def run(command: Sequence[object], check: bool) -> None:
        assert check
        commands.append([str(word) for word in command])
        (tmp_path / "trl").mkdir(exist_ok=True)
        if fails and "install" in command:
            raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(environments.subprocess, "run", run)
    fails = True
    with pytest.raises(subprocess.CalledProcessError):
        environments.environment(tmp_path, "trl")
    fails = False
    python = environments.environment(tmp_path, "trl")
    assert python == tmp_path / "trl" / "bin" / "python"
    assert len(commands) == 4  # half an environment is made anew
    assert commands[-1][-1].endswith("peers/trl.txt")
    assert environments.environment(tmp_path, "trl") == python
    assert len(commands) == 4
    (tmp_path / "trl" / "requirements.txt").write_text("trl==0")
    environments.environment(tmp_path, "trl")
    assert len(commands) == 6


@pytest.mark.parametrize("name", environments.NAMES)
def test_requirements_name_one_version_each(name: str) -> None:
    lines = (environments.HERE / f"{name}.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert "torch==2.13.0" in wanted
    assert all("==" in line for line in wanted)
