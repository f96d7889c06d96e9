"""Keys and values of earlier versions are refused, and the new ones named."""

from __future__ import annotations

import pytest

from fedfuse.cli.run_config import read_config
from fedfuse.config.renamed import RENAMED_KEYS
from fedfuse.config.run_config import RunConfig, flatten, parse
from fedfuse.errors import FedfuseError


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_the_new_key_exists_and_the_old_one_does_not(old: str) -> None:
    new = RENAMED_KEYS[old]
    keys = flatten(RunConfig())
    assert new.partition("=")[0] in keys
    assert "=" in old or old not in keys
    if "=" in new:
        parse(read_config(None, [new]))
    with pytest.raises(FedfuseError) as caught:
        parse(read_config(None, [old if "=" in old else f"{old}=1"]))
    assert f"{old} was renamed: expected {new}, got {old}" in str(caught.value)


def test_renamed_keys_are_reported_among_all_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED_KEYS, "local.epochs", "local.steps")
    monkeypatch.setitem(RENAMED_KEYS, "log-format=lines", "log-format=text")
    given = ["local.epochs=3", "log-format=lines", "rounds=0", "local.step=1"]
    with pytest.raises(FedfuseError) as caught:
        parse(read_config(None, given))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert "local.epochs was renamed: expected local.steps, got local.epochs" in lines
    assert "log-format=lines was renamed: expected log-format=text, got log-format=lines" in lines
    assert len(lines) == 4
    assert any("did you mean 'local.steps'" in line for line in lines)


def test_a_renamed_key_in_a_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RENAMED_KEYS, "local.epochs", "local.steps")
    file = tmp_path_factory.mktemp("config") / "run.toml"
    file.write_text("[local]\nepochs = 3\n")
    with pytest.raises(FedfuseError, match=r"local\.epochs was renamed: expected local\.steps"):
        parse(read_config(file, []))
