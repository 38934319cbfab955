"""Locks and semaphores whose acquire is awaited.

A task is served as a waiting thread is: it looks at the holders at the end of each slice, and
takes over from those that were killed. The first slice is short, and each that was in vain
doubles the next, up to a second (``_core/reference_monitor.py``).

What a task takes is its process's from the moment of the taking: a token is noted for the
process, and no task can lose one, since it takes in the step in which it returns (``line.py``).
"""

from __future__ import annotations

from types import TracebackType

from ipcmap import locks, semaphores
from ipcmap._core.reference_monitor import FIRST_SLICE, LONGEST_SLICE
from ipcmap.aio.line import Line
from ipcmap.aio.watch import Where
from ipcmap.guards import Guard
from ipcmap.listener import Listener

__all__ = ["Lock", "Semaphore"]


class _Taken(Exception):
    """There is nothing to take."""


class Face:
    """What the faces of locks and semaphores have in common."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        place = guard._arena._id, guard._cell.offset, guard._cell.generation
        self._acquiring = Where(Line, place, guard._listen)

    async def acquire(self) -> bool:
        """Take it, when it is there, and return ``True``.

        Whoever is cancelled, or runs out of time (``asyncio.timeout``), has taken nothing.
        What a process holds that is killed is taken over, as by the object's own ``acquire``.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            FamilyFull: All slots of the arena are taken by living processes.
            StaleHandle: It was destroyed.
        """
        guard, line, longest = self._guard, self._acquiring.here(), FIRST_SLICE
        # A glance first: to look at the holders is the line's, once.
        if line.is_free() and guard._core._available() and guard.acquire(False):
            return True

        def attempt(listener: Listener) -> bool:
            nonlocal longest
            if guard.acquire(False):
                return True
            listener._arm(0, seconds=longest)
            longest = min(2 * longest, LONGEST_SLICE)
            raise _Taken

        return await line.until(attempt, _Taken)

    def release(self) -> None:
        """Give it back; the object's own ``release``, which does not wait."""
        self._guard.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._guard.release()


class Lock(Face):
    """A lock whose ``acquire`` is awaited, and that ``async with`` takes.

    It is used by the tasks of any loop of its process. Of the tasks of one loop, the one that
    waits longest is served first; of loops, threads and processes, whoever asks first.

    Args:
        lock: An :class:`ipcmap.Lock`. An :class:`ipcmap.RLock` belongs to a thread, and would let
            in all tasks of one.

    Raises:
        TypeError: It is no such lock.

    Example:
        >>> import asyncio
        >>> from ipcmap import Lock, aio
        >>> lock = Lock()
        >>> async def main():
        ...     async with aio.Lock(lock):
        ...         return lock.locked()
        >>> asyncio.run(main()), lock.locked()
        (True, False)
    """

    def __init__(self, lock: locks.Lock) -> None:
        if not isinstance(lock, locks.Lock):
            raise TypeError(
                f"a lock of tasks is made of an ipcmap.Lock: lock={lock!r}; the owner of an RLock "
                "is a thread, of which all tasks are one"
            )
        self.lock = lock
        super().__init__(lock)

    def __repr__(self) -> str:
        return f"<ipcmap.aio.Lock: {self.lock!r}>"


class Semaphore(Face):
    """A semaphore whose ``acquire`` is awaited, and that ``async with`` takes; see :class:`Lock`.

    Args:
        semaphore: An :class:`ipcmap.Semaphore` or :class:`ipcmap.BoundedSemaphore`.

    Example:
        >>> import asyncio
        >>> from ipcmap import BoundedSemaphore, aio
        >>> places = BoundedSemaphore(2)
        >>> async def main():
        ...     async with aio.Semaphore(places):
        ...         return places.value
        >>> asyncio.run(main()), places.value
        (1, 2)
    """

    def __init__(self, semaphore: semaphores.Semaphore) -> None:
        self.semaphore = semaphore
        super().__init__(semaphore)

    def __repr__(self) -> str:
        return f"<ipcmap.aio.Semaphore: {self.semaphore!r}>"
