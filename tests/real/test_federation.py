"""A round between real models of different tokenizers, both ways, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.federations import about, federate, lines
from tests.real.conftest import folder_of

NAMES = "one two three four five six seven eight nine ten".split()


def write_questions(path: Path) -> None:
    """Whether two numbers' sum is odd or even, a hundred times."""
    records = [
        {"question": f"{a} and {b}", "options": ["odd", "even"], "label": int((i + j) % 2 == 0)}
        for i, a in enumerate(NAMES)
        for j, b in enumerate(NAMES)
    ]
    path.write_text("\n".join(map(json.dumps, records)))


def test_a_round_between_real_models(tmp_path: Path) -> None:
    server, client = folder_of("gemma3-270m"), folder_of("smollm2-135m-instruct")
    small = folder_of("stories260K")
    write_questions(tmp_path / "sums.jsonl")
    folder = federate(
        tmp_path / "runs",
        clients=2,
        preset="pretrained",
        strategy="fedmkt",
        rounds=1,
        data__source=str(tmp_path / "sums.jsonl"),
        data__partition="iid",
        data__public=8,
        data__test=8,
        data__questions=8,
        data__max_length=48,
        server__model=server,
        clients__model=f"{client}, {small}",
        server__lora_targets="q_proj, v_proj",
        clients__lora_targets="q_proj, v_proj",
        local__steps=2,
        server_distill__steps=2,
        client_distill__steps=2,
        local__batch_size=4,
        server_distill__batch_size=4,
        client_distill__batch_size=4,
    )
    assert about(folder)["status"] == "finished"
    metrics = [line for line in lines(folder, "metrics") if line["stage"] == "federated"]
    assert {line["model"] for line in metrics} == {"server", "0", "1"}
    assert all(np.isfinite(line["loss"]) for line in metrics)
    assert all(line["error"] is None for line in lines(folder, "messages"))
    before = {x["model"]: x["loss"] for x in lines(folder, "metrics") if x["stage"] == "zero-shot"}
    after = {line["model"]: line["loss"] for line in metrics}
    assert all(after[model] != before[model] for model in after)  # everybody learned something
    shares = lines(folder, "teacher_shares")
    assert {line["direction"] for line in shares} == {"up", "down"}
    taught = [x for x in shares if x["direction"] == "up" and x["teacher"] != "none"]
    assert sum(x["share"] for x in taught) > 0
