"""Queues of objects, on a ring: with a bound, an end, and what a dead consumer had in hand.

The interface is that of multiprocessing.Queue, with ``shutdown`` of queue.Queue. There is no
feeder thread and no pipe: ``put`` pickles in the caller, and when it returns the object's bytes
are in the ring, so a child can end with objects unread. What stands in it is exact: ``qsize``,
``empty`` and ``full`` ask the ring.

With ``ack=True`` what a consumer has taken is a lease of the ring's until ``task_done``:
when the consumer dies before that, another gets it (``_core/reference_ring_blocks.py``).
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypeVar

from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.errors import ClosedError, IpcmapError
from ipcmap.objects import Hands, Objects, ShutDown, joined, restored
from ipcmap.pages import byte_count

__all__ = ["Queue"]

T = TypeVar("T")


class Queue(Objects[T]):
    """First in, first out, between any threads of any processes of a family.

    Args:
        maxsize: The most objects in it; 0 or less = as many as the capacity takes, of
            small ones, and the arena, of large ones.
        capacity: Bytes for objects of up to 64 KiB; larger ones take blocks of the arena.
            ``None`` = a 64th of the arena's limit, 256 MiB at most. What was never used of
            it takes no memory.
        codec: How objects become bytes: ``None`` = pickle; ``"raw"``, ``"json"``, or an
            object with ``dumps`` and ``loads`` (see :mod:`ipcmap.codec`).
        ack: Whether what was taken is kept until :meth:`task_done`, and given to another
            consumer when this one dies before that.
        arena: Where its bytes are; ``None`` = the default arena.
        ctx: Taken for the sake of code that passes a context, and not used.

    Example:
        >>> tasks: Queue[str] = Queue()
        >>> tasks.put("one")
        >>> tasks.get()
        'one'
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        capacity: SupportsIndex | None = None,
        codec: Any = None,
        ack: bool = False,
        arena: Arena | None = None,
        ctx: Any = None,
    ) -> None:
        self.maxsize, self._ack = maxsize, ack
        super().__init__(capacity, codec, arena)

    def _attach(self) -> None:
        super()._attach()
        self._used = False
        self._mine = Hands()

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "maxsize": self.maxsize,
            "_ack": self._ack,
            "_codec": self._codec,
            "_ring": self._ring,
        }

    # Producers

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Append an object.

        When it returns, the object is delivered, whoever is killed. While it has not, and
        its process is killed, that is in doubt. What the codec raises comes out here, and
        nothing was put.

        Args:
            obj: What the codec takes.
            block: ``False`` = do not wait for room, whatever ``timeout`` says.
            timeout: Seconds to wait for room; ``None`` = for ever.

        Raises:
            queue.Full: There was no room in time.
            ShutDown: The queue was shut down.
            ValueError: :meth:`close` was called here, or ``timeout`` is negative.
        """
        if timeout is not None or not block:
            timeout = seconds(block, timeout)
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        try:
            record = self._put(obj, timeout) if self.maxsize <= 0 else self._dumps(obj)
            if record is not None:
                self._put_record(record, timeout)
        except ClosedError:
            raise self._shut() from None
        self._used = True

    def put_nowait(self, obj: T) -> None:
        """Append an object if there is room now; as ``put(obj, block=False)``."""
        self.put(obj, False)

    def put_many(
        self, objects: Iterable[T], block: bool = True, timeout: float | None = None
    ) -> None:
        """Append objects in their order, many at a time; another's may come between them.

        If the process is killed meanwhile, the first of them are delivered: none, some or all.

        Raises:
            queue.Full: There was no room for all in time; its attribute ``put``, as that
                of every error raised here, says how many went in.
        """
        timeout = seconds(block, timeout)
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        deadline, done, batch = Deadline(timeout), 0, list(objects)
        try:
            records = [self._dumps(obj) for obj in batch]
            if self.maxsize <= 0 and all(isinstance(record, bytes) for record in records):
                self._ring.put_many(records, timeout)
                done = len(records)
            for record in records[done:]:
                self._put_record(record, None if timeout is None else deadline.remaining())
                done += 1
        except ClosedError as error:
            shut = self._shut()
            shut.put = getattr(error, "put", done)  # type: ignore[attr-defined]
            raise shut from None
        except Exception as error:
            error.put = getattr(error, "put", done)  # type: ignore[attr-defined]
            raise
        self._used = True

    def _put_record(
        self, record: bytes | Sequence[bytes | memoryview], timeout: float | None
    ) -> None:
        if self.maxsize <= 0:
            super()._put_record(record, timeout)
            return
        try:
            self._ring._put_within(self.maxsize, joined(record), Deadline(timeout))
        except queue.Full as error:
            if error.__cause__:  # it was not for want of room
                raise
            raise queue.Full(
                f"queue was full all the time: maxsize={self.maxsize}, "
                f"{self._ring._core.backlog_records()} in it; "
                "wait longer, or see who is stopped or slow"
            ) from None

    # Consumers

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest object.

        A get during which its own process is killed is in doubt; see ``ack``.

        Args:
            block: ``False`` = do not wait for one, whatever ``timeout`` says.
            timeout: Seconds to wait for one; ``None`` = for ever.

        Raises:
            queue.Empty: There was none in time.
            ShutDown: The queue was shut down, and is empty.
            ValueError: :meth:`close` was called here, or ``timeout`` is negative.
        """
        if timeout is not None or not block:
            timeout = seconds(block, timeout)
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        try:
            if not self._ack:
                return self._get(timeout)
            record = self._lease(timeout)
        except ClosedError:
            if not self._ring.closed:  # raised by what was to be loaded
                raise
            raise self._shut() from None
        result: T = self._loads(record)
        return result

    def get_nowait(self) -> T:
        """Take the oldest object if there is one now; as ``get(block=False)``."""
        return self.get(False)

    def get_many(
        self,
        max_objects: SupportsIndex | None = None,
        block: bool = True,
        timeout: float | None = None,
    ) -> list[T]:
        """Take what is there, waiting for the first only.

        Args:
            max_objects: The most to take, ``None`` = all.
            block: ``False`` = do not wait, whatever ``timeout`` says.
            timeout: Seconds to wait for the first; ``None`` = for ever.

        Raises:
            ValueError: ``max_objects`` is less than 1; and the rest as :meth:`get`. What the
                codec raises of one has an attribute ``got``: the others, which are taken too.
        """
        timeout = seconds(block, timeout)
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        most = sys.maxsize if max_objects is None else byte_count("max_objects", max_objects)
        if most < 1:
            raise ValueError(f"number of objects must be 1 or more: max_objects={most}")
        try:
            if self._ack:
                return self._load_all(self._lease_many(most, timeout))
            return self._load_all(self._ring.get_many(most, timeout))
        except ClosedError:
            raise self._shut() from None

    def _load_all(self, records: list[bytes]) -> list[T]:
        objects: list[T] = []
        failed: Exception | None = None
        for record in records:
            try:
                objects.append(self._loads(record))
            except Exception as error:
                failed = failed or error
        if failed:
            failed.got = objects  # type: ignore[attr-defined]
            raise failed
        return objects

    def _taker(self) -> Callable[[float | None], Any]:
        if not self._ack:
            return super()._taker()
        ring, loads, hands = self._ring, self._loads, self._mine
        return lambda timeout: loads(ring._take_on_loan(Deadline(timeout), hands))

    def _putter(self) -> Callable[[Any], object]:
        if self.maxsize <= 0:
            return super()._putter()
        ring, dumps, most = self._ring, self._dumps, self.maxsize
        return lambda obj: ring._put_within(most, joined(dumps(obj)), Deadline(None))

    def _lease(self, timeout: float | None) -> bytes:
        return self._ring._take_on_loan(Deadline(timeout), self._mine)

    def _lease_many(self, most: int, timeout: float | None) -> list[bytes]:
        records = [self._lease(timeout)]
        try:
            while len(records) < most:
                records.append(self._lease(0))
        except (queue.Empty, IpcmapError):  # for the next call: these are taken
            pass
        return records

    @property
    def redelivered(self) -> bool:
        """Whether what this thread took last had been taken before, by a consumer that died.

        Known of a queue with ``ack=True`` only.
        """
        return self._mine.again

    def join(self) -> None:
        """Refuse: what was taken is counted by a :class:`ipcmap.JoinableQueue`."""
        raise ValueError(
            f"join() is for queues that count what was done: {self!r}; make a JoinableQueue"
        )

    def task_done(self) -> None:
        """Say that what was taken is done with: first what this thread took first.

        Without ``ack=True`` nothing is kept, and nothing happens.

        Raises:
            ValueError: Called more often than :meth:`get`.
        """
        if not self._ack:
            return
        cell = self._mine.next()
        if cell is None:
            raise ValueError("task_done() called too many times")
        self._ring._end_lease(cell)

    def destroy(self) -> None:
        """Free it for the whole family; every handle of it is stale then.

        So is what was taken here and not done with. A queue that was never shared, by a fork
        or by pickle, is freed with its handle.
        """
        super().destroy()
        self._let_go()

    def __del__(self) -> None:
        ring = getattr(self, "_ring", None)
        if ring is not None and ring._maker == os.getpid():  # nobody else can have it
            self._let_go()

    def _let_go(self) -> None:
        while (cell := self._mine.next()) is not None:
            self._ring._end_lease(cell)

    # Facts and the end

    def qsize(self) -> int:
        """Return how many objects are to come; it may be stale at once."""
        return len(self._ring)

    def empty(self) -> bool:
        """Return whether there is none; it may be stale at once.

        Raises:
            OSError: The queue was used here, and closed.
        """
        if self._closed and self._used:
            raise OSError(f"Queue {self!r} is closed")
        return not len(self._ring)

    def full(self) -> bool:
        """Return whether ``maxsize`` objects are in it; it may be stale at once."""
        return 0 < self.maxsize <= len(self._ring)

    @property
    def is_shutdown(self) -> bool:
        """Whether :meth:`shutdown` was called, by anyone."""
        return self._ring.closed

    def shutdown(self, immediate: bool = False) -> None:
        """End it for the whole family: no more is put, what is there is taken.

        With ``ack=True``, others hear of the end while a consumer has something in hand; if it
        dies then, whoever asks once more gets that. Where there is a :meth:`join`, join first.

        Args:
            immediate: Whether to take away what is there.
        """
        self._ring.close()
        if immediate:
            # Until the end is told: that there is none now may mean that a section is not free.
            with contextlib.suppress(ClosedError):
                while True:
                    self._ring.get_many()

    def join_thread(self) -> None:
        """Do nothing: no thread is between :meth:`put` and the queue.

        Raises:
            ValueError: Called before :meth:`close`.
        """
        if not self._closed:
            raise ValueError(f"join_thread() comes after close(): {self!r} is open")

    def cancel_join_thread(self) -> None:
        """Do nothing: no thread is between :meth:`put` and the queue."""

    def _shut(self) -> Exception:
        error: Exception = ShutDown(f"{self!r} was shut down; make another")
        return error

    def __repr__(self) -> str:
        return f"<ipcmap.{type(self).__name__} maxsize={self.maxsize}>"


def seconds(block: bool, timeout: float | None) -> float | None:
    """Return how long to wait, of what put and get are given."""
    if not block:
        return 0
    if timeout is not None and timeout < 0:
        raise ValueError(f"'timeout' must be a non-negative number: timeout={timeout!r}")
    return timeout
