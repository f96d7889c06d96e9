"""The benchmarks run, report what they promise, and their oracle finds what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks import (
    alignment,
    codec,
    deployment,
    distillation,
    gate,
    mined_oracle,
    phases,
    trainer,
)
from benchmarks.harness import QUICK
from benchmarks.losses import LossBench, StepSize, peak_memory
from benchmarks.material import cut, load_text, load_tokenizer
from benchmarks.plain_alignment import nearest
from benchmarks.projection_speed import AlignmentBench, reference
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.builtin.tokenizers import KINDS
from fedfuse.config.run_config import parse
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.federations import tiny_builtin as tiny_builtin

RESULTS = {
    "mined_gpt2_llama2_seconds",
    "mined_warm_milliseconds",
    "mined_speedup_over_brute_force",
    "mined_qwen_llama2_seconds",
    "events_gpt2_llama2_seconds",
    "events_warm_milliseconds",
    "rows_per_second",
    "rows_speedup_over_reference",
    "row_cost_8192_over_128",
}
FRAME = {"command", "seed", "commit", "versions", "machine", "seconds", "peak_memory_mb"}


@pytest.fixture(scope="module")
def material(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizers: dict[str, TextTokenizer],
    language: list[str],
) -> Path:
    """A folder like the public material's, around tiny tokenizers and the built-in world's text."""
    folder = tmp_path_factory.mktemp("material")
    for name, kind in zip(("gpt2", "llama2", "qwen"), KINDS, strict=True):
        home = folder / "tokenizers" / name
        home.mkdir(parents=True)
        whole = json.loads(tiny_tokenizers[kind].to_json())
        (home / "tokenizer.json").write_text(json.dumps(whole["tokenizer"]))
        config = {f"{role}_token": token for role, token in whole["specials"].items()}
        (home / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("gsm8k", "arc_easy", "arc_challenge"):
        home = folder / "datasets" / name
        home.mkdir(parents=True)
        # U+2028 ends a line for some readers of lines, and not for JSON; é has two bytes.
        lines = [{"question": f"{text} \u2028é", "target": text} for text in language]
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (home / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bench(material: Path) -> AlignmentBench:
    return AlignmentBench(material, "gpt2", "llama2", seed=0)


def read(path: Path) -> Any:
    found = json.loads(path.read_text())
    assert set(found) == FRAME | {"results", "raw"}
    assert found["machine"]["cpu"]
    assert str(path.parent) not in path.read_text()
    return found


def test_alignment_reports_every_number(material: Path, tmp_path: Path) -> None:
    path = tmp_path / "results" / "alignment.json"
    alignment.main(material, path, repeats=2, quick=True)
    found = read(path)
    assert set(found["results"]) == RESULTS
    assert all(0 < value < np.inf for value in found["results"].values())
    assert {len(repeats) for repeats in found["raw"]["seconds"].values()} == {2}
    modes = set(found["raw"]["rows"]["rows_per_second"])
    assert {"exact-boundary sum", "exact-boundary first", "events sum", "dtw first"} <= modes
    cold = found["raw"]["mined"]["cold_median_seconds"]
    slowest = max(cold.values())
    assert found["results"]["mined_gpt2_llama2_seconds"] == pytest.approx(slowest, rel=1e-3)


def test_bigrams_are_honest_knowledge(material: Path) -> None:
    known = codec.bigrams(material, 400, 16, seed=0)
    tokenizer = load_tokenizer(material, "llama2")
    known.validate(
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        public=known.public,
        num_rows=400,
    )
    same = codec.bigrams(material, 400, 16, seed=0)
    np.testing.assert_array_equal(known.logprobs, same.logprobs)
    assert len(np.unique(known.logprobs[:, 0])) > 390


def test_parts_are_chosen(material: Path, tmp_path: Path) -> None:
    path = tmp_path / "alignment.json"
    alignment.main(material, path, parts="qwen", repeats=1, quick=True)
    found = read(path)
    assert set(found["results"]) == {"mined_qwen_llama2_seconds"}
    with pytest.raises(typer.BadParameter, match="gpt3"):
        alignment.main(material, path, parts="qwen,gpt3")


def test_texts_are_cut_at_tokens(material: Path, bench: AlignmentBench) -> None:
    text = load_text(material)
    ends = bench.source.encode([text])[0].ends
    pieces = cut(text, ends, 7, 100)
    assert len(pieces) == 14
    assert text.startswith("".join(pieces))
    assert len("".join(pieces).encode()) == ends[97]
    with pytest.raises(SystemExit, match="a text of"):
        cut(text, ends[:5], 7, 100)


def test_made_up_knowledge_is_valid(bench: AlignmentBench) -> None:
    case = bench.case(50, 1000)
    known, rows = case.knowledge, len(case.source.token)
    known.validate(
        vocab_size=bench.source.vocab_size,
        tokenizer=bench.source.fingerprint,
        public=known.public,
        num_rows=rows,
    )
    assert all(len(set(row)) == len(row) for row in known.indices.tolist())
    holds_label = (known.indices == case.source.token[:, None]).any(axis=1)
    assert 0.85 < holds_label.mean() < 1


def test_reference_is_the_rule_of_the_paper(bench: AlignmentBench) -> None:
    """What is compared in speed gives the same rows, so neither does less."""
    case = bench.case(60, 600)
    rows = [row for text in reference(bench, case)() for row in text]
    found = bench.library(case, "dtw", "first", "one-hot")
    assert len(rows) == len(case.target.token) > 300
    assert 0.2 < np.mean([len(row) > 1 for row in rows]) < 1
    for row, ids, logs in zip(rows, found.indices, found.logprobs, strict=True):
        used = np.isfinite(logs)
        assert [token for token, _ in row] == ids[used].tolist()
        assert [log for _, log in row] == logs[used].tolist()


def test_loop_gives_the_table(bench: AlignmentBench) -> None:
    source, target = bench.source_bytes, bench.target_bytes
    texts = [target.bytes[i] for i in target.used - target.special if target.bytes[i]]
    for token in range(0, bench.source.vocab_size, 7):
        if token in source.special:
            continue
        text, distance = nearest(source.bytes[token], texts)
        assert text == target.bytes[bench.table.best[token]]
        assert distance == bench.table.distance[token, 0]


def test_oracle_confirms_the_tables(material: Path, tmp_path: Path) -> None:
    path = tmp_path / "mined_oracle.json"
    mined_oracle.main(material, path)
    results = read(path)["results"]
    assert len(results) == 4
    given = load_tokenizer(material, "gpt2").vocabulary_bytes
    wanted = load_tokenizer(material, "llama2").vocabulary_bytes
    texts = {wanted.bytes[i] for i in wanted.used - wanted.special}
    for name in ("gpt2-llama2 bytes", "gpt2-llama2 characters"):
        counts = results[name]
        assert counts["entries"] == len(given.bytes)
        assert counts["equal_distances"] == counts["equal_targets"] == counts["entries"]
        ordinary = [i for i in given.used - given.special if given.bytes[i] in texts]
        assert counts["exact_matches"] == len(ordinary) > 20
        assert counts["mismatches"] == 0


@pytest.mark.parametrize("field", ["target", "distance"])
def test_oracle_finds_a_wrong_entry(
    field: str, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupted(*args: Any, **options: Any) -> VocabularyTable:
        table = minimum_edit_distance_table(*args, **options)
        values = getattr(table, field).copy()
        values[40, 0] += 1
        return replace(table, **{field: values})

    monkeypatch.setattr(mined_oracle, "minimum_edit_distance_table", corrupted)
    path = tmp_path / "mined_oracle.json"
    with pytest.raises(SystemExit) as stopped:
        mined_oracle.main(material, path, units="bytes")
    assert stopped.value.code == 1
    found = read(path)
    counts = found["results"]["gpt2-llama2 bytes"]
    assert counts["mismatches"] == 1
    equal = "equal_targets" if field == "target" else "equal_distances"
    assert counts[equal] == counts["entries"] - 1
    assert [m["source"] for m in found["raw"]["first_mismatches"]["gpt2-llama2 bytes"]] == [40]


def test_distillation_reports_every_number(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "distillation.json"
    bytes_of = {("plain", 8): 100, ("fused", 1): 10, ("fused", 4): 11, ("fused", 8): 12}
    bytes_of |= {("events", 1): 20, ("events", 4): 21, ("events", 8): 22, ("apart", 8): 23}
    monkeypatch.setattr(
        distillation, "peak_memory", lambda kind, size, teachers, *_: bytes_of[kind, teachers]
    )
    distillation.main(material, path, repeats=2, quick=True)
    found = read(path)
    several = ("fused", "events", "apart")
    times = {f"{kind}_over_ce_time_{n}" for kind in several for n in (1, 4, 8)}
    times |= {"fused_over_dense_time_8"}
    memory = {f"{kind}_over_ce_memory" for kind in several} | {"fused_memory_8_over_1"}
    wires = {"wire_bytes_per_row_16_bits", "wire_bytes_per_row_8_bits", "codec_mb_per_second"}
    assert set(found["results"]) == times | memory | wires
    compact, default = (found["results"][f"wire_bytes_per_row_{bits}_bits"] for bits in (8, 16))
    assert 0 < compact < default
    assert found["results"]["codec_mb_per_second"] > 0
    assert all(found["results"][name] > 0 for name in times)
    assert {name: found["results"][name] for name in memory} == {
        "fused_over_ce_memory": 0.12,
        "events_over_ce_memory": 0.22,
        "apart_over_ce_memory": 0.23,
        "fused_memory_8_over_1": 1.2,
    }
    assert {len(repeats) for repeats in found["raw"]["seconds"].values()} == {2}
    kinds = {f"{kind} {n}" for kind in ("fused", "events") for n in (1, 4, 8)}
    assert set(found["raw"]["peak_bytes"]) == {"plain", *kinds, "apart 8"}


def test_losses_that_are_compared_are_the_same() -> None:
    """Where nothing is cut and nothing is left, one merged teacher is as good as many dense."""
    case = LossBench(StepSize(rows=6, vocab=50, width=8, k=4), teachers=3, seed=0)
    whole = [replace(t, tail_logprob=np.full(6, -np.inf, np.float32)) for t in case.teachers]
    shares = [np.exp(t.logprobs).sum(1, keepdims=True) for t in whole]
    case.teachers = [
        replace(t, logprobs=t.logprobs - np.log(share))
        for t, share in zip(whole, shares, strict=True)
    ]
    dense = case.dense().item()
    right = case.hidden.grad
    assert case.fused(k=12).item() == pytest.approx(dense, rel=1e-5)
    np.testing.assert_allclose(case.hidden.grad, right, rtol=1e-4, atol=1e-7)
    assert case.plain().item() != pytest.approx(dense, rel=1e-3)


def test_peak_memory_is_that_of_the_step() -> None:
    """Plain cross-entropy holds logits, their log-softmax and the gradient of each: 16 MB each."""
    size = StepSize(rows=400, vocab=10_000, width=8, k=4)
    assert 3 * 16e6 <= peak_memory("plain", size, 1, seed=0) < 5 * 16e6


def test_phases_before_and_after_are_the_same_work(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways end at one loss and extract one knowledge."""
    path = tmp_path / "phases.json"
    phases.main(path, repeats=2, steps=3, seeds=1, quick=True)
    found = read(path)
    results = found["results"]
    groups = ("server_distil", "client_distil", "extract")
    assert all(results[f"{group}_time_after_over_before"] > 0 for group in groups)
    for side in ("server", "client"):
        assert results[f"{side}_loss_after"] == pytest.approx(
            results[f"{side}_loss_before"], rel=1e-3
        )
    assert {len(repeats) for repeats in found["raw"]["seconds"].values()} == {2}
    side = phases.Side(parse({**QUICK, **phases.DENSE}), 0)
    before, after = (side.extract(way) for way in phases.WAYS)
    for name in ("logprobs", "tail_logprob", "label_logprob"):
        np.testing.assert_allclose(before[name], getattr(after, name), atol=1e-4)
    known = side.own_teacher()
    start = side.local_model.adapter
    ends = []
    for way in phases.WAYS:
        loss = side.distil(way, known, start, 3)
        ends.append((loss, side.local_model.adapter))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    assert any(np.abs(ends[0][1][name] - start[name]).max() > 1e-3 for name in start)
    for name, right in ends[0][1].items():
        np.testing.assert_allclose(ends[1][1][name], right, atol=1e-3)


