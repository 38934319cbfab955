"""Semaphores of the reference engine: POSIX, process-shared, without a name.

posix_ipc offers only named semaphores. Each is created under a random name that
is unlinked at once, so that nothing is left in /dev/shm whatever becomes of the
process; children inherit the handle by fork, and other processes cannot have it.

posix_ipc measures its timeouts on the wall clock. A wait is therefore made of
slices against the monotonic clock, and a step of the wall clock costs one slice
at most.

What a death leaves: the count, as it was. A semaphore has no owner; whoever is
killed between acquire and release takes its token with it.

Signals: posix_ipc replaces an exception that a Python signal handler raises
during a wait. KeyboardInterrupt comes out as it is; any other is lost, and the
wait goes on.
"""

from __future__ import annotations

import errno
from types import TracebackType
from typing import NoReturn

import posix_ipc

from ipcmap._deadline import Deadline
from ipcmap.errors import ClosedError

__all__ = ["Semaphore"]

_SLICE = 1.0  # seconds; bounds what a step of the wall clock can add to a wait


class Semaphore:
    """A counting semaphore that this process shares with every later child.

    Args:
        value: The first count, 0 to 2**31 - 1.

    Raises:
        ValueError: ``value`` is out of range.
        OSError: The system has no room for it in ``/dev/shm``.

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
        >>> ready.close()
    """

    __slots__ = ("_semaphore",)

    def __init__(self, value: int = 1) -> None:
        if not 0 <= value <= posix_ipc.SEMAPHORE_VALUE_MAX:
            raise ValueError(f"value must be 0 to {posix_ipc.SEMAPHORE_VALUE_MAX}: value={value}")
        self._semaphore: posix_ipc.Semaphore | None = posix_ipc.Semaphore(
            None, posix_ipc.O_CREX, initial_value=value
        )
        self._semaphore.unlink()

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take one from the count, waiting until there is one.

        Args:
            block: ``False`` = do not wait, whatever ``timeout`` says.
            timeout: Seconds to wait; ``None`` = for ever, 0 or less = not at all.

        Returns:
            Whether one was taken.

        Raises:
            ClosedError: It is closed in this process.
            KeyboardInterrupt: Ctrl-C, at once; nothing was taken.
        """
        deadline = Deadline(timeout if block else 0)
        while True:
            wait = deadline.slice(_SLICE)
            try:
                self._open().acquire(wait)
            except posix_ipc.BusyError:
                if not deadline.remaining():
                    return False
            except posix_ipc.SignalError:
                continue
            else:
                return True

    def release(self) -> None:
        """Add one to the count and wake a waiter, if there is one.

        Raises:
            ClosedError: It is closed in this process.
            ValueError: The count is at its maximum.
        """
        try:
            self._open().release()
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
            raise ValueError(
                f"semaphore released too many times: maximum={posix_ipc.SEMAPHORE_VALUE_MAX}"
            ) from None

    @property
    def value(self) -> int:
        """The count now; stale as soon as it is read."""
        count: int = self._open().value
        return count

    def close(self) -> None:
        """Let go of it in this process; the others keep theirs. Twice is once."""
        if self._semaphore is not None:
            semaphore, self._semaphore = self._semaphore, None
            semaphore.close()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        # posix_ipc keeps its page mapped when its object goes.
        if getattr(self, "_semaphore", None) is not None:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a semaphore travels by fork, not by pickle: create it before the children")

    def _open(self) -> posix_ipc.Semaphore:
        semaphore = self._semaphore
        if semaphore is None:
            raise ClosedError("semaphore is closed in this process; create another")
        return semaphore
