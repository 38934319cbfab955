"""Counts that processes share: Semaphore and BoundedSemaphore.

How: ``_core/reference_semaphores.py``.
"""

from __future__ import annotations

from ipcmap._core import monitor_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_monitor import Damaged
from ipcmap._core.reference_semaphores import SemaphoreCore, make
from ipcmap.arena import Arena, default_arena
from ipcmap.guards import Guard

__all__ = ["BoundedSemaphore", "Semaphore"]


class Semaphore(Guard):
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
        self._begin(value, at.MAX_VALUE, arena)

    def _begin(self, value: int, maximum: int, arena: Arena | None) -> None:
        if not 0 <= value <= at.MAX_VALUE:
            raise ValueError(f"value must be 0 to {at.MAX_VALUE}: value={value}")
        arena = arena or default_arena()
        entries = min(value, arena._open().family.max_processes)
        nbytes = at.semaphore_nbytes(entries)
        self._make(arena, nbytes, nbytes)
        make(self._memory, self._address, value, entries, maximum)
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

    _get_value = get_value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self._value_text()})>"

    def _value_text(self) -> str:
        return str(self._core._words[at.VALUE]) if self._is_good() else "destroyed"

    def _refusal(self) -> Exception:
        return ValueError(
            f"semaphore or lock released too many times: {self!r}, maximum={self._core.maximum}; "
            "acquire it before each release"
        )


class BoundedSemaphore(Semaphore):
    """A :class:`Semaphore` whose count never exceeds the first.

    Args:
        value: The first count and the largest, 0 to 2**31 - 1.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.
        ValueError: ``value`` is out of range.

    Example:
        >>> import os, signal
        >>> places = BoundedSemaphore(2)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     _ = places.acquire()
        ...     os.kill(os.getpid(), signal.SIGKILL)
        >>> _ = os.waitpid(pid, 0)
        >>> places.value  # what was taken by the dead came back
        2
        >>> places.destroy()
    """

    __slots__ = ()

    def __init__(self, value: int = 1, *, arena: Arena | None = None) -> None:
        self._begin(value, value, arena)

    def __repr__(self) -> str:
        maximum = self._core.maximum
        return f"<{type(self).__name__}(value={self._value_text()}, maxvalue={maximum})>"
