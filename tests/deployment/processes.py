"""The loopback federation of docs/deploy.md: its commands, with other ports, models, sizes."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedfuse.config.node import parse_client
from fedfuse.config.run_config import Scalar
from fedfuse.factory.data import private_samples
from tests.federations import FAST
from tests.processes import traced

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "deploy.md"
CLIENTS = ("gpt2", "llama", "opt")
# A minute and a half where nobody else is at work.
SECONDS = 600.0


@dataclass(frozen=True)
class Deployment:
    """A federation that has finished its run; SuperLink, SuperNodes and workers are still there.

    Attributes:
        folder: where the guide works.
        superlink: the SuperLink's ``HOST:PORT``.
        environment: of the guide's commands.
        log: what they printed.
    """

    folder: Path
    superlink: str
    environment: Mapping[str, str]
    log: Path

    def run(self, *command: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )


def guide() -> list[str]:
    """The commands of the section that is followed word for word, after the installation."""
    section = GUIDE.read_text().partition("## On one machine first")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert "make setup" in blocks[0]
    return blocks[1:]


def settings(models: Mapping[str, Path]) -> dict[str, Scalar]:
    """Run config keys that the test adds to the guide's, so that a run takes seconds."""
    return {**FAST, "server.model": str(models["server"]), "data.template": "{prompt}"}


@contextmanager
def deployed(models: Mapping[str, Path]) -> Iterator[Deployment]:
    """Follow the guide up to the end of the run, and its last step afterwards.

    Args:
        models: folders of the built-in models, by name.
    """
    with traced() as traces:
        home = traces.folder
        folder = home / "federation"
        mine = home / "mine.jsonl"
        write_share(mine, 2)
        ports = _free_ports()
        port = f"{ports}9"
        *steps, last = guide()
        text = "\n".join([*steps, "touch ran", f"read -r _ < {home / 'end'}", last])
        given = "".join(
            f"{key} = {json.dumps(value)}\n"
            for key, value in settings(models).items()
            if key != "rounds"
        )
        # Where a client's model is its node's word, this is nobody's.
        given += 'clients.model = "./nowhere"\n'
        for old, new in {
            "8000": port,
            "909$i": f"{ports}$i",
            **{f'"builtin:{name}"': f'"{models[name]}"' for name in CLIENTS},
            "partition-id = 2\nnum-partitions = 3\n": f'partition-id = 2\ndata = "{mine}"\n',
            "baselines = false\n": f"baselines = false\n{given}",
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        (home / "guide.sh").write_text(text)
        os.mkfifo(home / "end")
        environment = {
            **os.environ,
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        }
        with (home / "log").open("wb") as log:
            shell = subprocess.Popen(
                ["bash", "-e", home / "guide.sh"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for_the_run(shell, folder, home / "log")
            environment["FLWR_HOME"] = str(folder / "flower")
            yield Deployment(folder, f"localhost:{port}", environment, home / "log")
            (home / "end").write_text("\n")
            shell.wait(30)
            assert traces.processes() == []
        finally:
            shell.kill()
            shell.wait()


def _wait_for_the_run(shell: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    """Wait until the guide has come to the end of the run; an error shows all logs."""
    deadline = time.monotonic() + SECONDS
    while not (folder / "ran").exists():
        ended, late = shell.poll() is not None, time.monotonic() > deadline
        if ended or late:
            logs = "\n".join(
                f"--- {path.name}\n{path.read_text(errors='replace')}"
                for path in [log, *sorted(folder.glob("*.log"))]
            )
            raise AssertionError(f"{'the guide failed' if ended else 'no end in time'}:\n{logs}")
        time.sleep(0.2)


def write_share(file: Path, partition: int) -> None:
    """Write a client's share of the run's private data to a file, as data of its own."""
    node = {"partition-id": partition, "num-partitions": 3}
    records = (
        {
            "prompt": sample.prompt,
            "target": sample.answer.removeprefix(" "),
            "domain": sample.domain,
        }
        for sample in private_samples(parse_client(node, FAST)).train
    )
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def _free_ports() -> str:
    """What the free ports have in common that end with 0, 1, 2 (SuperNodes) and 9 (SuperLink).

    They lie below those that systems give to connections: the SuperNodes start only after a minute
    of them, and one that finds its port taken ends.
    """
    while True:
        number = random.SystemRandom().randrange(1100, 3200)
        try:
            for digit in (0, 1, 2, 9):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 10 * number + digit))
        except OSError:
            continue
        return str(number)
