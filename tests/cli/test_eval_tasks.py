"""``fedfuse eval --tasks``: lm-evaluation-harness on a run's model agrees with our own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation import harness
from fedfuse.evaluation.harness_task import METRICS, write_task
from fedfuse.models.adapter_folder import base_of
from fedfuse.tracking.run import read_run
from tests.cli.test_eval import call, result
from tests.federations import federate, tiny_builtin

__all__ = ["tiny_builtin"]

# The harness's names of what we measure. Our texts are ASCII: its characters are bytes.
SAME = {
    "acc": "accuracy",
    "acc_norm": "normalized_accuracy",
    "acc_bytes": "normalized_accuracy",
    "acc_mutual_info": "calibrated_accuracy",
}
QUESTIONS = [
    Sample("What has gout?\nAnswer:", " tin", "a b", (" a nurse", " tin"), 1),
    Sample("What is zinc?\nAnswer:", " a metal", "c", (" a metal", " a", " gout"), 0),
]
# What the harness and its data sets do is not ours to mend.
others = pytest.mark.filterwarnings("default")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness, without network, and with a cache of its own."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra eval) is not installed")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def run(tiny_builtin: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return federate(folder, clients=2, baselines=False, data__questions=20)


@others
@pytest.mark.parametrize("model", ["server", "0", "1"])
def test_the_harness_finds_our_accuracies(
    installed: None,
    run: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "tasks"
    assert call(monkeypatch, run, f"--model={model}", f"--write-task={folder}") == 0
    assert f"--tasks fedfuse_builtin --include-path {folder}" in capsys.readouterr().out
    asked = ("--tasks=fedfuse_builtin", f"--include-path={folder}")
    assert call(monkeypatch, run, f"--model={model}", *asked) == 0
    ours = result(run, model)["domains"]
    found = result(run, f"{model}-tasks-fedfuse_builtin")
    assert sorted(found["tasks"]) == [f"fedfuse_builtin_{n}_{d}" for n, d in enumerate(ours)]
    for domain, (task, metrics) in zip(ours.values(), found["tasks"].items(), strict=True):
        assert {name: score["value"] for name, score in metrics.items()} == pytest.approx(
            {name: domain[own]["value"] for name, own in SAME.items()}
        )
        assert found["task_samples"][task]["effective"] == 20
    values = {score["value"] for metrics in found["tasks"].values() for score in metrics.values()}
    assert found["versions"]["fedfuse"] == read_run(run).versions["fedfuse"]
    assert len(values) > 3  # they tell models and measures apart
    assert "acc_mutual_info" in capsys.readouterr().out


@others
def test_the_harness_s_own_model_and_tokenizer_find_them_too(
    installed: None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of ours but the files: base and adapter as PEFT loads them."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    assert call(monkeypatch, run, f"--write-task={tmp_path}") == 0
    adapter = run / "server" / "adapter"
    base = base_of(adapter)
    lm = HFLM(pretrained=base, peft=str(adapter), device="cpu", dtype="float32", add_bos_token=True)
    manager = TaskManager(include_path=str(tmp_path))
    results = simple_evaluate(
        lm, tasks=["fedfuse_builtin"], task_manager=manager, bootstrap_iters=0, log_samples=False
    )["results"]
    domains = result(run, "server")["domains"]
    for domain, values in zip(domains.values(), results.values(), strict=True):
        assert values["acc,none"] == pytest.approx(domain["accuracy"]["value"])
        assert values["acc_norm,none"] == pytest.approx(domain["normalized_accuracy"]["value"])


@others
def test_it_asks_as_many_as_it_is_told_to(
    installed: None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = write_task([*QUESTIONS, *QUESTIONS], tmp_path, "two")
    asked = (f"--tasks={tag}", f"--include-path={tmp_path}", "--limit=1")
    assert call(monkeypatch, run, *asked) == 0
    found = result(run, "server-tasks-fedfuse_two")
    assert sorted(found["tasks"]) == ["fedfuse_two_0_a_b", "fedfuse_two_1_c"]
    assert [asked["effective"] for asked in found["task_samples"].values()] == [1, 1]


@others
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"task": "fedfuse_other"}, "got 'fedfuse_one_0_a_b'"),
        ({"dataset_kwargs": {"data_files": {"test": "/no/such.jsonl"}}}, "expected its data"),
        ({"output_type": "generate_until"}, "got 'generate_until'"),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused(
    installed: None, run: Path, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    write_task(QUESTIONS[:1], tmp_path, "one")
    file = tmp_path / "fedfuse_one_0_a_b.yaml"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FedfuseError, match=error):
        harness.load_tasks(["fedfuse_one_0_a_b"], tmp_path)
    with pytest.raises(FedfuseError, match="expected a folder with YAML files"):
        harness.load_tasks(["fedfuse_one_0_a_b"], tmp_path / "none")


def test_without_the_harness_it_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    monkeypatch.setattr("fedfuse.tracking.saved_model.load_saved_model", None)  # not even tried
    assert call(monkeypatch, run, "--tasks=hellaswag") == 1
    assert "pip install 'fedfuse[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--tasks=piqa", "--data=x.jsonl"), "--tasks: expected them alone"),
        (("--include-path=.",), "--include-path: expected --tasks too"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Path,
    options: tuple[str, ...],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, run, *options) == 1
    assert error in capsys.readouterr().err


def test_a_task_has_the_questions_word_by_word(tmp_path: Path) -> None:
    assert write_task(QUESTIONS, tmp_path, "my data") == "fedfuse_my_data"
    about = json.loads((tmp_path / "fedfuse_my_data_1_c.yaml").read_text())
    assert (about["task"], about["tag"]) == ("fedfuse_my_data_1_c", "fedfuse_my_data")
    assert [metric["metric"] for metric in about["metric_list"]] == list(METRICS) == list(SAME)
    [file] = about["dataset_kwargs"]["data_files"].values()
    [record] = [json.loads(line) for line in Path(file).read_text().splitlines()]
    question = QUESTIONS[1]
    assert record == {
        "prompt": question.prompt,
        "options": list(question.options),
        "label": question.label,
    }


def test_no_questions_make_no_task(tmp_path: Path) -> None:
    chat = Sample("", " a", "", (" a", " b"), 0, (("user", "Which?"),))
    for questions, error in (([], "got none"), ([chat], "1 in chats")):
        with pytest.raises(FedfuseError, match=error):
            write_task(questions, tmp_path, "none")
    assert not list(tmp_path.iterdir())
