"""How one tells that a process is dead. Nothing shared is written here.

A process is known by its pid and its start time, since pids are used again. It is
dead if any of these holds:

* there is no such pid (ESRCH), or its pidfd is readable: it ended, and a zombie
  has ended, while a stopped process and one whose first thread alone ended have not;
* the pid has another start time: it belongs to somebody else now;
* its maps lack the region: it replaced itself by exec and will not come back. The
  maps are read only if a word of the region, fetched from its memory, is not there:
  that answer takes microseconds, where it is allowed, and the maps up to a millisecond.

Whatever cannot be found out counts as alive: EMFILE, EPERM, a /proc that is
hidden, unmounted or of another pid namespace. So does a process with empty maps:
it is on its way out, and its pidfd is about to say so.

Where pidfd_open(2) is missing (before Linux 5.3, or forbidden), kill(pid, 0) and
the state in /proc/PID/stat stand in for it.

The start time counts clock ticks (10 ms) since boot, as seen from the reader's
time namespace. A pid that comes round within one tick is taken for the old process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
from typing import NamedTuple

from ipcmap._core import libc
from ipcmap._core.slot_layout import EXECED, EXITED, KILLED, LEFT, UNKNOWN

__all__ = [
    "Death",
    "Region",
    "Stat",
    "examine",
    "has_word",
    "mapped_at",
    "namespace",
    "pidfd_open",
    "proc_is_ours",
    "read_stat",
    "valid",
]


class Death(NamedTuple):
    """What is known of a death: the cause, and the exit code or signal that goes with it."""

    cause: int
    status: int


class Region(NamedTuple):
    """How one recognises the family's memory in another process."""

    address: int
    word: int  # what stands there, and nowhere else
    mapped: str | None  # what mapped_at() says of it; None or "" = do not look


class Stat(NamedTuple):
    """What matters here of ``/proc/PID/stat``."""

    state: str
    threads: int
    started: int
    wait_status: int  # 0 also where we may not know


def proc_is_ours() -> bool:
    """Return whether ``/proc`` is there and has our pids; a new pid namespace may see the old one's."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def namespace(kind: str) -> int:
    """Return the inode of this process's namespace (``"pid"``, ``"time"``), 0 if it cannot be told."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def read_stat(pid: int | str) -> Stat | None:
    """Return what ``/proc/PID/stat`` says, ``None`` where it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name stands in parentheses and may hold spaces and parentheses itself.
    fields = text.rpartition(b")")[2].split()
    try:
        return Stat(fields[0].decode(), int(fields[17]), int(fields[19]), int(fields[49]))
    except (IndexError, ValueError):
        return None


def mapped_at(pid: int | str, address: int) -> str | None:
    """Return device and inode of what a process has mapped at an address.

    ``""`` = nothing is mapped there, ``None`` = it cannot be told.
    """
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    if not lines:
        return None
    for line in lines:
        begin, _, end = line.partition(b" ")[0].partition(b"-")
        if address < int(end, 16):
            if address < int(begin, 16):
                break
            return b" ".join(line.split()[3:5]).decode()
    return ""


def has_word(pid: int, region: Region) -> bool:
    """Return whether a process certainly has the region; ``False`` also where one may not ask."""
    word = ctypes.c_uint64()
    ours = libc.IoVec(ctypes.addressof(word), ctypes.sizeof(word))
    theirs = libc.IoVec(region.address, ctypes.sizeof(word))
    try:
        libc.process_vm_readv(pid, ours, 1, theirs, 1, 0)
    except OSError:
        return False
    return word.value == region.word


def examine(pid: int, started: int, region: Region) -> Death | None:
    """Return how a process died, ``None`` if it lives, as far as anyone can tell.

    Args:
        pid: Its pid.
        started: Its start time, 0 = unknown.
        region: What it must have mapped.
    """
    pidfd = -1
    try:
        pidfd = pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return Death(UNKNOWN, 0)
    try:
        return _examine(pid, pidfd, started, region)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def pidfd_open(pid: int) -> int:
    """Return a descriptor of a process, readable once it has ended; ``OSError`` as the kernel has it."""
    # A Python that was built on older headers has not got it.
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _examine(pid: int, pidfd: int, started: int, region: Region) -> Death | None:
    # Before the start time: a readable pidfd of the pid's next owner is found out by it.
    if pidfd >= 0:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = bool(poll.poll(0))
    else:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return Death(UNKNOWN, 0)
        except OSError:
            pass
        ended = False
    proc = proc_is_ours()
    stat = read_stat(pid) if proc else None
    if stat and started and stat.started != started:
        return Death(UNKNOWN, 0)
    if stat and pidfd < 0:
        ended = stat.state in "ZX" and stat.threads <= 1
    if ended:
        return _cause(pid, pidfd, stat)
    if proc and region.mapped and not has_word(pid, region):
        mapped = mapped_at(pid, region.address)
        if mapped is not None and mapped != region.mapped:
            return Death(EXECED, 0)
    return None


def _cause(pid: int, pidfd: int, stat: Stat | None) -> Death:
    """Ask what ended a process: its parent may, others see it only while it is a zombie."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(OSError):
        found = os.waitid(os.P_PIDFD, pidfd, options) if pidfd >= 0 else None
        if pidfd < 0 and stat:
            found = os.waitid(os.P_PID, pid, options)
        if found:
            return Death(EXITED if found.si_code == os.CLD_EXITED else KILLED, found.si_status)
    if stat and os.WIFSIGNALED(stat.wait_status):
        return Death(KILLED, os.WTERMSIG(stat.wait_status))
    if stat and stat.wait_status:
        return Death(EXITED, os.WEXITSTATUS(stat.wait_status))
    return Death(UNKNOWN, 0)


def valid(death: Death) -> bool:
    """Return whether a death that was read from shared memory can be one."""
    cause, status = death
    if cause == EXITED:
        return status <= 255
    if cause == KILLED:
        return 0 < status < signal.NSIG
    return cause in (UNKNOWN, EXECED, LEFT) and status == 0
