"""The list of run config keys on the command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedfuse.cli.main import app
from fedfuse.config.describe import describe
from fedfuse.config.run_config import RunConfig, flatten


def test_every_key_is_described_with_its_default() -> None:
    keys = list(describe(RunConfig()))
    assert {key.key: key.default for key in keys} == flatten(RunConfig())
    assert len(keys) == len(flatten(RunConfig()))
    assert all(key.meaning for key in keys)


def test_the_command_lists_and_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["config"])
    assert shown.exit_code == 0
    assert all(key in shown.output for key in flatten(RunConfig()))
    shown = CliRunner().invoke(app, ["config", "Dirichlet"])
    assert "data.partition" in shown.output
    assert "'dirichlet-equal'" in shown.output
    assert "local.steps" not in shown.output


def test_the_command_shows_ranges_and_a_presets_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["config", "server-distill.label-weight", "--preset", "fedmkt"])
    assert "0.9 *" in shown.output
    assert "at least 0, at most 1" in shown.output
    shown = CliRunner().invoke(app, ["config", "baselines"])
    assert "true or false" in shown.output
    assert "True " in shown.output
    shown = CliRunner().invoke(app, ["config", "--preset", "fedmtk"])
    assert "--preset: expected one of quickstart, pretrained" in str(shown.exception)
