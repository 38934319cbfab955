"""A deadlock shows: a wait that takes too long says once who it waits for.

IPCMAP_STALL_SECONDS, default 60, says what is too long. The line goes to the logger
"ipcmap", outside of any section. A handler of that logger may wait for a lock itself;
what it waits for is not logged, else each line would bring the next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import NamedTuple, Protocol

from ipcmap._core import liveness
from ipcmap._core import reference_sections as sections

__all__ = ["Holding", "Stall", "blame"]

_log = logging.getLogger("ipcmap")
_saying = threading.local()
_STATES = {"R": "runs", "T": "is stopped", "t": "is stopped by a debugger", "Z": "is dead"}


def _seconds() -> float:
    text = os.environ.get("IPCMAP_STALL_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(f"IPCMAP_STALL_SECONDS must be a number of seconds from 0 on: {text!r}")
    return seconds


SECONDS = _seconds()


class Holding(NamedTuple):
    """Who has something; thread and since are 0 where that is not known."""

    holder: int
    thread: int
    since: int  # monotonic clock, nanoseconds


class Pids(Protocol):
    """What is asked of the family."""

    def pid_of(self, holder: int) -> int:
        """Return a holder's pid, 0 where it is not a member any more."""


class Stall:
    """One wait, and whether it is time to say something about it."""

    __slots__ = ("_begun", "_said")

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._said = False

    def is_due(self) -> bool:
        """Return whether it takes too long and nothing was said."""
        return not self._said and time.monotonic() - self._begun >= SECONDS

    def report(self, name: str, holdings: list[Holding], pids: Pids) -> None:
        """Say who has what is waited for; nothing where nobody has it."""
        if not holdings or getattr(_saying, "now", False):
            return
        self._said = _saying.now = True
        try:
            waited = time.monotonic() - self._begun
            held = "; ".join(_describe(holding, pids) for holding in holdings)
            _log.warning(
                "pid %d, thread %d has waited %.1f s for %s: %s",
                os.getpid(), threading.get_native_id(), waited, name, held,
            )  # fmt: skip
        finally:
            _saying.now = False


def blame(stalled: sections.Stalled) -> str:
    """Say who is in the section that was not to be had; nothing where nobody is any more."""
    thread = sections.occupant(stalled.section) if stalled.section else 0
    stat = liveness.read_stat(str(thread)) if thread else None
    if not stat:
        return ""
    state = _STATES.get(stat.state, "sleeps")
    return f"; in the way is thread {thread} of pid {_process_of(thread)}, which {state}"


def _process_of(thread: int) -> int:
    try:
        with open(f"/proc/{thread}/status", "rb") as file:  # a name is any bytes
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
    except OSError:
        return thread
    return int(lines.get(b"Tgid", thread))


def _describe(holding: Holding, pids: Pids) -> str:
    pid = pids.pid_of(holding.holder)
    if not pid:
        return "held by a process that ended by itself"
    text = f"held by pid {pid}"
    if holding.thread:
        text += f", thread {holding.thread}"
    if holding.since:
        text += f", for {max(0.0, time.monotonic() - holding.since / 1e9):.1f} s"
    path = f"{pid}/task/{holding.thread}" if holding.thread else str(pid)
    stat = liveness.read_stat(path) or liveness.read_stat(str(pid))
    state = _STATES.get(stat.state, "sleeps") if stat else "cannot be looked at"
    return f"{text}, which {state}"
