from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.tracking.json_fields import clean
from fedfuse.tracking.run import RunFolder, read_run
from tests.report.folders import FLOORS, excess, write_folder, write_lines


def edit(folder: Path, name: str, line: int, **changes: Any) -> None:
    """Change keys of one line, counted from 1."""
    path = folder / name
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    lines[line - 1] |= changes
    write_lines(path, lines)


def metric(stage: str, model: str, domain: str, loss: float, r: int = 0) -> dict[str, Any]:
    place = {"stage": stage, "round": r, "model": model, "domain": domain}
    return place | {"loss": loss, "accuracy": None, "samples": 10}


class TestWhatIsRead:
    def test_fields(self, run: RunFolder) -> None:
        assert run.title == "quickstart"
        assert (run.seed, run.commit, run.status) == (7, "6467a4c", "finished")
        assert run.name("0") == "clinic / gpt2"
        assert run.name("unheard of") == "unheard of"
        assert run.stages == ["zero-shot", "standalone", "public-only", "federated", "centralized"]
        assert run.measured == ["server", "0", "1", "2", "3"]
        assert run.rounds == 5
        assert len(run.messages) == 4 + 5 * 13
        assert run.failures == []

    def test_clients_are_in_numeric_order(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, clients=12, rounds=1))
        assert run.clients == [str(i) for i in range(12)]

    def test_models_that_share_a_name_are_told_apart(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, clients=5, rounds=1))
        assert run.name("0") == "clinic / gpt2 #0"
        assert run.name("4") == "clinic / gpt2 #4"
        assert run.name("1") == "bank / llama"

    def test_a_run_that_just_began(self, tmp_path: Path) -> None:
        write_folder(tmp_path, status="running")
        for name in ("metrics", "messages", "teacher_shares"):
            (tmp_path / f"{name}.jsonl").unlink()
        run = read_run(tmp_path)
        assert (run.metrics, run.messages, run.teacher_shares) == ([], [], [])
        assert (run.rounds, run.measured, run.overall("server", "federated")) == (0, [], None)

    def test_names_become_one_printable_line(self) -> None:
        assert clean("a\x1b[31m\x00b\n\tc\ud800 \u202ed") == "a [31m b c d"


class TestDerived:
    def test_by_domain_at_the_last_round(self, run: RunFolder) -> None:
        measures = run.by_domain("0", "federated")
        assert list(measures) == ["clinic", "bank", "court", "workshop"]
        assert measures["clinic"].round == 5
        assert measures["clinic"].excess == pytest.approx(measures["clinic"].loss - 0.205)
        assert measures["bank"].loss == pytest.approx(
            FLOORS["bank"] + excess("0", "federated", 5, False, 0.004 * ((7 + 3 + 48) % 5))
        )

    def test_hand_computed_shares(self, tmp_path: Path) -> None:
        write_folder(tmp_path, clients=1, domains=("a", "b"))
        lines = [
            metric("zero-shot", "server", "a", 0.7),
            metric("zero-shot", "server", "b", 0.5),
            metric("federated", "server", "a", 0.5, 1),
            metric("federated", "server", "b", 0.4, 1),
            metric("standalone", "0", "a", 0.3),
            metric("standalone", "0", "b", 0.6),
            metric("federated", "0", "a", 0.4, 1),
            metric("federated", "0", "b", 0.8, 1),
        ]
        write_lines(tmp_path / "metrics.jsonl", lines)
        run = read_run(tmp_path)
        # Both floors are 0.2: server 0.4 -> 0.25, client 0.25 -> 0.4.
        server = run.overall("server", "federated")
        assert server is not None
        assert server.loss == pytest.approx(0.45)
        assert server.shown == server.excess == pytest.approx(0.25)
        assert run.share_removed("server") == pytest.approx(0.375)
        assert run.share_removed("0") == pytest.approx(-0.6)
        assert run.change("0") == pytest.approx(0.15)
        assert run.floor is not None
        assert run.floor.loss == pytest.approx(0.2)

    def test_before_and_after_are_compared_over_the_same_domains(self, tmp_path: Path) -> None:
        write_folder(tmp_path, clients=1, domains=("a", "b"), floor=False)
        lines = [metric("zero-shot", "server", "a", 0.7), metric("zero-shot", "server", "b", 0.1)]
        write_lines(
            tmp_path / "metrics.jsonl", [*lines, metric("federated", "server", "a", 0.5, 1)]
        )
        run = read_run(tmp_path)
        assert run.change("server") == pytest.approx(-0.2)
        assert run.share_removed("server") is None
        assert run.floor is None

    def test_a_round_cut_short_does_not_count(self, tmp_path: Path) -> None:
        write_folder(tmp_path, clients=1, domains=("a", "b"))
        lines = [metric("federated", "server", d, 0.5, 1) for d in "ab"]
        write_lines(
            tmp_path / "metrics.jsonl", [*lines, metric("federated", "server", "a", 0.1, 2)]
        )
        measure = read_run(tmp_path).overall("server", "federated")
        assert measure is not None
        assert (measure.round, measure.loss) == (1, 0.5)

    def test_of_equal_lines_the_last_counts(self, tmp_path: Path) -> None:
        write_folder(tmp_path, clients=1, domains=("a",))
        lines = [metric("zero-shot", "server", "a", loss) for loss in (0.9, 0.6)]
        write_lines(tmp_path / "metrics.jsonl", lines)
        measure = read_run(tmp_path).overall("server", "zero-shot")
        assert measure is not None
        assert measure.loss == 0.6

    def test_the_curve_starts_at_the_untouched_model(self, run: RunFolder, tmp_path: Path) -> None:
        points = run.curve("server")
        assert [point.round for point in points] == [0, 1, 2, 3, 4, 5]
        assert points[0] == run.overall("server", "zero-shot")
        without = read_run(write_folder(tmp_path, stages=("federated",)))
        assert [point.round for point in without.curve("server")] == [1, 2, 3, 4, 5]

    def test_no_share_of_next_to_nothing(self, tmp_path: Path) -> None:
        write_folder(tmp_path, clients=1, domains=("a",))
        lines = [metric("zero-shot", "server", "a", 0.2005)]
        write_lines(
            tmp_path / "metrics.jsonl", [*lines, metric("federated", "server", "a", 0.3, 1)]
        )
        assert read_run(tmp_path).share_removed("server") is None

    def test_a_diverged_loss_is_read(self, tmp_path: Path) -> None:
        write_folder(tmp_path, clients=1, domains=("a",))
        lines = [metric("zero-shot", "server", "a", 0.5)]
        lines.append(metric("federated", "server", "a", float("nan"), 1))
        write_lines(tmp_path / "metrics.jsonl", lines)
        assert read_run(tmp_path).share_removed("server") is None


