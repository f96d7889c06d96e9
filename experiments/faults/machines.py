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
# What a SuperNode's log says of each message that it takes, of each reply that it hands over, and
# each time that the SuperLink lets it in.
RECEIVED, SENT, CONNECTED = "Received successfully", "Sent successfully", "SuperNode ID: "


class Machine:
    """A SuperNode and the worker beside it, ``node`` and ``worker``, of one client's partition."""

    def __init__(self, workspace: Workspace, superlink: str, number: int, clients: int) -> None:
        self.number, self._workspace, folder = number, workspace, workspace.folder
        self._log = folder / f"node-{number}.log"
        self._log.touch()
        key, self.public = make_node_files(folder, f"node-{number}")
        about = folder / f"node-{number}.toml"
        about.write_text(f"partition-id = {number}\nnum-partitions = {clients}\nthreads = 1\n")
        port = str(free_port())
        self._commands = {
            "node": (
                *("flower-supernode", "--superlink", superlink),
                *("--root-certificates", str(folder / "ca.crt")),
                *("--auth-supernode-private-key", str(key)),
                *("--node-config", str(about), "--isolation", "process", "--port", port),
            ),
            "worker": ("fedfuse", "node", "worker", "--supernode", f"127.0.0.1:{port}"),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start what is not there."""
        for name, command in self._commands.items():
            if name not in self._running:
                with self._log.open("ab") as log:
                    self._running[name] = self._workspace.start(*command, stdout=log.fileno())

    def send(self, number: int, *names: str) -> None:
        """Send a signal to one of both, or to both; what it ends has ended on return."""
        chosen = [name for name in names or self._commands if name in self._running]
        for name in chosen:
            self._running[name].send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            for name in chosen:
                self._running.pop(name).wait()

    def count(self, said: str) -> int:
        """How often something is in the log: ``RECEIVED``, ``SENT`` or ``CONNECTED``."""
        return self._log.read_text(errors="replace").count(said)

    def tend(self) -> None:
        """Start again what has ended by itself, as the units in deploy/ do: to a SuperLink a
        SuperNode that was killed is there for a minute, and is not let in twice.
        """
        self._running = {name: p for name, p in self._running.items() if p.poll() is None}
        self.start()


class Machines:
    """All of them in a workspace, and the run that they are at, by its flat config."""

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
        wait(lambda: listens(superlink.pid, port), "the SuperLink listens")
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


def wait(until: Callable[[], bool], what: str) -> None:
    """Wait for something; ends the program when it takes longer than ``START_SECONDS``."""
    deadline = time.monotonic() + START_SECONDS
    while not until():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {START_SECONDS:g} s: {what}")
        time.sleep(0.1)
