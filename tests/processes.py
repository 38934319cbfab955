"""What ``/proc`` says of processes: the family of one, and facts about each.

For the test plugins (`watchdog`, with its `watcher`, and `leftovers`). All of it is a snapshot of
something that goes on changing: a process may be gone by the time one reads about it.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    ppid: int
    state: str  # R, S, D, T, Z, as in ps


def read(path: str) -> str:
    """Return what a file says, nothing if its process is gone."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def target(pid: int, fd: int) -> str:
    """Return what a descriptor of a process refers to, nothing if that cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def status(pid: int, thread: int | str) -> dict[str, str]:
    """Return the fields of ``/proc/PID/task/TID/status``."""
    lines = read(f"/proc/{pid}/task/{thread}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processes() -> list[Process]:
    """Return all processes that can be seen."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        # The name stands in parentheses and may hold spaces and parentheses itself.
        fields = read(f"/proc/{entry}/stat").rpartition(")")[2].split()
        if fields:
            found.append(Process(int(entry), int(fields[1]), fields[0]))
    return found


def family(root: int, fd: int) -> list[Process]:
    """Return a process, its orphaned descendants, and the descendants of both.

    An orphan's parent is init, but it still has what it inherited: the pipe that is ``fd`` in
    ``root``, under the same number. (One that exec'ed or closed it, and was then orphaned, is
    missed.) To adopt orphans with PR_SET_CHILD_SUBREAPER was rejected: tests would run in a world
    where init takes none, and every orphan that ended would stay as a zombie of ours.
    """
    everyone = processes()
    pipe = target(root, fd)
    # Without the first condition a root that is gone would have every process as its heir.
    heirs = {p.pid for p in everyone if pipe and target(p.pid, fd) == pipe} - {root}
    orphans = [p for p in everyone if p.pid in heirs and p.ppid not in heirs | {root}]
    members = [p for p in everyone if p.pid == root] + orphans
    for member in members:  # grows on the way
        members += [p for p in everyone if p.ppid == member.pid and p not in members]
    return members


def facts(process: Process) -> str:
    """Say in one line what can be seen of a process from outside."""
    pid, ppid, state = process
    state = status(pid, pid).get("State", state)
    cmdline = read(f"/proc/{pid}/cmdline").replace("\0", " ") or read(f"/proc/{pid}/comm")
    where = read(f"/proc/{pid}/wchan")
    return f"pid {pid}, parent {ppid}, state {state}, in kernel at {where}: {cmdline.strip()[:200]}"
