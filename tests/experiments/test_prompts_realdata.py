"""experiments/prompts/realdata from data sets to results, with made-up texts and tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from experiments.prompts import realdata, realmodels, realtasks
from experiments.prompts.realtasks import DATA_SETS, PROPERTIES, VAGUE, Aspect, hold_out
from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.models.causal_lm import load_causal_lm
from tests.prompt_federations import forget

HELD, TRAIN, TEST = 220, 420, 60
NOUNS = "film plot actor story scene song book play".split()
SIGNS = {"negative": "awful dull nasty".split(), "positive": "lovely superb fine".split()}


def records(name: str, rng: Random, count: int) -> Iterator[dict[str, Any]]:
    """Distinct texts in the fields that the data set has; a word of them tells the label."""
    for number in range(count):
        label = rng.randrange(2)
        word = rng.choice(list(SIGNS.values())[label])
        comma = " ," if rng.random() < 0.5 else ""
        text = f"{rng.choice(NOUNS)} {number}{comma} {word} {rng.choice(NOUNS)}"
        if name == "rte":
            options = ["entailment", "not_entailment"]
            yield {"premise": text, "hypothesis": word, "options": options, "label": label}
        elif name == "arc_easy":
            yield {"question": text, "options": [f"{number} a", f"{number} b"], "label": label}
        else:
            options = ["negative", "positive"] if name == "sst2" else ["HUM", "LOC"]
            yield {"text": text, "options": options, "label": label}


@dataclass(frozen=True)
class Made:
    material: Path
    output: Path
    results: dict[str, Any]


def arguments(material: Path, output: Path) -> dict[str, Any]:
    return {
        "material": material,
        "seeds": "0",
        "tasks": "sst2",
        "queries": 240,
        "clients": 2,
        "rounds": 1,
        "output": output,
        "results": output / "results.json",
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The whole command, in seconds."""
    material, output = tmp_path_factory.mktemp("material"), tmp_path_factory.mktemp("runs")
    for data in DATA_SETS:
        folder = material / "datasets" / data.folder
        folder.mkdir(parents=True)
        found = list(records(data.folder, Random(0), TRAIN + TEST))
        for split, part in (("train", found[TEST:]), ("test", found[:TEST])):
            lines = "".join(json.dumps(record) + "\n" for record in part)
            (folder / f"{split}.jsonl").write_text(lines)
    tiny = {"vocab_size": 500, "width": 64, "batch_size": 32}
    recipes = {
        "answers": replace(realmodels.RECIPES["answers"], drills=110, steps=110, **tiny),
        "second": replace(realmodels.RECIPES["second"], drills=2, steps=2, **tiny),
        "proposes": replace(realmodels.RECIPES["proposes"], steps=30, **tiny),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realmodels, "RECIPES", recipes)
        patch.setattr(realtasks, "HELD", HELD)
        # So few steps teach no distrust of a vague prompt; this one asks for something else.
        patch.setattr(realdata, "VAGUE", "read the text and tell the length")
        patch.setattr(realdata, "SKEWS", {"dirichlet": 0.1})
        patch.setattr(realdata, "DRILLS", 1000)
        patch.setattr(realdata, "EXERCISES", 3000)
        patch.setattr("strategies.app.write_report", lambda folder: folder)
        patch.setattr("strategies.app.save_headline", lambda run, stem: None)
        forget()
        realdata.main(**arguments(material, output))
        yield Made(material, output, json.loads((output / "results.json").read_text()))
    forget()


def test_the_federation_gains_on_data_in_folders(made: Made) -> None:
    (cell,) = made.results["cells"]
    assert (cell["task"], cell["skew"], cell["seed"]) == ("sst2", "dirichlet", 0)
    # A word tells the label, so there is all to be had, and an instruction gets it.
    assert cell["classifier"] == 1
    assert cell["by_hand"] > 0.85
    assert cell["manual"] < 0.6
    assert cell["accuracy"] > cell["manual"] + 0.2
    assert 0.4 < cell["frequent"] < 0.6
    assert 0 < cell["bytes_per_client_round"] < 2000
    assert made.results["summary"] == realdata.summarize(made.results["cells"])
    assert made.results["seeds"] == [0]


def test_models_are_ordinary_folders(made: Made) -> None:
    (folder,) = (made.output / "experiment-prompts-realdata").glob("llama-*")
    config = parse(json.loads((folder / "sst2-dirichlet-0" / "config.json").read_text())["config"])
    answers, proposes = config.black_box.model, config.feddtpt.masked_lm
    assert AutoModelForCausalLM.from_pretrained(answers).config.model_type == "llama"
    assert AutoModelForMaskedLM.from_pretrained(proposes).config.model_type == "bert"
    assert AutoTokenizer.from_pretrained(proposes).mask_token == "<mask>"
    masked = MaskedLM.load(proposes)
    assert masked.text(masked.encode(VAGUE)) == VAGUE
    proposed = {masked.tokenizer.decode([i]) for i in masked.allowed}
    assert {word for aspect in PROPERTIES for word in aspect.strong} <= proposed
    # An answer ends by itself.
    box = LocalBlackBox(load_causal_lm(answers, device="cpu"), max_tokens=8)
    (reply,) = box.ask(["sentiment opinion\n\nfilm 3 superb plot\nAnswer:"])
    assert reply.text.strip() in ("positive", "negative")


