"""Model cards: they say what the run did, and nothing that does not hold."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from fedfuse.exporting.export import export
from fedfuse.exporting.merged_model import Merged
from fedfuse.exporting.model_card import Subject, data_names, model_card
from fedfuse.exporting.sharing import what_was_shared
from fedfuse.tracking.run import RunFolder, read_run
from tests.exporting.plain import Text, losses
from tests.federations import lines
from tests.models.folders import edit

MERGED = Merged("LlamaForCausalLM", "float32", 1, "<s>", True, "", Path("/nowhere"))


@pytest.fixture(scope="module")
def found(run: Path) -> RunFolder:
    return read_run(run)


def with_config(run: RunFolder, **keys: Any) -> RunFolder:
    """The run under another config; ``__`` is a dot."""
    return replace(run, config=run.config | {k.replace("__", "."): v for k, v in keys.items()})


def column(card: str, name: str) -> dict[str, str]:
    """A column of the table of measurements, by its first."""
    rows = [[c.strip() for c in r.split("|")[1:-1]] for r in card.splitlines() if "|" in r]
    head = next(number for number, row in enumerate(rows) if row[0] == "domain")
    place = rows[head].index(name)
    return {row[0]: row[place] for row in rows[head + 2 :]}


def test_a_card_as_the_hub_reads_it(run: Path, found: RunFolder, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", model="1").folder
    card = ModelCard.load(folder / "README.md")
    about = card.data.to_dict()
    assert about["license"] == "apache-2.0"
    assert about["language"] == ["en"]
    assert about["library_name"] == "transformers"
    assert {"fedfuse", "federated-learning", "fedmkt"} <= set(about["tags"])
    assert "base_model" not in about  # a folder, which the hub would refuse
    assert "`padded-llama` with a LoRA adapter" in card.text
    assert str(run.parent) not in card.content
    measured = [m for m in lines(run, "metrics") if m["model"] == "1"]
    last = {m["domain"]: m["loss"] for m in measured if m["stage"] == "federated"}
    shown = column(card.text, "this model")
    assert {domain: shown[domain].partition(",")[0] for domain in last} == {
        domain: f"{loss:.3f}" for domain, loss in last.items()
    }
    start = found.overall("1", "zero-shot")
    assert start is not None
    before = column(card.text, "base, untouched")
    assert before["mean over domains"].startswith(f"{start.loss:.3f}")
    for said in ("| Clients | 4 |", "| Rounds | 2 |", "24 private, 4 public", "`fedmkt`"):
        assert said in card.text
    assert f"at commit {found.commit}" in card.text or not found.commit


def test_the_base_is_its_id_where_it_is_from_the_hub(found: RunFolder) -> None:
    named = replace(found, models=found.models | {"server": "owner/model"})
    card = model_card(Subject(named, "server", replace(MERGED, revision="c0ffee" * 6)))
    assert 'base_model: "owner/model"\n' in card
    assert "[owner/model](https://huggingface.co/owner/model) (commit c0ffeec0ffee)" in card
    cached = f"/home/me/models--owner--other/snapshots/{'a' * 40}"
    named = replace(found, models=found.models | {"server": cached})
    card = model_card(Subject(named, "server", replace(MERGED, source=Path(cached))))
    assert 'base_model: "owner/other"\n' in card
    assert "/home/me" not in card


def test_a_base_without_a_licence_is_said_to_have_none(found: RunFolder) -> None:
    assert "The base's files name no licence" in model_card(Subject(found, "1", MERGED))
    # Built-in models are made on the spot.
    assert "no licence" not in model_card(Subject(found, "server", MERGED))


def test_data_is_named_without_its_folder(found: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "patients.jsonl").write_text("{}\n")
    source = f"{tmp_path}/patients.jsonl + owner/set:small"
    assert data_names(source) == ["`patients` (a file or folder)", "`owner/set:small`"]
    card = model_card(Subject(with_config(found, data__source=source), "server", MERGED))
    assert str(tmp_path) not in card
    assert "`patients`" in card


@pytest.mark.parametrize(
    ("strategy", "model", "said", "unsaid"),
    [
        ("fedmkt", "server", "shaped them through that knowledge alone", "adapters"),
        ("fedfuse", "2", "may repeat parts of it", "mean of the adapters"),
        ("llm2slm", "2", "left a client, nor what it knows", "Each round it also sent"),
        ("fedavg-lora", "server", "training on every client's private text", "Neither weights"),
        ("own:Strategy", "server", "not one of fedfuse's own", "Neither weights"),
    ],
)
def test_what_was_shared_is_the_strategys(
    strategy: str, model: str, said: str, unsaid: str, found: RunFolder
) -> None:
    text = what_was_shared(with_config(found, strategy=strategy), model)
    assert said in text
    assert unsaid not in text
    assert "No differential privacy was applied" in text
    assert "The run was a simulation" in text


def test_a_deployed_run_is_not_called_a_simulation(found: RunFolder, tmp_path: Path) -> None:
    assert "simulation" not in what_was_shared(replace(found, folder=tmp_path), "server")


def test_a_strategy_of_the_projects_name_is_no_second_tag(found: RunFolder) -> None:
    card = model_card(Subject(with_config(found, strategy="fedfuse"), "server", MERGED))
    assert '"tags": ["fedfuse", "federated-learning", "lora"]' in card.replace("tags:", '"tags":')


def test_blind_evidence_is_told(found: RunFolder) -> None:
    blind = what_was_shared(with_config(found, fusion__evidence="blind"), "server")
    assert "of which the server alone knew the answers" in blind
    assert "alone knew" not in what_was_shared(found, "server")


def test_a_run_that_was_cut_off_shows_the_round_that_was_saved(
    run: Path, texts: Sequence[Text], tmp_path: Path
) -> None:
    """The server measures a round before it saves it: what it measured last may be of no file."""
    copy = shutil.copytree(run, tmp_path / "run")
    edit(copy / "config.json", status="running")
    later = [m | {"round": 3, "loss": 9.0} for m in lines(run, "metrics") if m["round"] == 2]
    with (copy / "metrics.jsonl").open("a") as file:
        file.writelines(re.sub("'", '"', str(m)).replace("None", "null") + "\n" for m in later)

    out = export(copy)

    wanted = losses(out.folder, texts)
    assert out.loss == pytest.approx(sum(wanted.values()) / len(wanted), abs=1e-4)
    card = (out.folder / "README.md").read_text()
    assert "2 planned; the run was cut off, this model is from after round 2" in card
    assert "9.000" not in card
    client = export(copy, model="1").folder
    assert "the adapter may be of the round after" in (client / "README.md").read_text()