def test_loops_that_are_compared_take_the_same_steps(
    tiny_builtin: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "trainer.json"
    trainer.main(path, repeats=1, steps=5, quick=True)
    results = read(path)["results"]
    assert results["library_over_trainer_time"] > 0
    losses = [results[f"{name}_loss"] for name in ("trainer", "library", "library_with_logits")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


def test_the_gates_share_is_of_all_work(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "CLIENTS", 8)
    path = tmp_path / "gate.json"
    gate.main(path, repeats=1, quick=True)
    found = read(path)
    seconds = {name: times[0] for name, times in found["raw"]["seconds"].items()}
    assert len(seconds) == 8 + 4 * 9
    ours = total = 0.0
    for name, each in seconds.items():
        what = name.removeprefix("server ").split(" ", 2)[-1] if "client" in name else name[7:]
        if what == "extract and view":
            what, each = "view contexts", max(each - seconds[name.removesuffix(" and view")], 0)
        times = 1 if name.startswith("server") else 2  # eight clients of four kinds
        viewed_twice = what == "view contexts" and name.startswith("server")
        times *= 2 if what == "extract" or viewed_twice else 1
        total += times * each
        ours += times * each if what in ("view contexts", "compute stats", "weigh") else 0
    share = found["results"]["fedfuse_gate_share_of_round"]
    assert share == pytest.approx(ours / total, rel=1e-3)
    assert 0 < found["results"]["fusion-x_gate_share_of_round"] < share < 1


def test_the_cost_of_a_message_is_what_is_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(local: float, evaluate: float, loss: float = 1.0) -> deployment.RunLines:
        phases = {"train.local": local, "evaluate": evaluate, "server.aggregate": 50.0}
        message_log = [
            {
                "round": number,
                "phase": phase,
                "client": "server" if phase == "server.aggregate" else "0",
                # What happens once is in the first round.
                "seconds": seconds + (100.0 if number < 2 else 0.0),
            }
            for number in (0, 1, 2, 3)
            for phase, seconds in phases.items()
        ]
        return deployment.RunLines(message_log, [{"loss": loss}])

    monkeypatch.setattr(deployment, "alone", lambda config: run(2.0, 1.0))
    ways = {False: run(10.0, 9.0), True: run(4.0, 3.0)}
    monkeypatch.setattr(deployment, "deployed", lambda config, resident: ways[resident])
    path = tmp_path / "deployment.json"
    deployment.main(path, rounds=3)
    found = read(path)
    assert found["results"] == {
        "new_process_seconds_per_message": 8.0,
        "resident_seconds_per_message": 2.0,
        "resident_over_new_process": 0.25,
    }
    assert found["raw"]["resident"] == {"train.local": [4.0, 4.0], "evaluate": [3.0, 3.0]}
    ways[True] = run(4.0, 3.0, loss=1.1)
    with pytest.raises(SystemExit, match="metrics of the runs differ"):
        deployment.main(path, rounds=3)
