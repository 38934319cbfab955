"""A flag that processes wait for.

How: ``_core/reference_events.py``.
"""

from __future__ import annotations

from ipcmap._core.layout import Kind
from ipcmap._core.reference_events import EventCore
from ipcmap._core.reference_monitor import Damaged
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.listener import Listener
from ipcmap.rooms import InRoom

__all__ = ["Event"]


class Event(InRoom):
    """A flag, and who waits until it is set, as ``multiprocessing.Event``.

    Who is killed while it waits, or sets, or clears, holds nobody up. A signal handler may
    set it whatever it interrupts.

    Args:
        max_waiters: How many threads can wait for it at a time, 64 bytes each; ``None`` = one for
            each process that the arena can have, 64 to 1024.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        BusyError: Called by a signal handler that interrupted a change of the arena.
        ClosedError: The arena is closed.
        ValueError: ``max_waiters`` is out of range.

    Example:
        >>> import os
        >>> ready = Event()
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     ready.set()
        ...     os._exit(0)
        >>> ready.wait(timeout=10)
        True
        >>> _ = os.waitpid(pid, 0)
        >>> ready.destroy()
    """

    _kind = Kind.EVENT
    _core_type = EventCore
    _core: EventCore

    __slots__ = ()

    def __init__(self, *, max_waiters: int | None = None, arena: Arena | None = None) -> None:
        self._make_room(arena, max_waiters)
        self._attach()

    def _attach(self) -> None:
        super()._attach()
        self._core._place = self._place_of_listened()

    def _listen(self) -> Listener:
        """Return a descriptor that is readable when it may have been set since it was armed."""
        self._check()
        with self._errors():
            return Listener(self, self._arena._id, self._core.listeners())

    def is_set(self) -> bool:
        """Return whether it is set; stale as soon as it is read.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        self._check()
        try:  # asked often: a context manager would cost more than the answer
            return self._core.is_set()
        except Damaged as error:
            raise self._damaged(error) from None

    def set(self) -> None:
        """Set it: all who wait go on, though it is cleared at once.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        self._check()
        with self._errors():
            self._core.set()

    def clear(self) -> None:
        """Clear it.

        Raises:
            StaleHandle: It was destroyed.
        """
        self._check()
        self._core.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set.

        Args:
            timeout: Seconds; ``None`` = for ever, 0 or less = not at all.

        Returns:
            Whether it was set, now or meanwhile.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            FamilyFull: ``max_waiters`` threads wait, or all slots of the arena are taken.
            StaleHandle: It was destroyed.
            ValueError: ``timeout`` is not a number.
        """
        self._check()
        deadline = Deadline(timeout)
        with self._errors():
            return bool(self._core.attend(deadline, [0], self._core.come))

    def __repr__(self) -> str:
        state = "destroyed"
        if self._is_good():
            state = "set" if self.is_set() else "unset"
        return f"<{type(self).__qualname__} at {id(self):#x} {state}>"
