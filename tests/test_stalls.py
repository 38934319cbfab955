"""A wait that takes too long says who has what it waits for, on every engine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from children import Child, Fork
from ipcmap import Arena, BoundedSemaphore, Event, Lock, RLock, RWLock, Semaphore
from ipcmap._core import stall_log
from ipcmap.rwlock import Side
from monitor_harness import stop

pytestmark = pytest.mark.usefixtures("engine")

Taken = Lock | RLock | Semaphore | Side
MAKERS: dict[str, Callable[[Arena], Taken]] = {
    "Lock": lambda arena: Lock(arena=arena),
    "RLock": lambda arena: RLock(arena=arena),
    "RWLock": lambda arena: RWLock(arena=arena).writer,
    "BoundedSemaphore": lambda arena: BoundedSemaphore(1, arena=arena),
}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each slice that was in vain be too long."""
    monkeypatch.setattr(stall_log, "SECONDS", 0.0)


def holder(fork: Fork, taken: Taken) -> Child:
    """Return a child that has it, and stays."""
    read_end, write_end = os.pipe()

    def hold() -> None:
        assert taken.acquire()
        os.write(write_end, b"1")
        signal.pause()

    child = fork(hold)
    os.read(read_end, 1)
    os.close(read_end)
    os.close(write_end)
    return child


@pytest.mark.parametrize("kind", MAKERS)
def test_a_wait_says_once_who_has_it_since_when_and_what_that_one_does(
    kind: str, arena: Arena, fork: Fork, caplog: pytest.LogCaptureFixture
) -> None:
    """A sleeping process and a stopped one."""
    taken = MAKERS[kind](arena)
    child = holder(fork, taken)

    for state in ("which sleeps", "which is stopped"):
        caplog.clear()
        if state == "which is stopped":
            stop(child, signal.SIGSTOP)
        assert not taken.acquire(timeout=0.3)
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("ipcmap", logging.WARNING)
        text = record.getMessage()
        assert f"pid {os.getpid()}, thread {threading.get_native_id()} has waited" in text
        assert f"for {kind} at offset " in text
        assert f"held by pid {child.pid}" in text
        if kind != "BoundedSemaphore":
            assert f"thread {child.pid}, for " in text
        assert text.endswith(state)


def test_a_lock_that_went_with_its_holder_is_said_to_have(
    arena: Arena, fork: Fork, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays taken for ever, unless somebody releases it."""
    lock = Lock(arena=arena)
    child = fork(lock.acquire)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not lock.acquire(timeout=0.3)
    assert not lock.acquire(timeout=0.3)
    assert "held by" in caplog.records[0].getMessage()
    child.wait()
    arena.sweep()
    assert not lock.acquire(timeout=0.3)
    assert caplog.messages[-1].endswith("held by a process that ended by itself")


def test_a_wait_for_what_nobody_has_says_nothing(
    arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    """An event may take its time, and so may a signal by a semaphore."""
    assert not Event(arena=arena).wait(0.1)
    assert not Semaphore(0, arena=arena).acquire(timeout=0.1)

    assert caplog.records == []


def test_a_log_handler_may_wait_for_a_lock_itself(
    arena: Arena, fork: Fork, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own wait is not logged: no line without end."""
    lock = Lock(arena=arena)
    holder(fork, lock)
    tried = []

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tried.append(lock.acquire(timeout=0.1))

    handler = Waiting()
    logging.getLogger("ipcmap").addHandler(handler)
    try:
        assert not lock.acquire(timeout=0.3)
    finally:
        logging.getLogger("ipcmap").removeHandler(handler)

    assert tried == [False]


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(text: str) -> None:
    """At the import, with what it was."""
    ended = subprocess.run(
        [sys.executable, "-c", "import ipcmap"],
        env={**os.environ, "IPCMAP_STALL_SECONDS": text},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert f"IPCMAP_STALL_SECONDS must be a number of seconds from 0 on: {text!r}" in ended.stderr
