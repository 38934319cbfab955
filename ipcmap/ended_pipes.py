"""The memory of pipes that have ended.

A ring that was shared outlives its processes, and a program that makes a pipe for each child
would fill its arena. The kernel lists all sockets that somebody holds, by inode: so whoever made
pipes looks now and then which of them nobody has any more, and frees their rings.

An entry may be passed over while others come and go, so a pipe has to be missing twice. A
thread that closes an end which another thread is using gives that one time to notice.
Sockets of another network namespace are not listed: their pipes stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import NamedTuple

from ipcmap.errors import IpcmapError
from ipcmap.ring import Ring

__all__ = ["EndedPipes", "made"]


class _Known(NamedTuple):
    inodes: set[int]  # of its two sockets
    namespace: int  # the network's, in which they are listed
    rings: list[tuple[int, int, int]]  # arena, offset and generation
    gone_since: float | None


class EndedPipes:
    """The pipes that this process made, whose rings it frees when no process has an end."""

    _REST = 2.0  # seconds between the two
    _EVERY = 64  # pipes

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self._look_at = self._EVERY
        self._lock = threading.Lock()

    def add(self, inodes: set[int], rings: list[Ring]) -> None:
        """Remember one."""
        # Not the handles: what is never shared is to be freed with them.
        keys = [(ring._arena._id, ring._cell.offset, ring._cell.generation) for ring in rings]
        with contextlib.suppress(OSError):
            self._known.append(_Known(inodes, network(), keys, None))

    def free_ended(self) -> None:
        """Free the rings of those that nobody has, if there are many by now."""
        if len(self._known) < self._look_at or not self._lock.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(OSError):
                self._look(listed_sockets(), network())
        finally:
            self._look_at = len(self._known) + self._EVERY
            self._lock.release()

    def free_for_want(self) -> bool:
        """Free the rings of some that nobody has, waiting until that is sure; ``False`` = of none."""
        if not self._lock.acquire(blocking=False):
            return False
        count = len(self._known)
        try:
            self._look_until_sure()
            return len(self._known) < count
        except OSError:
            return False
        finally:
            self._look_at = len(self._known) + self._EVERY
            self._lock.release()

    def _look_until_sure(self) -> None:
        while True:
            self._look_at = len(self._known)
            self._look(listed_sockets(), network())
            gone = [known.gone_since for known in self._known if known.gone_since is not None]
            if len(self._known) < self._look_at or not gone:
                return
            time.sleep(max(0.0, min(gone) + self._REST - time.monotonic()))

    def _look(self, listed: set[int], network: int) -> None:
        left, now = [], time.monotonic()
        for known in self._known[: self._look_at]:
            if known.namespace != network or known.inodes & listed:
                left.append(known._replace(gone_since=None))
            elif known.gone_since is None or now - known.gone_since < self._REST:
                left.append(known._replace(gone_since=known.gone_since or now))
            else:
                for ring in known.rings:
                    with contextlib.suppress(IpcmapError):  # it was freed with its handle
                        Ring._restored(*ring).destroy()
        self._known[: self._look_at] = left


def network() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def listed_sockets() -> set[int]:
    """Return the inodes of all sockets of this kind in our network namespace."""
    with open("/proc/self/net/unix", encoding="ascii", errors="replace") as file:
        next(file)
        return {int(line.split()[6]) for line in file}


made = EndedPipes()


def _forget() -> None:
    """Leave the parent's pipes to the parent."""
    made.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget)
