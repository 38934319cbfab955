"""CPython's own tests of executors pass on ipcmap's.

They are those of the Python that runs. Each class runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "futures_program.py"
LIMIT = 100  # seconds for a class
CLASSES = [
    ("test_process_pool", "ProcessPoolExecutorTest", 12),
    ("test_as_completed", "AsCompletedTests", 5),
    ("test_wait", "WaitTests", 8),
    ("test_shutdown", "ExecutorShutdownTest", 3),
    ("test_init", "InitializerMixin", 1),
    ("test_deadlock", "ExecutorDeadlockTest", 14),
]  # with how many tests there are at least


def outcomes(which: str, file: str, name: str, engine: str) -> dict[str, tuple[str, str]]:
    """Return what became of each test of a class, and what it said."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), which, file, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "IPCMAP_BACKEND": engine},
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    said: dict[str, tuple[str, str]] = {}
    for line in output.splitlines():
        _, mark, report = line.partition("@")
        if mark:
            test, outcome, text = json.loads(report)
            said[test] = outcome, text
    return said


@pytest.mark.timeout(LIMIT + 30)
@pytest.mark.parametrize(("file", "name", "count"), CLASSES, ids=[name for _, name, _ in CLASSES])
def test_what_cpython_asks_of_an_executor_holds(
    engine: str, file: str, name: str, count: int
) -> None:
    """Every test of the class, but those that are left out by name."""
    said = outcomes("ipcmap", file, name, engine)

    assert [
        (test, *what) for test, what in said.items() if what[0] not in ("passed", "skipped")
    ] == []
    assert sum(outcome == "passed" for outcome, _ in said.values()) >= count
