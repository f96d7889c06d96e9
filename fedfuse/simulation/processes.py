"""Finds and stops everything that a command started, however far it detached itself.

Flower and Ray start processes that leave their session, outlive their parents and change their
names, so neither process groups nor names find them. But an environment variable with a folder of
the command's own is inherited by all. Processes that overwrite their environment when they rename
themselves, as Ray's do, are found as children of others or by their working folder.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_GRACE = 5.0  # Seconds between asking and forcing.
_GIVE_UP = 20.0


def started_in(folder: Path, variable: str) -> list[psutil.Process]:
    """Processes with ``variable`` set to ``folder``, those at work inside it, and their children.

    Processes that have ended, those of other users, and this one are left out.
    """
    own = psutil.Process()
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process == own or not _belongs(process, folder, variable):
            continue
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        found.update((member.pid, member) for member in family if member != own)
    return [process for process in found.values() if _alive(process)]


def stop_all(folder: Path, variable: str) -> list[int]:
    """Stop all that ``started_in`` finds: ask, wait some seconds, then force; repeat for new ones.

    Returns:
        Ids of the processes that are still there.
    """
    begin = time.monotonic()
    asked: dict[psutil.Process, float] = {}
    while left := started_in(folder, variable):
        now = time.monotonic()
        if now - begin > _GIVE_UP:
            break
        for process in left:
            try:
                if process not in asked:
                    asked[process] = now
                    process.terminate()
                elif now - asked[process] > _GRACE:
                    process.kill()
            except psutil.Error:  # It ended in between.
                continue
        time.sleep(0.1)
    return [process.pid for process in left]


def listens(pid: int, port: int) -> bool:
    """Whether this very process accepts TCP connections on the port."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def _belongs(process: psutil.Process, folder: Path, variable: str) -> bool:
    try:
        if process.environ().get(variable) == str(folder):
            return True
    except (psutil.Error, OSError):
        pass
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
