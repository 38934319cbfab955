"""CPython's own tests of multiprocessing pass on the context, where fork's pass.

Each class runs in a process of its own, so that a test that hangs costs its class alone. The plain
run has what is quick, `tox -e conformance` all of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "multiprocessing_program.py"
LIMIT = 150  # seconds for a class

TYPED = [
    "Queue",
    "Lock",
    "Semaphore",
    "Event",
    "Value",
    "Array",
    "Connection",
    "PicklingConnections",
    "SharedCTypes",
    "PoolWorkerErrors",
    "SubclassingProcess",
    *(["AtExit"] if sys.version_info >= (3, 13) else []),
]
SLOW_TYPED = [
    "Process",
    "Condition",
    "Barrier",
    "Pool",
    "PoolWorkerLifetime",
    "ManagerRestart",
    "Poll",
    "Heap",
    "SharedMemory",
    "Finalize",
    "Logging",
    "Listener",
    "ListenerClient",
    "PollEintr",
]
QUICK = [f"WithProcessesTest{name}" for name in TYPED]
QUICK += ["TestSimpleQueue", "TestInitializers", "TestPoolNotLeakOnFailure"]
SLOW = [*(f"WithProcessesTest{name}" for name in SLOW_TYPED), "TestWait"]
CLASSES = [*QUICK, *(pytest.param(name, marks=pytest.mark.conformance) for name in SLOW)]


def outcomes(which: str, name: str, engine: str) -> Iterator[tuple[str, str, str]]:
    """Run a class; yield each test with what became of it, and what it said."""
    environment = {**os.environ, "IPCMAP_BACKEND": engine}
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), which, name],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGPWR)  # its stack
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
    begun = None
    for line in output.splitlines():
        _, mark, report = line.partition("@")
        if mark:
            _, test, outcome, text = json.loads(report)
            if outcome == "begun":
                begun = test
            else:
                begun = None
                yield test, outcome, text
    if begun or process.returncode:
        yield begun or "the end", "failed", f"exit code {process.returncode}\n{errors[-3000:]}"


@pytest.mark.timeout(2 * LIMIT + 30)
@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_cpython_passes(name: str, engine: str) -> None:
    """Every test that passes for fork; only where one fails is fork asked."""
    found = [*outcomes("ipcmap", name, engine)]
    failed = {test: text for test, outcome, text in found if outcome == "failed"}
    if failed:
        passes = {
            test for test, outcome, _ in outcomes("fork", name, engine) if outcome == "passed"
        }
        failed = {test: text for test, text in failed.items() if test in passes or "end" in test}

    assert "passed" in {outcome for _, outcome, _ in found} or name.endswith("SharedMemory")
    assert not failed, "\n\n".join(f"{test}:\n{text}" for test, text in failed.items())


def test_no_class_of_cpython_is_left_out() -> None:
    """The list above is what CPython's own function makes."""
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "ipcmap"], capture_output=True, text=True, check=True
    )
    assert {*result.stdout.split()} <= {*QUICK, *SLOW}
