"""Dockerfile, compose files and systemd units: linted, and they run what the guide runs.

``tests/deployment/test_deployment.py`` runs the guide's commands; here those of the
files are compared with them. No image is built: no container engine is needed to work on fedfuse.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfuse.flower.app_bundle import dependencies
from tests.deployment.processes import guide

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = sorted(DEPLOY.glob("*.compose.yaml"))
UNITS = sorted(DEPLOY.glob("*.service"))
PROGRAMS = ("flower-superlink", "flower-supernode", "fedfuse node worker")
# What is another on every machine: addresses that are listened on, and where files are.
PLACES = ("--host", "--port", "--supernode")


def lint(tool: str, *arguments: str | Path) -> None:
    """Run a linter of this environment."""
    program = Path(sysconfig.get_path("scripts")) / tool
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def services() -> dict[str, Any]:
    """The services of all compose files by name."""
    files = [yaml.safe_load(file.read_text()) for file in COMPOSE]
    return {name: service for file in files for name, service in file["services"].items()}


def unit(file: Path) -> dict[str, list[str]]:
    """The settings of a systemd unit, all sections together."""
    text = file.read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def essence(words: Sequence[str]) -> list[str]:
    """A command without places: programs and files by their last name, no addresses."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word in PLACES:
            next(left)
        elif kept[-1:] == ["--superlink"]:
            kept.append("SUPERLINK")
        else:
            kept.append(re.sub(r"^node-\$i", "node", word.rpartition("/")[2]))
    return kept


def commands() -> dict[str, list[str]]:
    """The guide's commands that stay, by program."""
    text = "\n".join(guide()).replace("\\\n", " ")
    found = re.findall(r"^ *((?:flower-\w+|fedfuse node worker)\b.*?) > \S+ 2>&1 &$", text, re.M)
    return {next(p for p in PROGRAMS if c.startswith(p)): essence(shlex.split(c)) for c in found}


def test_the_guide_has_a_command_for_every_program() -> None:
    assert set(commands()) == set(PROGRAMS)


@pytest.mark.parametrize("name", ["superlink", "supernode", "worker"])
def test_containers_run_what_the_guide_runs(name: str) -> None:
    (program,) = (program for program in PROGRAMS if program.endswith(name))
    assert essence(services()[name]["command"]) == commands()[program]


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_systemd_runs_what_the_guide_runs(file: Path) -> None:
    ((started,), name) = unit(file)["ExecStart"], file.stem.removeprefix("fedfuse-")
    (program,) = (program for program in PROGRAMS if program.endswith(name))
    assert started.startswith("/opt/fedfuse/bin/")
    assert essence(shlex.split(started)) == commands()[program]


def test_a_difference_would_be_found() -> None:
    given = shlex.split("flower-supernode --superlink a:1 --isolation process --port 9")
    assert essence(given) == [
        "flower-supernode",
        "--superlink",
        "SUPERLINK",
        "--isolation",
        "process",
    ]
    assert essence(given) != essence([*given, "--insecure"])


def test_the_dockerfile_passes_the_linter() -> None:
    lint("hadolint", "--failure-threshold", "info", ROOT / "Dockerfile")


def test_the_compose_files_are_of_the_specification() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE)


def test_images_are_pinned_and_not_root() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)
    names = {name for _, name in stages}
    for base, _ in stages:
        if base not in names:
            image, _, tag = base.partition(":")
            version = arguments[tag.removeprefix("${").removesuffix("}")]
            assert re.match(r"\d+\.\d+\.\d+-", version), f"{image}:{version}"
    python, _ = dependencies(ROOT)
    used = [
        arguments["PYTHON"].partition("-")[0],
        *re.findall(r"python(3\.\d+) -m venv", DOCKERFILE),
    ]
    assert all(version in python for version in used)
    targets = re.split(r"^FROM \S+ AS (cpu|cuda)$", DOCKERFILE, flags=re.M)
    cpu, cuda = (part.partition("# ---")[0].strip() for part in targets[2::2])
    assert cpu.replace("packages-cpu", "packages-cuda") == cuda
    assert "\nUSER 10001\n" in cpu
    assert "\nHEALTHCHECK " in cpu


def test_containers_have_few_rights() -> None:
    for name, service in services().items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "unless-stopped"
        assert "privileged" not in service
    (device,) = services()["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_key_and_data_are_apart() -> None:
    mounted = {name: str(service["volumes"]) for name, service in services().items()}
    assert "node.key" in mounted["supernode"]
    assert "node.key" not in mounted["worker"]
    assert "/data" in mounted["worker"]
    assert "/data" not in mounted["supernode"]


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_units_have_few_rights(file: Path) -> None:
    settings = unit(file)
    assert settings["User"] == ["fedfuse"]
    assert settings["Restart"] == ["always"]
    assert settings["NoNewPrivileges"] == settings["ProtectHome"] == ["yes"]
    assert settings["ProtectSystem"] == ["strict"]
