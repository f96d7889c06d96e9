"""The machines of a fleet as processes of this one: a SuperLink with TLS, SuperNodes with workers.

As docs/deploy.md starts them, each SuperNode with a key of its own. Everything is in a workspace
that stops by id what was started in it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from fedfuse.config.run_config import Scalar
from fedfuse.deployment.certificates import make_node_files, make_superlink_files
from fedfuse.flower.app_bundle import app_dir
from fedfuse.simulation.flwr_run import Workspace, free_port
from fedfuse.simulation.processes import listens, started_in

START_SECONDS = 120.0
SERVER_APP = "flwr-serverapp"


class Machine:
    """A SuperNode and the worker beside it.

    Args:
        workspace: that they are in.
        superlink: ``HOST:PORT``.
        number: of the client's partition.
        clients: their number.
    """

    def __init__(self, workspace: Workspace, superlink: str, number: int, clients: int) -> None:
        self._workspace, self._superlink, self.number = workspace, superlink, number
        self._port = free_port()
        self._log = workspace.folder / f"node-{number}.log"
        self._log.touch()
        self._key, self.public = make_node_files(workspace.folder, f"node-{number}")
        self._about = workspace.folder / f"node-{number}.toml"
        self._about.write_text(
            f"partition-id = {number}\nnum-partitions = {clients}\nthreads = 1\n"
        )
        self.node: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start what is not there."""
        folder = self._workspace.folder
        if self.node is None:
            self.node = self._start(
                "flower-supernode",
                *("--superlink", self._superlink),
                *("--root-certificates", str(folder / "ca.crt")),
                *("--auth-supernode-private-key", str(self._key)),
                *("--node-config", str(self._about)),
                *("--isolation", "process", "--port", str(self._port)),
            )
        if self.worker is None:
            address = f"127.0.0.1:{self._port}"
            self.worker = self._start("fedfuse", "node", "worker", "--supernode", address)

    def send(self, number: int, *, node: bool = True, worker: bool = True) -> None:
        """Send a signal to one of both, or to both; what it ends has ended on return."""
        chosen = [
            process for process, wanted in ((self.node, node), (self.worker, worker)) if wanted
        ]
        for process in chosen:
            if process:
                process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            for process in chosen:
                if process:
                    process.wait()
            self.node = None if node else self.node
            self.worker = None if worker else self.worker

    def received(self) -> int:
        """Messages that it has taken so far."""
        return self._said("Received successfully")

    def sent(self) -> int:
        """Replies that it has handed over so far."""
        return self._said("Sent successfully")

    def connections(self) -> int:
        """How often the SuperLink has let it in."""
        return self._said("SuperNode ID: ")

    def tend(self) -> None:
        """Start again what has ended by itself, as the units in deploy/ do: to a SuperLink a
        SuperNode that was killed is there for a minute, and is not let in twice.
        """
        self.node = _running(self.node)
        self.worker = _running(self.worker)
        self.start()

    def _said(self, what: str) -> int:
        return self._log.read_text(errors="replace").count(what)

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return self._workspace.start(program, *arguments, stdout=log.fileno())


def _running(process: subprocess.Popen[bytes] | None) -> subprocess.Popen[bytes] | None:
    return process if process and process.poll() is None else None


class Machines:
    """All of them, and the run that they are at.

    Args:
        workspace: that they are in.
        config: run config, flat.
        clients: their number.
    """

    def __init__(self, workspace: Workspace, config: Mapping[str, Scalar], clients: int) -> None:
        self._workspace = workspace
        self._config = {**config, "output": str(workspace.folder / "runs")}
        self.folder = workspace.folder / "runs" / str(config["name"])
        address = self._start_superlink()
        self.clients = [Machine(workspace, address, n, clients) for n in range(clients)]
        self._flwr(*(("supernode", "register", str(client.public)) for client in self.clients))

    def submit(self, **more: Scalar) -> None:
        """Hand the run, or the rest of it, to the SuperLink."""
        given = {**self._config, **more}
        file = self._workspace.folder / "run.toml"
        file.write_text("".join(f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in given.items()))
        self._flwr(("run", str(app_dir()), "--run-config", str(file)))

    def server(self) -> psutil.Process | None:
        """The server's process of the run."""
        for process in started_in(self._workspace.folder, "FLWR_HOME"):
            if any(Path(part).name == SERVER_APP for part in process.cmdline()):
                return process
        return None

    def tail(self) -> str:
        """The last that the SuperLink printed, and with it the server of the run."""
        return "".join(self._log.read_text(errors="replace").splitlines(keepends=True)[-30:])

    def _start_superlink(self) -> str:
        folder, port = self._workspace.folder, free_port()
        make_superlink_files(folder, ["localhost", "127.0.0.1"])
        self._log = folder / "superlink.log"
        with self._log.open("wb") as log:
            superlink = self._workspace.start(
                "flower-superlink",
                *("--ssl-ca-certfile", str(folder / "ca.crt")),
                *("--ssl-certfile", str(folder / "superlink.crt")),
                *("--ssl-keyfile", str(folder / "superlink.key"), "--enable-supernode-auth"),
                *("--host", "127.0.0.1", "--port", str(port)),
                stdout=log.fileno(),
            )
        wait(lambda: listens(superlink.pid, port), START_SECONDS, "the SuperLink listens")
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "faults"\n[superlink.faults]\naddress = "localhost:{port}"\n'
            f'root-certificates = "{folder / "ca.crt"}"\n'
        )
        return f"localhost:{port}"

    def _flwr(self, *commands: tuple[str, ...]) -> None:
        """Run commands at once."""
        begun = [self._workspace.start("flwr", *c, stdout=subprocess.PIPE) for c in commands]
        for command, process in zip(commands, begun, strict=True):
            printed, _ = process.communicate()
            if process.returncode:
                text = printed.decode(errors="replace")
                raise SystemExit(f"flwr {' '.join(command)} failed:\n{text}")


def wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait.

    Raises:
        SystemExit: when it takes longer.
    """
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