class TestRefused:
    def test_no_run_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FedfuseError, match=r"expected a run folder, with a config\.json"):
            read_run(tmp_path)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("metrics", {"stage": "warm"}, "'stage': expected 'zero-shot', "),
            ("metrics", {"round": 1.5}, "'round': expected a whole number of at least 0, got 1.5"),
            (
                "metrics",
                {"round": True},
                "'round': expected a whole number of at least 0, got True",
            ),
            ("metrics", {"model": "9"}, "'model': expected 'server', '0'"),
            ("metrics", {"domain": "zoo"}, "'domain': expected 'clinic'"),
            ("metrics", {"loss": "low"}, "'loss': expected a number, got 'low'"),
            ("metrics", {"loss": 10**400}, "'loss': expected a number, got 1000"),
            ("metrics", {"accuracy": 1.2}, "'accuracy': expected a number from 0 to 1, got 1.2"),
            (
                "metrics",
                {"accuracy": float("nan")},
                "'accuracy': expected a number from 0 to 1, got nan",
            ),
            (
                "messages",
                {"sent_bytes": -1},
                "'sent_bytes': expected a whole number of at least 0, got -1",
            ),
            ("messages", {"seconds": None}, "'seconds': expected a number from 0 to inf, got None"),
            ("messages", {"phase": 3}, "'phase': expected text, got 3"),
            ("messages", {"error": 3}, "'error': expected text, got 3"),
            ("teacher_shares", {"direction": "across"}, "expected 'up', 'down', got 'across'"),
            ("teacher_shares", {"teacher": "nobody"}, "got 'nobody'"),
            ("teacher_shares", {"share": 1.5}, "'share': expected a number from 0 to 1, got 1.5"),
        ],
    )
    def test_line(self, tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
        write_folder(tmp_path, rounds=1)
        edit(tmp_path, f"{name}.jsonl", 3, **changes)
        with pytest.raises(FedfuseError) as caught:
            read_run(tmp_path)
        assert f"{name}.jsonl, line 3: " in str(caught.value)
        assert message in str(caught.value)

    @pytest.mark.parametrize("line", ['{"stage": ', "[1, 2]", "[" * 100_000, "9" * 5000])
    def test_line_that_is_no_object(self, tmp_path: Path, line: str) -> None:
        write_folder(tmp_path, rounds=1)
        (tmp_path / "metrics.jsonl").write_text("\n\n" + line, encoding="utf-8")
        with pytest.raises(FedfuseError, match=r"metrics\.jsonl, line 3: "):
            read_run(tmp_path)

    def test_missing_key(self, tmp_path: Path) -> None:
        write_folder(tmp_path, rounds=1)
        (tmp_path / "messages.jsonl").write_text('{"round": 1}\n', encoding="utf-8")
        with pytest.raises(FedfuseError, match=r"line 1: 'phase': expected text, got no such key"):
            read_run(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"status": "lost"}, "'status': expected 'running'"),
            ({"models": []}, r"'models': expected an object, got \[\]"),
            ({"domains": "clinic"}, "'domains': expected a list of texts, got 'clinic'"),
            ({"floor": {"loss": {}, "accuracy": {}}}, "'floor': 'loss': 'clinic': expected"),
            ({"names": {"0": 7}}, "'names': '0': expected text, got 7"),
        ],
    )
    def test_config(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        path = write_folder(tmp_path, rounds=1) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(FedfuseError, match=message):
            read_run(tmp_path)

    def test_not_text(self, tmp_path: Path) -> None:
        write_folder(tmp_path, rounds=1)
        (tmp_path / "messages.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(FedfuseError, match=r"messages\.jsonl: expected UTF-8 text"):
            read_run(tmp_path)
