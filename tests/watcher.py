"""The watchdog's other half, a process of its own: keep the time, dump the family, end the run.

`watch` is called with the pid of pytest and the descriptor there of the pipe to our standard
input. Each line on it is a JSON list ``[nodeid, seconds, deadline]`` (by the monotonic clock, which
all processes share), ``null`` when that test is over, or ``"quit"``. Our standard output is the
file which all the family dumps to; what we have to say goes to standard error. Only the standard
library and `processes` are imported: this starts fast, and does not depend on what is tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

from processes import Process, facts, family, status, target

DUMP_SIGNAL = signal.SIGRTMAX - 1  # one that no test and no library is likely to take for itself
DUMPS = 1  # the descriptor of the file that holds the dumps
DUMP_TIME = 2.0  # seconds given to one process for its dump
KILL_TIME = 5.0  # seconds of trying to kill, in case one is stuck in the kernel


def watch(root: int, fd: int) -> None:
    """Wait for the first of: a test over its limit, the end of pytest, the order to quit.

    The end of the pipe is not enough: forked children hold its other end, and may outlive pytest.
    """
    try:
        pidfd = os.pidfd_open(root)
    except ProcessLookupError:
        return
    buffer = b""
    test: Any = None
    while os.getppid() == root:
        left = max(0.0, test[2] - time.monotonic()) if test else None
        ready, _, _ = select.select([0, pidfd], [], [], left)
        if test and not ready:
            end_run(root, fd, test[0], test[1])
            return
        if 0 in ready:
            chunk = os.read(0, 65536)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                test = json.loads(line)
            if not chunk or test == "quit":
                return


def end_run(root: int, fd: int, nodeid: str, seconds: float) -> None:
    """Show the whole family, then kill it."""
    title = f"+++ watchdog: {nodeid} is over its limit of {seconds:g} s"
    try:
        members = others(root, fd)
        say(f"\n{title}: the stacks of {len(members)} processes")
        # Stopped ones last, since they have to be woken and may then change what others do.
        for process in sorted(members, key=lambda process: process.state == "T"):
            say(f"\n--- {facts(process)}")
            say(stacks(process.pid))
        say(f"\n{title}: the run is killed")
    finally:
        kill_family(root, fd)


def others(root: int, fd: int) -> list[Process]:
    """Return the family without ourselves; its pipe is the one that ends in our input."""
    pipe = target(os.getpid(), 0)
    return [process for process in family(root, fd, pipe) if process.pid != os.getpid()]


def say(text: str) -> None:
    """Write at once, for the case that we do not get to the end."""
    print(text, file=sys.stderr, flush=True)


def stacks(pid: int, dumps: int = DUMPS) -> str:
    """Have a process write its stacks to ``dumps``, wait for the end of that, and return them."""
    if not has_dump_signal(pid, pid, "SigCgt"):
        return "(no stack: it has ended, or runs another program by now)"
    start = os.fstat(dumps).st_size
    give_up = time.monotonic() + DUMP_TIME
    note = ""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        blocking_anyway = blocking(pid)
        send(pid, signal.SIGCONT)
        send(pid, DUMP_SIGNAL)
        # A thread blocks the signal while it handles it; before that it is pending, then for a
        # moment neither: only when something has been written does not blocking mean done.
        while os.fstat(dumps).st_size == start or blocking(pid) - blocking_anyway:
            if time.monotonic() > give_up:
                note = "(incomplete: it blocks the signal, or does not get to run)\n"
                break
            time.sleep(0.01)
    return note + os.pread(dumps, os.fstat(dumps).st_size - start, start).decode(errors="replace")


def blocking(pid: int) -> set[str]:
    """Return the threads that block the dump signal."""
    threads = os.listdir(f"/proc/{pid}/task")
    return {thread for thread in threads if has_dump_signal(pid, thread, "SigBlk")}


def has_dump_signal(pid: int, thread: int | str, field: str) -> bool:
    """Tell whether the dump signal is in a signal set of a thread."""
    return bool(int(status(pid, thread).get(field, "0"), 16) >> (DUMP_SIGNAL - 1) & 1)


def kill_family(root: int, fd: int) -> None:
    """Kill all, in rounds, until no one is left who could have forked meanwhile.

    Pytest is stopped first, since a supervisor in it would replace the dead, and killed last,
    since its family can be found only while it lives.
    """
    send(root, signal.SIGSTOP)
    give_up = time.monotonic() + KILL_TIME
    while time.monotonic() < give_up:
        living = [p.pid for p in others(root, fd) if p.pid != root and p.state not in "ZX"]
        if not living:
            break
        for pid in living:
            send(pid, signal.SIGKILL)
        time.sleep(0.01)
    send(root, signal.SIGKILL)


def send(pid: int, signum: int) -> None:
    """Signal a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
