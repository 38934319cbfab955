"""Agreement: who may do something now, of all threads of all processes of a family.

The calls are those of multiprocessing's classes of the same names. What is added: they
travel by pickle to children that already run, and what a killed process held comes back.
How: ``_core/reference_monitor.py``.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import ClassVar

from ipcmap._core import monitor_layout as at
from ipcmap._core.layout import IDENTITY, Kind
from ipcmap._core.reference_locks import LockCore
from ipcmap._core.reference_monitor import Damaged, Monitor, initialise
from ipcmap._core.reference_sections import Reentered, Stalled
from ipcmap._core.reference_semaphores import SemaphoreCore, make
from ipcmap._core.slot_layout import HOLDER_BITS, HOLDER_SLOT
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena, default_arena
from ipcmap.errors import BusyError, CorruptError
from ipcmap.structure import Structure

__all__ = ["Lock", "Semaphore"]

_FOREVER = Deadline(None)


class _Guard(Structure):
    """What is acquired and released, around a monitor."""

    _core_type: ClassVar[type[Monitor]]

    __slots__ = ("_core",)

    _core: Monitor

    def _attach(self) -> None:
        family = self._arena._open().family
        try:
            self._core = self._core_type(self._memory, self._address, family)
        except Damaged as error:
            raise self._damaged(error) from None

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it, waiting until it is there.

        Args:
            block: ``False`` = do not wait, whatever ``timeout`` says.
            timeout: Seconds to wait; ``None`` = for ever, 0 or less = not at all.

        Returns:
            Whether it was taken.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            FamilyFull: All slots of the arena are taken by living processes.
            StaleHandle: It was destroyed.
            ValueError: ``timeout`` is not a number.
        """
        if self._words[self._tag_at] & IDENTITY != self._tag:
            self._check()
        deadline = _FOREVER if block and timeout is None else Deadline(timeout if block else 0)
        try:
            return self._core.acquire(deadline)
        except Reentered:
            raise self._busy() from None
        except Damaged as error:
            raise self._damaged(error) from None

    def release(self) -> None:
        """Give it back, and wake one who waits for it.

        Any process may do it, as in multiprocessing, for whoever took it.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
            ValueError: It is not taken, or the count is at its maximum.
        """
        if self._words[self._tag_at] & IDENTITY != self._tag:
            self._check()
        try:
            if not self._core.release():
                raise ValueError(self._too_often())
        except Reentered:
            raise self._busy() from None
        except Damaged as error:
            raise self._damaged(error) from None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _settle(self) -> None:
        """Take back from the dead, so that what is read next is right."""
        self._check()
        try:
            self._core.settle(Deadline(0))
        except Stalled:
            pass
        except Reentered:
            raise self._busy() from None
        except Damaged as error:
            raise self._damaged(error) from None

    def _too_often(self) -> str:
        raise NotImplementedError

    def _busy(self) -> BusyError:
        return BusyError(
            f"a signal handler cannot use what it interrupted: {self!r}, pid={os.getpid()}; "
            "return from the handler first"
        )

    def _damaged(self, error: Damaged) -> CorruptError:
        return CorruptError(
            f"{type(self).__name__} was overwritten: {error}, offset={self._cell.offset}; "
            "make another, and look for a write beyond the end of a view"
        )


class Lock(_Guard):
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

    def __repr__(self) -> str:
        state = "destroyed"
        if self._is_good():
            holder, thread = self._core.holder()
            state = f"held by {self._name_of(holder)}, thread {thread}" if holder else "free"
        return f"<ipcmap.Lock at offset {self._cell.offset}: {state}>"

    def _name_of(self, holder: int) -> str:
        kept = bool(holder & at.KEPT)
        slot, generation = holder & HOLDER_SLOT, (holder & ~at.KEPT) >> HOLDER_BITS
        for member in self._arena._open().family.members():
            if (member.slot, member.generation) == (slot, generation):
                return f"pid {member.pid}"
        return f"a process that ended (slot {slot}{', of its own accord' if kept else ''})"

    def _too_often(self) -> str:
        return f"lock released too many times: {self!r}; acquire it before each release"


class Semaphore(_Guard):
    """A count that processes share, as ``multiprocessing.Semaphore``.

    It has no owner: any process may release it. The tokens of a process that is killed,
    or becomes another program by exec, come back, as long as every process releases
    what it has taken itself. Once a process has released a token that it did not take,
    tokens travel, and none comes back any more; one that begins with 0 is such from the
    start. So for tokens that stand for something which outlives the taker, such as the
    free places of a buffer, begin with 0 and release that many. A process that ends by
    itself keeps its tokens.

    Args:
        value: The first count, 0 to 2**31 - 1.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.
        ValueError: ``value`` is out of range.

    Example:
        >>> import os
        >>> ready = Semaphore(0)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     ready.release()
        ...     os._exit(0)
        >>> ready.acquire(timeout=10)
        True
        >>> _ = os.waitpid(pid, 0)
        >>> ready.destroy()
    """

    _kind = Kind.SEMAPHORE
    _core_type = SemaphoreCore
    _core: SemaphoreCore

    __slots__ = ()

    def __init__(self, value: int = 1, *, arena: Arena | None = None) -> None:
        if not 0 <= value <= at.MAX_VALUE:
            raise ValueError(f"value must be 0 to {at.MAX_VALUE}: value={value}")
        arena = arena or default_arena()
        entries = min(value, arena._open().family.max_processes)
        nbytes = at.semaphore_nbytes(entries)
        self._make(arena, nbytes, nbytes)
        make(self._memory, self._address, value, entries)
        self._attach()

    @property
    def value(self) -> int:
        """The count now, tokens of the dead come back; stale as soon as it is read.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        self._settle()
        try:
            return self._core.value
        except Damaged as error:
            raise self._damaged(error) from None

    def get_value(self) -> int:
        """Return :attr:`value`; multiprocessing's name for it."""
        return self.value

    def __repr__(self) -> str:
        state = "destroyed"
        if self._is_good():
            state = f"value {self._core._words[at.VALUE]}"
        return f"<ipcmap.Semaphore at offset {self._cell.offset}: {state}>"

    def _too_often(self) -> str:
        return f"semaphore released too many times: maximum={at.MAX_VALUE}"
