"""Rings and queues whose get and put are awaited."""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Self, TypeVar

from ipcmap import objects, queues
from ipcmap import ring as rings
from ipcmap.aio.line import Line
from ipcmap.aio.watch import Where
from ipcmap.errors import ClosedError
from ipcmap.listener import Listener
from ipcmap.objects import ShutDown

__all__ = ["Queue", "Ring"]

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")


class Face(Generic[In, Out]):
    """What the faces of rings and queues have in common."""

    def __init__(self, ring: rings.Ring, get: Callable[[], Out], put: Callable[[In], None]) -> None:
        self._ring, self._get_now, self._put_now = ring, get, put
        place = ring._arena._id, ring._cell.offset, ring._cell.generation
        self._getting = Where(Line, (*place, "records"), ring.listen)
        self._putting = Where(Line, (*place, "room"), ring._listen_for_room)

    async def get(self) -> Out:
        """Take the oldest, when there is one.

        Raises:
            ClosedError: The ring is closed, and empty.
            ShutDown: The queue was shut down, and is empty.
            Exception: What else a ``get`` of the object raises.
        """
        line = self._getting.here()
        tried = line.is_free()
        if tried:
            try:
                return self._get_now()
            except queue.Empty:
                pass
        # The queue.Empty of a get arms all who listen for records in this process.
        return await line.until(lambda _: self._get_now(), queue.Empty, tried)

    async def put(self, item: In) -> None:
        """Append one, when there is room for it.

        Raises:
            ClosedError: The ring is closed.
            ShutDown: The queue was shut down.
            Exception: What else a ``put`` of the object raises.
        """
        line = self._putting.here()
        if line.is_free():
            try:
                self._put_now(item)
            except queue.Full:
                pass
            else:
                return

        def attempt(listener: Listener) -> None:
            seen = self._ring._core.consumed_at_a_glance()
            try:
                self._put_now(item)
            except queue.Full:
                # Room for one may be none for another: what a put of somebody else's has
                # found says nothing here.
                listener._arm(seen)
                raise

        await line.until(attempt, queue.Full)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Out:
        try:
            return await self.get()
        except (ClosedError, ShutDown):
            raise StopAsyncIteration from None


class Ring(Face[Any, bytes]):
    """A ring whose ``get`` and ``put`` are awaited.

    It is used by the tasks of any loop of its process. Of the tasks of one loop, the one
    that waits longest is served first; of loops and processes, whoever asks first. A task that
    is cancelled, or runs out of time (``asyncio.timeout``), has taken nothing and put nothing.
    ``async for`` ends where the ring does.

    Args:
        ring: What is awaited. Its own calls go on beside this, here as in other processes.

    Example:
        >>> import asyncio
        >>> from ipcmap import Ring, aio
        >>> async def main():
        ...     ring = aio.Ring(Ring())
        ...     getting = asyncio.create_task(ring.get())
        ...     await ring.put(b"hello")
        ...     return await getting
        >>> asyncio.run(main())
        b'hello'
    """

    def __init__(self, ring: rings.Ring) -> None:
        self.ring = ring
        super().__init__(ring, partial(ring.get, 0), partial(ring.put, timeout=0))

    async def get_many(self, max_records: int | None = None) -> list[bytes]:
        """Take what is there in one step, when there is something; as :meth:`ipcmap.Ring.get_many`."""
        line, many = self._getting.here(), partial(self.ring.get_many, max_records, 0)
        tried = line.is_free()
        if tried:
            try:
                return many()
            except queue.Empty:
                pass
        return await line.until(lambda _: many(), queue.Empty, tried)

    def __repr__(self) -> str:
        return f"<ipcmap.aio.Ring: {self.ring!r}>"


class Queue(Face[T, T]):
    """A queue whose ``get`` and ``put`` are awaited; see :class:`Ring` for order and cancels.

    Args:
        queue: A :class:`ipcmap.Queue`, :class:`ipcmap.JoinableQueue` or
            :class:`ipcmap.SimpleQueue`. What does not wait is called on it: ``qsize``,
            ``get_nowait``, ``task_done``, ``shutdown``.

    Example:
        >>> import asyncio
        >>> from ipcmap import Queue, aio
        >>> tasks = Queue()
        >>> async def main():
        ...     awaited = aio.Queue(tasks)
        ...     for number in range(3):
        ...         await awaited.put(number)
        ...     tasks.shutdown()
        ...     return [number async for number in awaited]
        >>> asyncio.run(main())
        [0, 1, 2]
    """

    def __init__(self, queue: queues.Queue[T] | objects.SimpleQueue[T]) -> None:
        self.queue = queue
        if isinstance(queue, queues.Queue):
            super().__init__(queue._ring, queue.get_nowait, queue.put_nowait)
        else:
            super().__init__(queue._ring, queue._get_now, queue._put_now)

    def __repr__(self) -> str:
        return f"<ipcmap.aio.Queue: {self.queue!r}>"
