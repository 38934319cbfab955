"""One at a time: Lock and RLock.

How: ``_core/reference_locks.py``.
"""

from __future__ import annotations

import os
import threading
from multiprocessing import process

from ipcmap._core import monitor_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_locks import LockCore, RLockCore
from ipcmap._core.reference_monitor import initialise
from ipcmap.arena import Arena
from ipcmap.errors import NotOwned
from ipcmap.guards import Guard

__all__ = ["Lock", "RLock"]


class _Owned(Guard):
    """What one thread of one process has."""

    _core: LockCore

    __slots__ = ()

    def __init__(self, *, arena: Arena | None = None) -> None:
        self._make(arena, at.LOCK_NBYTES, at.LOCK_NBYTES)
        initialise(self._address)
        self._attach()

    def locked(self) -> bool:
        """Return whether it is taken, by somebody who lives; stale as soon as it is read.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        self._settle()
        return not self._core._available()

    @property
    def recovered(self) -> bool:
        """Whether it was taken over from a process that was killed with it, or became another program.

        For who has it: what it guards may be half changed. It stays so until the next release.

        Raises:
            StaleHandle: It was destroyed.
        """
        self._check()
        return bool(self._core._words[at.RECOVERED])

    def _is_mine(self) -> bool:
        """Return whether this thread has it."""
        return self._core.levels() > 0

    def _count(self) -> int:
        """Return how often a thread of this process has taken it."""
        return self._core.levels(any_thread=True)

    def _get_value(self) -> int:
        return int(not self.locked())

    def _owner(self, count: int) -> tuple[str, str]:
        """Return its owner's name and the count, as multiprocessing writes them."""
        if not self._is_good():
            return "destroyed", "destroyed"
        if self._is_mine():
            name, thread = process.current_process().name, threading.current_thread()
            if thread is not threading.main_thread():
                name += "|" + thread.name
            return name, str(count)
        if not self._core.holder()[0]:
            return "None", "0"
        return "SomeOtherThread" if count else "SomeOtherProcess", "nonzero"


class Lock(_Owned):
    """A lock: one thread of one process at a time, as ``multiprocessing.Lock``.

    It has no owner: a thread that takes it twice waits for itself, and any process may
    release it. A process that is killed, or becomes another program by exec, while it
    holds the lock loses it to the next who asks. One that ends by itself keeps it taken.
    It goes by fork, and by pickle to processes that have its arena.

    Args:
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.

    Example:
        >>> import os, signal
        >>> lock = Lock()
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     _ = lock.acquire()
        ...     os.kill(os.getpid(), signal.SIGKILL)
        >>> _ = os.waitpid(pid, 0)
        >>> with lock:  # taken over from the dead
        ...     lock.locked()
        True
        >>> lock.locked()
        False
    """

    _kind = Kind.LOCK
    _core_type = LockCore

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(owner={self._owner(self._count())[0]})>"

    def _refusal(self) -> Exception:
        return ValueError(
            f"semaphore or lock released too many times: {self!r}; acquire it before each release"
        )


class RLock(_Owned):
    """A lock that the thread which has it may take again, as ``multiprocessing.RLock``.

    As many releases as acquires give it back, all by that thread. What ends of processes
    do is as with :class:`Lock`, whatever the count. After an end by itself it stays taken
    for ever, since nobody else may release it.

    Args:
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.

    Example:
        >>> lock = RLock()
        >>> with lock, lock:
        ...     print(lock)
        <RLock(MainProcess, 2)>
        >>> lock.locked()
        False
    """

    _kind = Kind.RLOCK
    _core_type = RLockCore

    __slots__ = ()

    def __repr__(self) -> str:
        name, count = self._owner(self._count())
        return f"<{type(self).__name__}({name}, {count})>"

    def _refusal(self) -> Exception:
        return NotOwned(
            f"attempt to release recursive lock not owned by thread: {self!r}, "
            f"pid={os.getpid()}, thread={threading.get_native_id()}; "
            "the thread that acquired it has to"
        )
