"""Exported models: by transformers alone they are what the run measured; all else is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedfuse.builtin.models import model_folder
from fedfuse.errors import FedfuseError
from fedfuse.exporting.export import export
from tests.exporting.bases import CARD, GENERATION, PADDED, TEMPLATE
from tests.exporting.plain import Text, load, losses
from tests.federations import about, federate, lines
from tests.models.folders import edit

MODELS = ("server", "0", "1", "2", "3")
# Nats per byte: what the run's own loss may differ by.
CLOSE = 1e-4


def measured(run: Path, model: str, stage: str = "federated") -> dict[str, float]:
    """Losses by domain of the stage's last round, as metrics.jsonl has them."""
    found = [m for m in lines(run, "metrics") if m["model"] == model and m["stage"] == stage]
    last = max(m["round"] for m in found)
    return {m["domain"]: m["loss"] for m in found if m["round"] == last}


@pytest.mark.parametrize("model", MODELS)
def test_transformers_alone_measures_what_the_run_did(
    model: str, run: Path, texts: Sequence[Text], tmp_path: Path
) -> None:
    found = export(run, tmp_path / "out", model=model)

    wanted = measured(run, model)
    assert losses(found.folder, texts) == pytest.approx(wanted, abs=CLOSE)
    assert found.loss == pytest.approx(sum(wanted.values()) / len(wanted))
    # The base would not do.
    before = measured(run, model, "zero-shot")
    assert max(abs(before[domain] - wanted[domain]) for domain in wanted) > 20 * CLOSE


