"""Waiting for what others change under a lock.

How: ``_core/reference_conditions.py``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, TypeVar

from ipcmap._core import room_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_conditions import ConditionCore
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.errors import NotOwned
from ipcmap.locks import Lock, RLock
from ipcmap.rooms import InRoom

__all__ = ["Condition"]

Result = TypeVar("Result")


class Count(Protocol):
    """What multiprocessing's own tests ask of a condition's parts."""

    def get_value(self) -> int:
        """Return a count."""


class _Count:
    def __init__(self, count: Callable[[], int]) -> None:
        self.get_value = count


class Condition(InRoom):
    """A lock, and who waits for a change under it, as ``multiprocessing.Condition``.

    Who is killed asleep is not notified: another gets it instead. The lock of one who is
    killed awake goes to the next, who can ask ``recovered`` of it. The oldest who waits
    is notified first. Wait in a loop, or with :meth:`wait_for`: after a death, one more
    than was meant may be woken.

    Args:
        lock: A :class:`Lock` or an :class:`RLock`; ``None`` = an RLock of its own.
        max_waiters: How many threads can wait at a time, 64 bytes each; ``None`` = one for
            each process that the arena can have, 64 to 1024.
        arena: Where it lives; ``None`` = the lock's, or the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.
        TypeError: ``lock`` is neither.
        ValueError: ``max_waiters`` is out of range, or the lock is in another arena.

    Example:
        >>> import os
        >>> changed, ready = Condition(), bytearray(1)
        >>> from ipcmap import Mapping
        >>> shared = Mapping.anonymous(1)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     with changed:
        ...         shared[0] = 1
        ...         changed.notify()
        ...     os._exit(0)
        >>> with changed:
        ...     changed.wait_for(lambda: shared[0] == 1, timeout=10)
        True
        >>> _ = os.waitpid(pid, 0)
        >>> changed.destroy()
    """

    _kind = Kind.CONDITION
    _core_type = ConditionCore
    _core: ConditionCore
    _lock: Lock | RLock

    __slots__ = ("_lock", "acquire", "release")

    def __init__(
        self,
        lock: Lock | RLock | None = None,
        *,
        max_waiters: int | None = None,
        arena: Arena | None = None,
    ) -> None:
        own = lock is None
        if lock is None:
            lock = RLock(arena=arena)
        elif not isinstance(lock, (Lock, RLock)):
            raise TypeError(f"lock must be an ipcmap.Lock or an ipcmap.RLock: {lock!r}")
        elif arena not in (None, lock._arena):
            raise ValueError("lock must be in the arena of its condition; leave arena out")
        self._make_room(lock._arena, max_waiters)
        words = self._memory.cast("Q")
        words[at.LOCK], words[at.LOCK_GENERATION] = lock._cell.offset, lock._cell.generation
        words[at.LOCK_IS_OWN] = own | (isinstance(lock, RLock) << 1)
        self._lock = lock
        self._attach()

    def _attach(self) -> None:
        super()._attach()
        if not hasattr(self, "_lock"):  # a handle that came by pickle
            words = self._core._words
            kind = RLock if words[at.LOCK_IS_OWN] & 2 else Lock
            place = words[at.LOCK], words[at.LOCK_GENERATION]
            self._lock = kind._restored(self._arena._id, *place)
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def _share(self) -> None:
        self._lock._share()
        super()._share()

    def _contents(self) -> Iterable[Cell]:
        return [self._lock._cell] if self._core._words[at.LOCK_IS_OWN] & 1 else []

    def wait(self, timeout: float | None = None) -> bool:
        """Give the lock back, wait until notified, and take the lock again.

        However often the thread has the lock, it gives all of it back. It has it again
        when this returns, or raises what a signal handler raised; only a second such
        exception, while it waits for the lock, comes out without it.

        Args:
            timeout: Seconds to wait for a notify; ``None`` = for ever, 0 or less = not at all.

        Returns:
            Whether it was notified.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            FamilyFull: ``max_waiters`` threads wait, or all slots of the arena are taken.
            NotOwned: This thread does not have the lock.
            StaleHandle: It was destroyed.
            ValueError: ``timeout`` is not a number.
        """
        self._check()
        deadline = Deadline(timeout)
        levels = self._lock._core.levels()
        if not levels:
            raise self._not_owned("must acquire() condition before using wait()")

        def give_lock() -> int:
            for _ in range(levels):
                self._lock.release()
            return 0

        try:
            with self._errors():
                return bool(self._core.attend(deadline, [0], self._core.come, then=give_lock))
        finally:
            self._take_lock(levels)

    def _take_lock(self, levels: int) -> None:
        try:
            self._acquire(levels)
        except BaseException:
            self._acquire(levels)
            raise

    def _acquire(self, levels: int) -> None:
        while self._lock._core.levels() < levels:
            self._lock.acquire()

    def wait_for(self, predicate: Callable[[], Result], timeout: float | None = None) -> Result:
        """Wait until ``predicate()`` is true; it is called with the lock taken.

        Args:
            predicate: What to look at.
            timeout: Seconds; ``None`` = for ever.

        Returns:
            What it returned last.

        Raises:
            NotOwned: This thread does not have the lock.
            StaleHandle: It was destroyed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                break
            self.wait(remaining)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake some of those who wait, the oldest first; it waits for none of them.

        Args:
            n: How many, at most.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            NotOwned: This thread does not have the lock.
            StaleHandle: It was destroyed.
        """
        self._check()
        if not self._lock._core.levels():
            raise self._not_owned("lock is not owned")
        if n > 0:
            with self._errors():
                self._core.notify(n)

    def notify_all(self) -> None:
        """Wake all who wait.

        Raises:
            NotOwned: This thread does not have the lock.
            StaleHandle: It was destroyed.
        """
        self.notify(sys.maxsize)

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        waiting = str(self._core.count_waiting()) if self._is_good() else "destroyed"
        return f"<{type(self).__name__}({self._lock}, {waiting})>"

    def _not_owned(self, rule: str) -> NotOwned:
        return NotOwned(f"{rule}: {self!r}")

    @property
    def _sleeping_count(self) -> Count:
        return _Count(self._core.count_waiting)

    @property
    def _woken_count(self) -> Count:
        return _Count(int)

    _wait_semaphore = _woken_count