def test_nobody_was_trained_on_what_the_federation_has(made: Made, tmp_path: Path) -> None:
    for data in DATA_SETS:
        _, known = hold_out(data, made.material, tmp_path / data.folder)
        learnt = {example.text for example in known}
        parts = [
            (tmp_path / data.folder / f"{split}.jsonl").read_text().splitlines()
            for split in ("train", "test")
        ]
        assert [len(part) for part in parts] == [HELD, TEST]
        assert len(learnt) == TRAIN - HELD
        for line in (*parts[0], *parts[1]):
            record = json.loads(line)
            text = data.template.format(**record)
            assert not any(example.startswith(text) for example in learnt)


def test_what_is_finished_is_not_made_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        pytest.fail("made again")

    monkeypatch.setattr(realmodels, "_causal_lm", again)
    monkeypatch.setattr(realmodels, "_masked_lm", again)
    monkeypatch.setattr("experiments.federations.run_in_process", again)
    realdata.main(**arguments(made.material, made.output))
    found = json.loads((made.output / "results.json").read_text())
    assert found["cells"] == made.results["cells"]


def test_wrong_arguments_are_named(made: Made, tmp_path: Path) -> None:
    with pytest.raises(
        FedfuseError, match=r"expected tasks of sst2, trec, rte, arc_easy, got mnli"
    ):
        realdata.main(**{**arguments(made.material, tmp_path), "tasks": "sst2,mnli"})
    with pytest.raises(FedfuseError, match=r"does not exist"):
        realdata.main(**arguments(tmp_path, tmp_path))
    file = made.material / "datasets" / "sst2" / "train.jsonl"
    few = tmp_path / "datasets" / "sst2"
    few.mkdir(parents=True)
    (few / "train.jsonl").write_text("\n".join(file.read_text().splitlines()[:HELD]))
    (few / "test.jsonl").write_text(file.read_text())
    with pytest.raises(FedfuseError, match=r"expected more than 220 distinct train texts, got 0"):
        hold_out(DATA_SETS[0], tmp_path, tmp_path / "data")


def test_properties_by_hand() -> None:
    data = DATA_SETS[0]
    assert realtasks.properties(data, "fine") == ("review", "short", "no", "none")
    text = ("word " * 18) + "7 , end"
    assert realtasks.properties(data, text) == ("review", "long", "yes", "some")
    names = [aspect.name for aspect in PROPERTIES]
    assert names == ["source", "length", "comma", "digit"]


def test_instructions_are_about_what_is_meant() -> None:
    aspect = Aspect("x", ("xx",), ("xx",))
    rng = Random(0)
    drawn = [realtasks.draw_instruction(rng, aspect, 4, ("a", "b")).split() for _ in range(400)]
    hints = sum(words.count("xx") for words in drawn) / 4 / 400
    # Of what is not meant none is "xx"; shuffling keeps hints, leaving out loses a few.
    assert realtasks.MEANT - 0.08 < hints < realtasks.MEANT + 0.05
    assert any("a or b" in " ".join(words) for words in drawn)
    assert "xx" not in realtasks.draw_instruction(rng, aspect, 0, ("a", "b"))


def test_strong_words_ask_for_one_thing() -> None:
    strong = [word for aspect in realtasks.ASPECTS for word in aspect.strong]
    assert len(set(strong)) == len(strong)
    weak = [word for aspect in realtasks.ASPECTS for word in aspect.weak]
    assert all(weak.count(word) > 1 for word in weak)
    assert not set(weak) & set(strong)


def test_summary_and_table_by_hand() -> None:
    one = dict.fromkeys(realdata.COLUMNS, 0.5) | {"queries": 10, "bytes_per_client_round": 9.6}
    rows = [
        {**one, "task": "sst2", "skew": "iid", "seed": 0, "accuracy": 0.6, "manual": 0.1},
        {**one, "task": "sst2", "skew": "iid", "seed": 1, "accuracy": 0.8, "manual": 0.3},
    ]
    found = realdata.summarize(rows)["sst2"]["iid"]
    assert found["gain_over_vague_points"] == 50
    assert found["gain_over_local_points"] == 20
    assert found["gap_to_centralized_points"] == -20
    assert found["gap_to_hand_points"] == -20
    assert found["transfer_gain_points"] == 0
    assert found["bytes_per_client_round"] == 10
    assert realdata.table({"sst2": {"iid": found}}).splitlines()[2] == (
        "| sst2, iid | 50 | 20 | 50 | 70 ± 14 | 50 | 50 | 50 | 50 | 50 |"
    )
