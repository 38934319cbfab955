"""What ``/proc`` says of processes: the family of one, and facts about each.

For the test plugins (`watchdog`, with its `watcher`, and `leftovers`). All of it is a snapshot of
something that goes on changing: a process may be gone by the time one reads about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    ppid: int
    state: str  # R, S, D, T, Z, as in ps
    started: int  # clock ticks since boot


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
    return existing(filter(str.isdigit, os.listdir("/proc")))


def children(pid: int) -> list[Process] | None:
    """Return the children of a process, zombies too; None if the kernel keeps no such list.

    It is the list of each thread, and while another child ends one may be missed.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        if not os.path.exists(f"/proc/{pid}/task/{pid}/children"):
            return None
    except OSError:
        return []
    return existing(
        child for thread in threads for child in read(f"/proc/{pid}/task/{thread}/children").split()
    )


def existing(pids: Iterable[str]) -> list[Process]:
    """Return those processes that are still there."""
    found = []
    for pid in pids:
        # The name stands in parentheses and may hold spaces and parentheses itself.
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if fields:
            found.append(Process(int(pid), int(fields[1]), fields[0], int(fields[19])))
    return found


def family(root: int, fd: int, pipe: str) -> list[Process]:
    """Return a process, its orphaned descendants, and the descendants of both.

    An orphan's parent is init, but it still has what it inherited: the pipe that ``root`` opened
    as ``fd``, under the same number. (One that exec'ed or closed it, and was then orphaned, is
    missed.) To adopt orphans with PR_SET_CHILD_SUBREAPER was rejected: tests would run in a world
    where init takes none, and every orphan that ended would stay as a zombie of ours.

    Whom this names may be killed. So it does not rest on one condition: ``pipe`` is the link text
    from when it was opened, whatever ``fd`` has become since, and no one is older than ``root``.
    """
    everyone = processes()
    members = [p for p in everyone if p.pid == root]
    younger = [p for p in everyone if members and p.started >= members[0].started]
    pipe_is_one = pipe.startswith("pipe:[")
    heirs = {p.pid for p in younger if pipe_is_one and target(p.pid, fd) == pipe} - {root}
    members += [p for p in younger if p.pid in heirs and p.ppid not in heirs | {root}]
    for member in members:  # grows on the way
        members += [p for p in younger if p.ppid == member.pid and p not in members]
    return members


def facts(process: Process) -> str:
    """Say in one line what can be seen of a process from outside."""
    pid, ppid = process.pid, process.ppid
    state = status(pid, pid).get("State", process.state)
    cmdline = read(f"/proc/{pid}/cmdline").replace("\0", " ") or read(f"/proc/{pid}/comm")
    where = read(f"/proc/{pid}/wchan")
    return f"pid {pid}, parent {ppid}, state {state}, in kernel at {where}: {cmdline.strip()[:200]}"
