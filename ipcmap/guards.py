"""What is acquired and released: the calls that a lock and a semaphore have in common.

How: ``_core/reference_monitor.py``.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import ClassVar, Self

from ipcmap._core.layout import IDENTITY
from ipcmap._core.reference_monitor import Damaged, Monitor
from ipcmap._core.reference_sections import Reentered, Stalled
from ipcmap._deadline import Deadline
from ipcmap.errors import BusyError, CorruptError
from ipcmap.listener import Listener
from ipcmap.structure import Structure

__all__ = ["Guard"]

_FOREVER = Deadline(None)


class Guard(Structure):
    """What is acquired and released, around a monitor."""

    _core_type: ClassVar[type[Monitor]]

    __slots__ = ("_core",)

    _core: Monitor

    @property
    def _semlock(self) -> Self:
        """Return what the standard library's queues and conditions ask for ``_is_zero`` and such."""
        return self

    def _is_zero(self) -> bool:
        """Return whether there is nothing to take."""
        return self._get_value() == 0

    def _get_value(self) -> int:
        """Return how many can be taken."""
        raise NotImplementedError

    def _attach(self) -> None:
        family = self._arena._open().family
        try:
            self._core = self._core_type(self._memory, self._address, family)
        except Damaged as error:
            raise self._damaged(error) from None
        self._core._place = self._place_of_listened()
        self._core.name = f"{type(self).__name__} at offset {self._cell.offset}"

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

        As in multiprocessing, any process may do it for whoever took it; but an RLock
        only the thread that has it.

        Raises:
            BusyError: Called by a signal handler that interrupted a call of the same object.
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
            NotOwned: It is an RLock, and this thread does not have it.
            ValueError: It is not taken, or the count is at its maximum.
        """
        if self._words[self._tag_at] & IDENTITY != self._tag:
            self._check()
        try:
            if not self._core.release():
                raise self._refusal()
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

    def _listen(self) -> Listener:
        """Return a descriptor that is readable when there may be something to take."""
        self._check()
        try:
            return Listener(self, self._arena._id, self._core.listeners())
        except Reentered:
            raise self._busy() from None

    def _call_listeners(self) -> None:
        """Call those who listen, for a release in C."""
        self._core.call_listeners()

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

    def _refusal(self) -> Exception:
        """Return what a release that is refused raises."""
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