def test_neither_fedfuse_nor_peft_is_needed(
    run: Path, texts: Sequence[Text], tmp_path: Path
) -> None:
    folder = export(run, tmp_path / "out").folder
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = (
        "import json, sys\n"
        "sys.modules |= dict.fromkeys(('fedfuse', 'peft', 'flwr'))\n"  # none can be imported
        "from plain import losses\n"
        f"print(json.dumps(losses({str(folder)!r}, json.load(open('texts.json')))))\n"
    )
    shutil.copy(Path(__file__).with_name("plain.py"), tmp_path)
    (tmp_path / "measure.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "measure.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(measured(run, "server"), abs=CLOSE)


def test_padded_rows_are_left_out(run: Path, tmp_path: Path) -> None:
    model, tokenizer = load(export(run, tmp_path / "out", model="1").folder)
    base = json.loads((run.parent / "padded-llama" / "config.json").read_text())
    assert base["vocab_size"] == len(tokenizer) + PADDED
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == len(tokenizer)


def test_weights_stay_tied(run: Path, tmp_path: Path) -> None:
    model, _ = load(export(run, tmp_path / "out").folder)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert sorted(name for name in dict(model.named_parameters()) if "lora" in name) == []


def test_what_belongs_to_the_base_goes_along_and_nothing_that_runs(
    run: Path, tmp_path: Path
) -> None:
    folder = export(run, tmp_path / "out", model="1").folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((folder / "generation_config.json").read_text()) == GENERATION
    _, tokenizer = load(folder)
    assert tokenizer.chat_template == TEMPLATE
    chat = [{"role": "user", "content": "Who?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "[user] Who?\n"
    assert (folder / "README.md").read_text() != CARD


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype: str, run: Path, texts: Sequence[Text], tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", dtype=dtype).folder
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {getattr(torch, dtype)}
    model, _ = load(folder)
    assert model.dtype == getattr(torch, dtype)
    assert losses(folder, texts) == pytest.approx(measured(run, "server"), abs=2e-2)


def test_the_runs_dtype_is_the_default(
    tiny_builtin: dict[str, Path], texts: Sequence[Text], tmp_path: Path
) -> None:
    run = federate(tmp_path, clients=2, rounds=1, server__dtype="bfloat16")
    found = export(run)
    assert found.folder == run / "server" / "merged"
    assert found.merged.dtype == "bfloat16"
    assert export(run, model="1").merged.dtype == "float32"
    # The run computed in bfloat16, so it rounded more than weights.
    assert losses(found.folder, texts) == pytest.approx(measured(run, "server"), abs=2e-2)


def test_numbers_beyond_float16_are_refused_and_nothing_stays(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "server" / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({n: 1e8 * w if "v_proj.lora_B" in n else w for n, w in weights.items()}, file)
    with pytest.raises(FedfuseError, match="dtype float16: expected finite weights, got weights"):
        export(copy, tmp_path / "new" / "out", dtype="float16")
    assert list((tmp_path / "new").iterdir()) == []


def test_an_output_that_holds_something_is_left_alone(run: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "note").write_text("mine")
    with pytest.raises(FedfuseError, match=r"output '.*full': expected a new folder, or an empty"):
        export(run, full)
    with pytest.raises(FedfuseError, match="got a file"):
        export(run, full / "note")
    assert [path.name for path in full.iterdir()] == ["note"]
    (full / "note").unlink()
    assert export(run, full).folder == full
    assert (full / "model.safetensors").is_file()


def test_clients_go_by_number_or_name(run: Path, tmp_path: Path) -> None:
    names = about(run)["names"]
    found = export(run, tmp_path / "out", model=names["2"])
    assert found.merged.architecture == "OPTForCausalLM"
    with pytest.raises(FedfuseError, match=r"model: expected one of server \(server\), 0 \(.*got"):
        export(run, tmp_path / "other", model="4")


def test_a_client_elsewhere_is_told_apart_from_a_run_that_ended_early(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "clients")
    with pytest.raises(FedfuseError, match="a client's adapter stays on its own machine"):
        export(copy, model="0")
    shutil.rmtree(copy / "server" / "adapter")
    edit(copy / "config.json", status="failed")
    with pytest.raises(FedfuseError, match=r"the run \(failed\) ended before a round was saved"):
        export(copy)
    with pytest.raises(FedfuseError, match=r"expected a run folder, with a config\.json"):
        export(tmp_path)


def test_a_server_that_only_taught_is_refused(
    tiny_builtin: dict[str, Path], tmp_path: Path
) -> None:
    run = federate(tmp_path, clients=2, rounds=1, strategy="llm2slm")
    with pytest.raises(FedfuseError, match="expected a trained adapter, got one that changes noth"):
        export(run)
    assert export(run, model="0").loss is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"strategy": "feddtpt"}}, "one of strategy 'feddtpt', which tunes a prompt"),
        ({"models": {"server": "https://host/v1#large"}}, "got large, a teacher that does not"),
        ({"config": {"strategy": "fedmkt", "server.dtype": "int8"}}, "dtype: expected one of floa"),
    ],
)
def test_runs_without_a_model_of_their_own(
    change: dict[str, Any], message: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    edit(tmp_path / "run" / "config.json", **change)
    if "dtype" in message:
        shutil.copytree(run / "server", tmp_path / "run" / "server")
    with pytest.raises(FedfuseError, match=message):
        export(tmp_path / "run")


def test_another_base_is_refused_and_a_moved_one_is_found(
    run: Path, texts: Sequence[Text], tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    edit(copy / "config.json", models=about(run)["models"] | {"1": str(tmp_path / "gone")})
    config = copy / "clients" / "1" / "adapter" / "adapter_config.json"
    edit(config, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(FedfuseError, match=r"expected its base model in the folder .*, which is n"):
        export(copy, tmp_path / "out", model="1")

    moved = shutil.copytree(run.parent / "padded-llama", tmp_path / "moved")
    edit(config, base_model_name_or_path=str(moved))
    found = export(copy, tmp_path / "out", model="1")
    assert losses(found.folder, texts) == pytest.approx(measured(run, "1"), abs=CLOSE)

    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedfuseError, match=r"base '.*moved': expected fingerprint \w{16}, got"):
        export(copy, tmp_path / "other", model="1")
    assert not (tmp_path / "other").exists()


def test_a_base_from_the_hub(run: Path, texts: Sequence[Text], tmp_path: Path) -> None:
    """As it is in the hub's cache; an empty one and no network is one clear line."""
    cache, commit = tmp_path / "hub", "0123456789" * 4
    snapshot = cache / "models--owner--tiny" / "snapshots" / commit
    shutil.copytree(model_folder("builtin:server"), snapshot)
    (snapshot / "README.md").write_text(CARD)
    (cache / "models--owner--tiny" / "refs").mkdir()
    (cache / "models--owner--tiny" / "refs" / "main").write_text(commit)
    copy = shutil.copytree(run, tmp_path / "run")
    edit(copy / "config.json", models=about(run)["models"] | {"server": "owner/tiny"})
    adapter = copy / "server" / "adapter"
    (adapter / "base.json").unlink()
    edit(adapter / "adapter_config.json", base_model_name_or_path="owner/tiny")
    code = f"import fedfuse; print(fedfuse.export({str(copy)!r}).folder)"

    def call(hub: Path) -> subprocess.CompletedProcess[str]:
        environment = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": sys.path[0]}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "", **environment, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    found = call(cache)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(copy / "server" / "merged")
    folder = copy / "server" / "merged"
    assert losses(folder, texts) == pytest.approx(measured(run, "server"), abs=CLOSE)
    card = (folder / "README.md").read_text()
    assert 'base_model: "owner/tiny"\n' in card
    assert f"(commit {commit[:12]})" in card
    shutil.rmtree(folder)
    assert "model 'owner/tiny' cannot be loaded" in call(tmp_path / "empty").stderr
    assert not folder.exists()
