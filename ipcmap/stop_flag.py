"""The flag by which a supervisor asks its workers to end, and who of them looks at it.

Shared fields
  event        Event  supervisor   set at a stop, cleared when all have ended and begin anew
  asked[place] u64    worker       0 -> 1 the first time it asks; the supervisor stores 0 before
                                   it forks, when the place has no worker

A worker that has asked will ask again, so it is given time; one that never did is not.
If a worker dies before it stores, it has not asked.
"""

from __future__ import annotations

import os
import threading

from ipcmap._deadline import Deadline
from ipcmap.errors import StaleHandle
from ipcmap.event import Event
from ipcmap.mapping import Mapping

__all__ = ["StopFlag", "stopping"]


_MOST_WAITERS = 1024  # threads and children of workers may wait as well: 64 bytes each


class StopFlag:
    """What a supervisor sets and its workers ask for.

    Args:
        places: How many workers there are at a time.
    """

    _mine: StopFlag | None = None  # of the supervisor that this process is a worker of

    def __init__(self, places: int) -> None:
        self._event = Event(max_waiters=max(_MOST_WAITERS, 2 * places))
        self._mapping = Mapping.anonymous(8 * max(1, places))
        self._shm_asked = self._mapping.view().cast("Q")
        self._place = self._worker = 0

    def set(self) -> None:
        """Ask all workers to end."""
        self._event.set()

    def clear(self) -> None:
        """Ask nobody any more."""
        self._event.clear()

    def expect(self, place: int) -> None:
        """Expect another worker in a place."""
        self._shm_asked[place] = 0

    def has_asked(self, place: int) -> bool:
        """Return whether the worker of a place has ever asked."""
        return self._shm_asked[place] != 0

    def close(self) -> None:
        """Let go of what is shared, when the workers have ended."""
        self._event.destroy()
        self._shm_asked.release()
        self._mapping.close()

    def take(self, place: int) -> None:
        """Be what :func:`stopping` asks in this process, the worker of a place."""
        self._place, self._worker = place, os.getpid()
        StopFlag._mine = self

    def ask(self, timeout: float | None) -> bool:
        """Return whether the worker is to end, now or within a timeout."""
        if self._worker == os.getpid():  # not for a child of its own
            self._shm_asked[self._place] = 1
            self._worker = 0
        try:
            return self._event.wait(timeout)
        except StaleHandle:  # the supervisor has ended
            return True


def stopping(timeout: float | None = 0) -> bool:
    """Return whether this process's supervisor asks it to end.

    To be called by a worker of :class:`Supervisor` in its loop, in place of a sleep
    where there is one. One that has called it is given time at a stop; one that never
    did is ended at once. In any other process the answer is no.

    Args:
        timeout: Seconds to wait for the supervisor to ask; ``None`` = for ever,
            0 = do not wait.

    Raises:
        FamilyFull: Too many workers wait at a time.
        ValueError: ``timeout`` is not a number.

    Example:
        >>> from ipcmap import Event, Supervisor
        >>> begun, supervisor = Event(), Supervisor()
        >>> def tick():
        ...     while not stopping(timeout=0.01):
        ...         begun.set()
        >>> with supervisor.add(tick):
        ...     begun.wait()
        True
        >>> supervisor.statistics().workers[0].last_exit.exitcode
        0
        >>> begun.destroy()
        >>> stopping()
        False
    """
    flag = StopFlag._mine
    if flag is not None:
        return flag.ask(timeout)
    Deadline(timeout)  # refuses what is none
    return threading.Event().wait(timeout)
