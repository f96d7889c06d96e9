"""docs/deploy.md, followed word for word on one machine: what it gives, and whom it refuses."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfuse.deployment.certificates import make_node_files, make_superlink_files
from fedfuse.deployment.superlink_client import Credentials, probe_superlink
from fedfuse.simulation.flwr_run import free_port
from tests.deployment.processes import CLIENTS, Deployment, deployed, settings
from tests.federations import about, federate, lines
from tests.federations import tiny_builtin as tiny_builtin


@pytest.fixture(scope="module")
def deployment(tiny_builtin: dict[str, Path]) -> Iterator[Deployment]:
    """One federation for all tests here: it takes a minute."""
    with deployed(tiny_builtin) as found:
        yield found


@pytest.mark.slow
def test_the_results_are_those_of_one_process(
    deployment: Deployment, tiny_builtin: dict[str, Path], tmp_path: Path
) -> None:
    folder = deployment.folder / "runs" / "first"
    given = settings(tiny_builtin)
    models = ", ".join(str(tiny_builtin[name]) for name in CLIENTS)
    alone = federate(
        tmp_path,
        clients=3,
        name="first",
        min_clients=3,
        baselines=False,
        clients__model=models,
        server__model=given["server.model"],
    )
    assert about(folder)["status"] == "finished"
    assert not [line["error"] for line in lines(folder, "messages") if line.get("error")]
    here, there = lines(folder, "metrics"), lines(alone, "metrics")
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        for key in ("loss", "accuracy"):
            assert one.pop(key) == pytest.approx(other.pop(key), rel=1e-3)
        assert one == other
    for number in range(3):
        assert (folder / "clients" / str(number) / "adapter").is_dir()


@pytest.mark.slow
def test_a_machine_that_is_not_registered_is_refused(
    deployment: Deployment, tmp_path: Path
) -> None:
    key, _ = make_node_files(tmp_path, "stranger")
    command = supernode(deployment, key=key)
    done = deployment.run(*command)
    assert done.returncode == 1, done.stderr
    assert "Failed to initialize the connection to the SuperLink" in done.stdout + done.stderr
    with pytest.raises(PermissionError):
        probe_superlink(Credentials(deployment.superlink, deployment.folder / "ca.crt", key))


@pytest.mark.slow
def test_a_superlink_with_another_certificate_is_refused(
    deployment: Deployment, tmp_path: Path
) -> None:
    authority, *_ = make_superlink_files(tmp_path, ["localhost"])
    done = deployment.run(*supernode(deployment, authority=authority))
    assert done.returncode == 1, done.stderr
    assert "certificate verify failed" in done.stdout + done.stderr
    key = deployment.folder / "node-0.key"
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        probe_superlink(Credentials(deployment.superlink, authority, key))


def supernode(deployment: Deployment, **files: Path) -> list[str]:
    """The guide's SuperNode with another file or two."""
    return [
        "flower-supernode",
        *("--superlink", deployment.superlink),
        *("--root-certificates", str(files.get("authority", deployment.folder / "ca.crt"))),
        *("--auth-supernode-private-key", str(files.get("key", deployment.folder / "node-0.key"))),
        *("--isolation", "process", "--port", str(free_port())),
    ]
