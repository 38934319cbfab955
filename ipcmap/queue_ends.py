"""The two ends of a queue as a connection has them: what the standard library reaches for.

multiprocessing.Pool and concurrent.futures use ``queue._reader`` and ``queue._writer``,
which in multiprocessing are the ends of a pipe. Here they are views of the ring.

The descriptor of the reading end is to be readable only where there is a record, since
who finds it readable calls ``recv`` and waits for nothing else. So it is the pipe of a
listener alone, without the timer by which others look once in a second; and it is
looked after each time its number is asked for, which every ``connection.wait`` does, and
after each ``recv``. What the timer is for is then noticed at the next of these: the byte of
a producer that was killed after its commit (its sentinel is readable then), a
lease that comes back (docs/design/0012).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import Any, Self

from ipcmap._deadline import Deadline
from ipcmap.errors import ClosedError
from ipcmap.listener import Listener
from ipcmap.ring import Ring

__all__ = ["NoLock", "ReadingEnd", "WritingEnd"]

_SLICE = 1.0  # seconds; as long as any sleeper sleeps without a look
_here = object()  # this process: another may have its number later


def _forked() -> None:
    global _here  # noqa: PLW0603
    _here = object()


os.register_at_fork(after_in_child=_forked)


class _End:
    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.closed = False

    def close(self) -> None:
        """Give back what this end has in this process; the queue stays as it is."""
        self.closed = True

    def _check(self) -> None:
        if self.closed:
            raise OSError(
                f"end of a queue is closed: pid={os.getpid()}; take it from the queue anew"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ReadingEnd(_End):
    """What ``queue._reader`` is; ``get`` takes an object, given a timeout."""

    readable, writable = True, False

    def __init__(self, ring: Ring, get: Callable[[float | None], Any]) -> None:
        super().__init__(ring)
        self._get = get
        # By process: after a fork a child makes its own. A setdefault is one step, so that
        # threads need no lock, which a fork would leave locked.
        self._listeners: dict[object, Listener] = {}

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to receive, or the end."""
        self._check()
        listener = self._listener()
        if listener is None:
            ring = self._ring
            made = Listener(ring, ring._arena._id, ring._core.for_records(), timed=False)
            listener = self._listeners.setdefault((_here, os.getpid()), made)
            if listener is not made:
                made.close()
        self._look(listener)
        return listener.fileno()

    def recv(self) -> Any:
        """Take the oldest object, waiting for one.

        Raises:
            EOFError: The queue was shut down, and is empty.
        """
        return self._taken(self._get)

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Take the oldest record as it is, waiting for one."""
        record: bytes = self._taken(self._ring.get)
        if maxlength is not None and len(record) > maxlength:
            raise OSError(f"record is too long: nbytes={len(record)}, maxlength={maxlength}")
        return record

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Return whether there is something to receive, or the end, waiting so many seconds."""
        self._check()
        deadline, waiting = Deadline(timeout), select.poll()
        while not self._ready():
            if not deadline.remaining():
                return False
            waiting.register(self.fileno(), select.POLLIN)
            waiting.poll(deadline.slice(_SLICE) * 1000)
            self._ring._arena._sweep_if_due()
        return True

    def close(self) -> None:
        """Give back what this end has in this process; the queue stays as it is."""
        super().close()
        listener = self._listeners.pop((_here, os.getpid()), None)
        if listener is not None:
            listener.close()

    def __del__(self) -> None:
        if getattr(self, "_listeners", None):
            self.close()

    def _listener(self) -> Listener | None:
        return self._listeners.get((_here, os.getpid()))

    def _ready(self) -> bool:
        return len(self._ring) > 0 or self._ring.closed

    def _taken(self, get: Callable[[float | None], Any]) -> Any:
        self._check()
        try:
            return get(None)
        except ClosedError:
            if not self._ring.closed:  # raised by what was to be loaded
                raise
            raise EOFError from None
        finally:
            listener = self._listener()
            if listener is not None:
                self._look(listener)

    def _look(self, listener: Listener) -> None:
        with contextlib.suppress(ClosedError):  # by another thread
            deadline = Deadline(None)
            listener._arm(self._ring._core.empty_until(deadline), deadline)


class WritingEnd(_End):
    """What ``queue._writer`` is; ``put`` appends an object."""

    readable, writable = False, True

    def __init__(self, ring: Ring, put: Callable[[Any], object]) -> None:
        super().__init__(ring)
        self._put = put

    def fileno(self) -> int:
        """Refuse: nothing tells when there is room."""
        raise OSError("writing end of a queue has no descriptor; put waits for room by itself")

    def send(self, obj: Any) -> None:
        """Append an object, waiting for room."""
        self._told(self._put, obj)

    def send_bytes(self, data: Any, offset: int = 0, size: int | None = None) -> None:
        """Append a record as it is, waiting for room."""
        view = memoryview(data).cast("B")
        end = len(view) if size is None else offset + size
        if not 0 <= offset <= end <= len(view):
            raise ValueError(
                f"record must lie within the data: offset={offset}, size={size}, nbytes={len(view)}"
            )
        self._told(self._ring.put, view[offset:end])

    def _told(self, put: Callable[[Any], object], data: Any) -> None:
        self._check()
        try:
            put(data)
        except ClosedError as error:
            if not self._ring.closed:
                raise
            raise BrokenPipeError(str(error)) from None


class NoLock:
    """What ``queue._rlock`` is: nothing, since a record is taken whole by whoever takes it."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Return that it is taken."""
        return True

    def release(self) -> None:
        """Do nothing."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *error: object) -> None:
        pass
