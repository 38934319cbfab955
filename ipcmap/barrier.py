"""A place where nobody goes on before all have come.

How: ``_core/reference_barriers.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import BrokenBarrierError
from typing import Any

from ipcmap._core import room_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_barriers import BarrierCore
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.rooms import InRoom

__all__ = ["Barrier", "BrokenBarrierError"]

Action = Callable[[], object]


class Barrier(InRoom):
    """So many threads wait for each other, as with ``multiprocessing.Barrier``.

    It breaks when one that has come dies before all have come: the others get
    ``BrokenBarrierError``, a second after at most, and so does whoever comes later, until
    :meth:`reset`.

    Args:
        parties: How many make a round.
        action: Called by the last to come, before all go on.
        timeout: Seconds that :meth:`wait` waits if it is not told; ``None`` = for ever.
        max_waiters: How many threads can be there at a time, 64 bytes each; ``None`` = one for
            each process that the arena can have, 64 to 1024.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.
        ValueError: ``parties`` or ``max_waiters`` is out of range.

    Example:
        >>> import os
        >>> start = Barrier(2)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     _ = start.wait()
        ...     os._exit(0)
        >>> start.wait() in (0, 1)
        True
        >>> _ = os.waitpid(pid, 0)
        >>> start.destroy()
    """

    _kind = Kind.BARRIER
    _core_type = BarrierCore
    _core: BarrierCore

    __slots__ = ("_action", "_timeout")

    def __init__(
        self,
        parties: int,
        action: Action | None = None,
        timeout: float | None = None,
        *,
        max_waiters: int | None = None,
        arena: Arena | None = None,
    ) -> None:
        if not 0 < parties <= at.MAX_ENTRIES // 2:
            raise ValueError(f"parties must be > 0, at most {at.MAX_ENTRIES // 2}: {parties}")
        if max_waiters is None and parties > 32:
            max_waiters = max(2 * parties, 1024)
        self._make_room(arena, max_waiters)
        self._memory.cast("Q")[at.PARTIES] = parties
        self._attach()
        self._action, self._timeout = action, timeout

    def __reduce__(self) -> tuple[Any, Any]:
        restore, place = super().__reduce__()
        return _restore, (restore, place, self._action, self._timeout)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all have come; the last one to come calls the action.

        Args:
            timeout: Seconds; ``None`` = those of the barrier. Too long breaks it.

        Returns:
            A number from 0 to ``parties - 1``, another for each.

        Raises:
            BrokenBarrierError: It broke, or was broken.
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            FamilyFull: ``max_waiters`` threads are there, or all slots of the arena are taken.
            StaleHandle: It was destroyed.
            ValueError: ``timeout`` is not a number.
        """
        self._check()
        deadline = Deadline(self._timeout if timeout is None else timeout)
        with self._errors():
            index = self._core.wait(deadline, self._action)
        if index is None:
            raise BrokenBarrierError(
                f"the barrier is broken: {self!r}; one came too late, died, or aborted it: reset() it"
            )
        return index

    def reset(self) -> None:
        """Make it as new; who waits gets ``BrokenBarrierError``.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        self._check()
        with self._errors():
            self._core.reset()

    def abort(self) -> None:
        """Break it.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        self._check()
        with self._errors():
            self._core.abort()

    @property
    def parties(self) -> int:
        """How many make a round."""
        self._check()
        with self._errors():
            return self._core.parties

    @property
    def n_waiting(self) -> int:
        """How many wait; stale as soon as it is read."""
        self._check()
        with self._errors():
            return 0 if self._core.broken() else self._core.count_waiting()

    @property
    def broken(self) -> bool:
        """Whether it is broken; stale as soon as it is read."""
        self._check()
        return self._core.broken()

    def __repr__(self) -> str:
        state = "destroyed"
        if self._is_good():
            state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {state}>"


def _restore(
    restore: Callable[..., Barrier],
    place: tuple[int, int, int],
    action: Action | None,
    timeout: float | None,
) -> Barrier:
    barrier = restore(*place)
    barrier._action, barrier._timeout = action, timeout
    return barrier
