"""The experiments about the wire measure what they say."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from experiments.wire import run as one_round
from experiments.wire.rounds import of_run
from experiments.wire.run import REFERENCE, VARIANTS, Encoding
from fedfuse.config.run_config import parse
from fedfuse.knowledge.delta import distances
from fedfuse.tracking.run import read_run
from tests.federations import FAST, federate
from tests.federations import tiny_builtin as tiny_builtin
from tests.knowledge.conftest import random_knowledge


def test_variants_travel_as_they_say() -> None:
    knowledge = random_knowledge(rows=50, k=16)
    sizes = {}
    for variant in VARIANTS:
        if variant.k == 16:
            arrived, size = variant.travel(knowledge)
            sizes[variant.name] = size
            assert distances(knowledge, arrived).max() < 1.1 - variant.top_p + 0.02
    assert len(sizes) == len({variant.name for variant in VARIANTS if variant.k == 16})
    assert sizes[REFERENCE.name] == 50 * (16 * 8 + 8)
    assert sizes["16 bits, top-p 1, k 16"] < sizes[REFERENCE.name]
    assert sizes["8 bits, top-p 1, k 16"] < sizes["16 bits, top-p 1, k 16"]
    assert sizes["16 bits, top-p 0.95, k 16"] < sizes["16 bits, top-p 1, k 16"]


def test_only_the_wire_differs(tiny_builtin: dict[str, Path]) -> None:
    config = parse({**FAST, "data.domains": 2, "data.public": 12, "server-distill.steps": 8})
    clients = one_round.train_clients(config)
    assert len(clients) == 2
    server = one_round.untrained(config, None)
    cells = []
    for variant, order in (
        (REFERENCE, 0),
        (Encoding(8), 0),
        (REFERENCE, 1),
        (REFERENCE, 0),
    ):
        teacher, size = one_round.deliver(config, server, clients, variant)
        cell = {"seed": 0, "order": order, "variant": variant.name, "bytes_per_row": size}
        cells.append(cell | one_round.distil(config, server, teacher, order))
    exact, compacted, other, again = (cell["loss"] for cell in cells)
    assert again == exact
    assert compacted == pytest.approx(exact, rel=0.01)
    assert other != exact
    summary = one_round.summarize(cells[:3])
    assert summary[REFERENCE.name]["loss_over_float32"] == 0
    assert summary[REFERENCE.name]["chance"] > 0
    assert summary["8 bits, top-p 1, k 16"]["loss_over_float32"] == round(compacted / exact - 1, 5)
    assert one_round.table(summary).count("\n") == 3


def test_messages_of_a_round_are_counted(tmp_path: Path, tiny_builtin: dict[str, Path]) -> None:
    keys = {"data__domains": 2, "data__partition": "iid", "baselines": False}
    run = read_run(federate(tmp_path, clients=2, **keys))
    found = of_run(run)
    up = [x.received_bytes for x in run.messages if x.phase == "train.local"]
    assert len(up) == 2 * run.rounds
    assert found["kilobytes_up"] == pytest.approx(mean(up) * 2 / 1000)
    down = [x.sent_bytes for x in run.messages if x.phase == "train.distill"]
    assert found["kilobytes_down"] == pytest.approx(mean(down) * 2 / 1000)
    assert found["server_excess"] > 0
