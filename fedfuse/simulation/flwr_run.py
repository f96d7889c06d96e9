"""A whole federation on this machine: ``flwr run``, from a clean start to a clean end.

``flwr run`` alone leaves a SuperLink behind that keeps the environment and the working folder of
its first start, so that two checkouts mix their code; it uses fixed ports; and it succeeds where
the app fails. ``flwr_run`` gives each run its own SuperLink, on a free port and in a temporary
folder that is the home of Flower and Ray and the working folder, shows the log, asks for the
status, and in any case stops every process and removes the folder at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from flwr.app import UserConfigValue

from fedfuse.errors import FedfuseError, check
from fedfuse.flower.app_bundle import check_scalars, default_run_config
from fedfuse.simulation.processes import listens, stop_all
from fedfuse.simulation.ray_cluster import check_room, cluster_environment, find_nodes

_HOME = "FLWR_HOME"
_PORT_ATTEMPTS = 5
_START_SECONDS = 120.0  # A SuperLink listens after 3 s; machines may be busy.
_END_SECONDS = 30.0
_TAIL_LINES = 40
_LONGEST_BASE = 16  # Ray's sockets lie 87 characters deeper; a socket's path has at most 103.

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"^(\(.*?\) )?(DEBUG|INFO|WARNING|ERROR) *: *")
_NOISE = (
    "Since flwr 1.32, default simulated SuperNodes",
    "To change federation size, use the following command",
    "flwr federation simulation-config",
    "Manually terminating ClientAppActor",
    "Using SuperLink: ",
    "Starting logstream for run_id",
    "FutureWarning: Tip: In future versions of Ray",
    "  warnings.warn(",
)


class SimulationFailed(FedfuseError):
    """A simulation that did not finish: the message has its status and the end of its log."""


def flwr_run(
    app_dir: Path,
    run_config: Mapping[str, UserConfigValue],
    num_clients: int,
    *,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    python_path: Sequence[Path] = (),
    ray_address: str = "",
    ray_cpus: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Run a Flower app with simulated clients and return when it has finished.

    The apps run in a working folder that is removed at the end: paths in the run config should be
    absolute. SIGINT, SIGTERM and SIGHUP end the run, and its processes, before they end this one.

    Args:
        app_dir: folder of the app, with its pyproject.toml.
        run_config: overrides of the run config in pyproject.toml: flat, dotted keys, scalars.
        num_clients: number of simulated SuperNodes, at least 1.
        cpus_per_client: CPU cores of a client, at least 1; also the number of torch threads. As
            many clients run at once as the machine has cores for.
        gpus_per_client: share of a GPU for a client, such as 0.5 for two at once; with 0 clients
            see no GPU.
        python_path: folders to import from, after the app's own: custom strategies.
        ray_address: ``HOST:PORT`` of a Ray cluster to run the clients on, which is left as it was;
            by default one is started for the run, and stopped.
        ray_cpus: cores that a cluster started for the run gives away; by default the machine's.
        meanwhile: last checks, made while Flower starts; an error of theirs ends the run before
            it is submitted.

    Raises:
        FedfuseError: for arguments outside of these, and keys that the app's run config lacks.
        SimulationFailed: when the app did not finish.
    """
    app_dir = app_dir.resolve()
    check("num_clients", num_clients, "at least 1", num_clients >= 1)
    check("cpus_per_client", cpus_per_client, "at least 1", cpus_per_client >= 1)
    check("gpus_per_client", gpus_per_client, "at least 0", gpus_per_client >= 0)
    known = default_run_config(app_dir)
    unknown = sorted(set(run_config) - set(known))
    place = f"{app_dir / 'pyproject.toml'}, [tool.flwr.app.config]"
    check("run config", unknown, f"keys of {place}: {sorted(known)}", not unknown)
    check_scalars("run config", run_config)
    if ray_address:
        check_room(find_nodes(ray_address), cpus_per_client, gpus_per_client)
    resources = (
        f"num-supernodes={num_clients} client-resources-num-cpus={cpus_per_client} "
        f"client-resources-num-gpus={float(gpus_per_client)}"
    )
    if ray_cpus is not None:
        resources += f" init-args-num-cpus={ray_cpus}"
    unwinding = _on_signals(_leave, signal.SIGTERM, signal.SIGHUP)
    with unwinding, Workspace(python_path) as workspace:
        if ray_address:
            workspace.environment |= cluster_environment(ray_address)
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(start_superlink, workspace, "--simulation")
            meanwhile()
            starting.result()
        config_file = workspace.folder / "run-config.toml"
        config_file.write_text(_toml(run_config), encoding="utf-8")
        options = ["--federation-config", resources, "--run-config", str(config_file)]
        tail = _stream(workspace, "run", str(app_dir), "--stream", *options)
        status = _status(workspace)
        if status != "finished:completed":
            raise SimulationFailed(f"simulation ended as {status}; its log ends with\n{tail}")


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _on_signals(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: int
) -> Iterator[None]:
    """Handle signals in another way; does nothing outside of the main thread, which gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Workspace:
    """A temporary folder, removed at the end, after all processes in it were stopped."""

    def __init__(self, python_path: Sequence[Path]) -> None:
        self._python_path = python_path
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _LONGEST_BASE:
            base = "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="fedfuse-", dir=base)).resolve()
        (self.folder / "work").mkdir()
        self.environment = _environment(self.folder, self._python_path)
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C must not interrupt the cleaning up after the first.
        with _on_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            left = stop_all(self.folder, _HOME)
            for child in self._children:
                if child.stdout is not None:
                    child.stdout.close()
                if child.pid not in left:
                    child.wait()
            shutil.rmtree(self.folder, ignore_errors=True)
        if left:
            print(f"WARNING: processes {left} of the simulation could not be stopped", flush=True)

    def start(self, program: str, *arguments: str, stdout: int) -> subprocess.Popen[bytes]:
        """Start a program of Flower's in the working folder, out of reach of Ctrl-C."""
        path = shutil.which(program, path=self.environment["PATH"])
        if path is None:
            raise FedfuseError(f"PATH: expected {program} on it; install flwr[simulation]")
        child = subprocess.Popen(
            [path, *arguments],
            cwd=self.folder / "work",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._children.append(child)
        return child


def _environment(folder: Path, python_path: Sequence[Path]) -> dict[str, str]:
    """The environment of every process of the run."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = [str(path.resolve()) for path in python_path]
    paths += [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    return environment | {
        _HOME: str(folder),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), environment.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",  # The log reaches the terminal line by line.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def start_superlink(workspace: Workspace, *options: str) -> str:
    """Start a SuperLink, wait until it listens, and make it Flower's one connection.

    Args:
        workspace: folder and environment that it runs in.
        options: options of ``flower-superlink``, beside its address.

    Returns:
        Its address.

    Raises:
        SimulationFailed: when it does not start.
    """
    log_file = workspace.folder / "superlink.log"
    for _ in range(_PORT_ATTEMPTS):
        port = free_port()
        arguments = ["--insecure", *options, "--host", "127.0.0.1", "--port", str(port)]
        with log_file.open("wb") as log:
            superlink = workspace.start("flower-superlink", *arguments, stdout=log.fileno())
        deadline = time.monotonic() + _START_SECONDS
        while superlink.poll() is None and time.monotonic() < deadline:
            # Asking the process, not the port: another program may have been faster to take it.
            if listens(superlink.pid, port):
                address = f"127.0.0.1:{port}"
                (workspace.folder / "config.toml").write_text(
                    '[superlink]\ndefault = "simulation"\n\n[superlink.simulation]\n'
                    f'address = "{address}"\ninsecure = true\n',
                    encoding="utf-8",
                )
                return address
            time.sleep(0.1)
        if superlink.poll() is None or "address already in use" not in log_file.read_text():
            break
    tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    raise SimulationFailed(f"flower-superlink did not start; its log ends with\n{tail}")


def _stream(workspace: Workspace, *arguments: str) -> str:
    """Run ``flwr`` with its output on the terminal; returns the last lines."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    flwr = workspace.start("flwr", *arguments, stdout=subprocess.PIPE)
    assert flwr.stdout is not None
    for raw in flwr.stdout:
        if line := readable(raw.decode("utf-8", errors="replace")):
            print(line, flush=True)
            tail.append(line)
    flwr.wait()
    return "\n".join(tail)


def readable(line: str) -> str:
    """A line of Flower's log without colours and the level INFO; empty for noise."""
    line = _COLOUR.sub("", line).rstrip()
    if any(noise in line for noise in _NOISE):
        return ""
    level = _LEVEL.match(line)
    if level is None:
        return line
    name = "" if level[2] == "INFO" else f"{level[2]}: "
    return f"{level[1] or ''}{name}{line[level.end() :]}".rstrip()


def _status(workspace: Workspace) -> str:
    """The status of the SuperLink's one run, as soon as it has finished."""
    deadline = time.monotonic() + _END_SECONDS
    while True:
        flwr = workspace.start("flwr", "ls", "--format", "json", stdout=subprocess.PIPE)
        output, _ = flwr.communicate()
        try:
            runs = json.loads(output)["runs"]
        except (ValueError, KeyError):
            return f"unknown ({output.decode(errors='replace').strip()})"
        if not runs:
            return "never submitted"
        status: str = runs[0]["status"]
        if status.startswith("finished") or time.monotonic() > deadline:
            return status
        time.sleep(0.5)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _toml(run_config: Mapping[str, UserConfigValue]) -> str:
    """A TOML file of flat keys; JSON's strings, numbers and booleans are TOML's too."""
    lines = []
    for key, value in run_config.items():
        text = repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{json.dumps(key)} = {text}\n".replace("\x7f", "\\u007f"))
    return "".join(lines)
