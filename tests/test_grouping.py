"""Tests of one file share a process; so do all that start simulations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLAIN = "import pytest\n\n@pytest.mark.parametrize('n', range(6))\ndef test_one(n): pass\n"
SLOW = PLAIN.replace("\n\n", "\n\n@pytest.mark.slow\n", 1)
FILES = {"test_a.py": PLAIN, "test_b.py": PLAIN, "test_c.py": SLOW, "test_d.py": SLOW}


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "-v", "--numprocesses", "2", "--dist", "loadgroup"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    found = subprocess.run(
        [*command, "-p", "tests.grouping", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=plain | {"PYTHONPATH": str(ROOT)},
    ).stdout

    workers = defaultdict(set)
    for worker, name in re.findall(r"\[(gw\d)\] .*PASSED (test_\w\.py)", found):
        workers[name].add(worker)

    assert set(workers) == set(FILES), found
    assert all(len(of) == 1 for of in workers.values()), workers
    assert workers["test_c.py"] == workers["test_d.py"], workers
