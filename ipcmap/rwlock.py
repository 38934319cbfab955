"""Many who read, or one who writes.

How: ``_core/reference_rwlocks.py``.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

from ipcmap._core import room_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_rwlocks import READ, WRITE, HasIt, RWLockCore
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.errors import BusyError, NotOwned
from ipcmap.rooms import InRoom

__all__ = ["RWLock", "Side"]


class RWLock(InRoom):
    """A lock for many readers or one writer.

    ``lock.reader`` and ``lock.writer`` are used like a :class:`Lock`. Who waits longest
    comes next, a reader together with the readers behind it, so that nobody starves.
    Threads are different holders, and only who has it gives it back. A reader that dies is
    forgotten; after a writer that died the next can ask :attr:`recovered`. However a
    process ends, what it had is free.

    Args:
        max_waiters: How many threads can have it or wait for it at a time, 64 bytes each; ``None`` = one for
            each process that the arena can have, 64 to 1024.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.
        ValueError: ``max_waiters`` is out of range.

    Example:
        >>> lock = RWLock()
        >>> with lock.reader:
        ...     print(lock)
        <RWLock(readers=1, writers=0)>
        >>> with lock.writer:
        ...     print(lock)
        <RWLock(readers=0, writers=1)>
    """

    _kind = Kind.RWLOCK
    _core_type = RWLockCore
    _core: RWLockCore

    __slots__ = ()

    def __init__(self, *, max_waiters: int | None = None, arena: Arena | None = None) -> None:
        self._make_room(arena, max_waiters)
        self._attach()

    @property
    def reader(self) -> Side:
        """What is acquired to read; many have it at a time, a thread more than once."""
        return Side(self, READ)

    @property
    def writer(self) -> Side:
        """What is acquired to write; one thread of all processes has it."""
        return Side(self, WRITE)

    @property
    def recovered(self) -> bool:
        """Whether a writer died with it, and no other has given it back since.

        What it guards may be half changed.
        """
        self._check()
        return bool(self._core._words[at.RECOVERED])

    def __repr__(self) -> str:
        if not self._is_good():
            return f"<{type(self).__name__}(destroyed)>"
        readers, writers = self._core.held()
        return f"<{type(self).__name__}(readers={readers}, writers={writers})>"


class Side:
    """One side of an :class:`RWLock`: to read, or to write."""

    __slots__ = ("_lock", "_mode")

    def __init__(self, lock: RWLock, mode: int) -> None:
        self._lock, self._mode = lock, mode

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it, waiting until it is there.

        Args:
            block: ``False`` = do not wait, whatever ``timeout`` says.
            timeout: Seconds to wait; ``None`` = for ever, 0 or less = not at all.

        Returns:
            Whether it was taken.

        Raises:
            BusyError: This thread has it, and would wait for itself; or called by a signal
                handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            FamilyFull: ``max_waiters`` threads are there, or all slots of the arena are taken.
            StaleHandle: It was destroyed.
            ValueError: ``timeout`` is not a number.
        """
        self._lock._check()
        deadline = Deadline(timeout if block else 0)
        with self._lock._errors():
            try:
                if not deadline.remaining():
                    self._lock._core.settle()
                return self._lock._core.acquire(self._mode, deadline)
            except HasIt:
                raise BusyError(
                    f"this thread has it already, and would wait for itself: {self._lock!r}, "
                    f"pid={os.getpid()}, thread={threading.get_native_id()}; release it first"
                ) from None

    def release(self) -> None:
        """Give it back, and let on who is next.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            NotOwned: This thread does not have it.
            StaleHandle: It was destroyed.
        """
        self._lock._check()
        with self._lock._errors():
            if not self._lock._core.release(self._mode):
                raise NotOwned(
                    f"only who has it gives it back: {self._lock!r}, pid={os.getpid()}, "
                    f"thread={threading.get_native_id()}; acquire it before each release"
                )

    def locked(self) -> bool:
        """Return whether somebody who lives has this side; stale as soon as it is read."""
        self._lock._check()
        with self._lock._errors():
            self._lock._core.settle()
            return bool(self._lock._core.held()[self._mode == WRITE])

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{'reader' if self._mode == READ else 'writer'} of {self._lock!r}>"
