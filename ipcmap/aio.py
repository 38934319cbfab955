"""What waits in asyncio instead of blocking its loop: faces of rings, queues and events.

A face has the calls that wait, as coroutines, under the names that asyncio gives them;
all else is the object's own. No thread, and no polling: a loop waits for the descriptor
of a :class:`ipcmap.Listener` as it does for a socket.

Who waits in one loop for one thing stands in a line. The first of it tries; what it takes
it returns in the same step, without an ``await`` in between. So a cancel, and a timeout
is one, always finds a task with nothing in hand, and there is nothing to give back. Whoever
leaves the line, served or not, lets the next one try.

The rule is that of all waiting here: announce, look again, sleep. An attempt that finds
nothing arms the listener, in the section that guards what is waited for; from there on
any change makes its descriptor readable. Until it is armed the descriptor is readable, and
the first in the line tries again. Where others were killed between a change and its
telling, a timer does that within a second (``_core/reference_listeners.py``).

A line has one listener, opened when its first task has to wait. It belongs to the faces
that use it and to the tasks in it, and closes with the last of them, loop or no loop. A
child has none of its parent's.
"""

from __future__ import annotations

import asyncio
import queue
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Self, TypeVar

from ipcmap import event as events
from ipcmap import objects, queues
from ipcmap import ring as rings
from ipcmap.errors import ClosedError
from ipcmap.listener import Listener
from ipcmap.objects import ShutDown

__all__ = ["Event", "Queue", "Ring"]

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")
Turn = asyncio.Future[None]
Loop = asyncio.AbstractEventLoop

_RUN = 100  # takes, or puts, without a wait; then the loop's other tasks have their turn


class _Watch:
    """The listener of those who wait in one loop, which looks at it as long as there are any."""

    def __init__(self, loop: Loop, listen: Callable[[], Listener]) -> None:
        self._loop, self._listen = loop, listen
        self._listener: Listener | None = None
        self._watched = -1  # the descriptor that the loop looks at

    def listener(self) -> Listener:
        """Return the listener, opened if there is none."""
        if self._listener is None or self._listener.closed:
            self._listener = self._listen()
            weakref.finalize(self, self._listener.close)
        return self._listener

    def watch(self, ready: Callable[[], None]) -> None:
        """Call ``ready()`` whenever the descriptor is readable."""
        number = self.listener().fileno()
        if self._watched != number:
            self._loop.add_reader(number, ready)
            self._watched = number

    def unwatch(self) -> None:
        """Look at it no more."""
        number, self._watched = self._watched, -1
        if number >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(number)

    def wake(self, turn: Turn) -> None:
        """Let a task go on, unless its loop is at an end."""
        if not turn.done() and not self._loop.is_closed():
            turn.set_result(None)

    def fail(self, turn: Turn, error: Exception) -> None:
        """Raise an error in a task that waits, likewise."""
        if not turn.done() and not self._loop.is_closed():
            turn.set_exception(error)


class _Line:
    """Who waits in one loop to take one thing, or to put it: first come, first served."""

    def __init__(self, loop: Loop, listen: Callable[[], Listener]) -> None:
        self.loop = loop
        self._watch = _Watch(loop, listen)
        self._waiting: OrderedDict[object, Turn] = OrderedDict()
        self._run = 0

    def is_free(self) -> bool:
        """Return whether the running task may try at once, and need not stand in line."""
        self._run = run = self._run + 1
        return run <= _RUN and not self._waiting

    async def until(
        self, attempt: Callable[[Listener], T], nothing: type[Exception], tried: bool = False
    ) -> T:
        """Return what ``attempt(listener)`` returns as soon as it does not raise ``nothing``.

        Args:
            attempt: Arms the listener where it raises that.
            nothing: What it raises.
            tried: Whether it has been made just now, with the listener if there was one; a
                listener that is opened arms itself, or is readable.
        """
        me, turn = object(), self.loop.create_future()
        self._waiting[me] = turn
        try:
            if len(self._waiting) == 1:
                if tried:
                    self._run = 0
                    self._watch.watch(self._ready)
                else:
                    if self._run > _RUN:
                        self._run = 0
                        await asyncio.sleep(0)
                    turn.set_result(None)
            while True:
                await turn
                try:
                    return attempt(self._watch.listener())
                except nothing:
                    turn = self._waiting[me] = self.loop.create_future()
                    self._watch.watch(self._ready)
        finally:
            self._leave(me)

    def _ready(self) -> None:
        if self._waiting:
            self._watch.wake(next(iter(self._waiting.values())))

    def _leave(self, me: object) -> None:
        was_first = next(iter(self._waiting)) is me
        del self._waiting[me]
        if not self._waiting:
            self._watch.unwatch()
        elif was_first:
            self._ready()


class _Crowd:
    """Who waits in one loop for one event: all go on at once.

    Each knows the count of calls of when it came. A set that calls nobody, for none is armed,
    is counted among them, so it lets go who was there, though the event is cleared at once.
    """

    def __init__(self, loop: Loop, listen: Callable[[], Listener]) -> None:
        self.loop = loop
        self._watch = _Watch(loop, listen)
        self._waiting: dict[Turn, int] = {}
        self._armed_at = -1  # the count when the listener was armed

    async def until(self, is_set: Callable[[], bool]) -> None:
        """Return when it is set, or was since this was called."""
        if is_set():
            return

        def look() -> None:
            try:
                self._look(is_set)
            except Exception as error:  # theirs, not the loop's, which would look for ever
                for turn in self._waiting:
                    self._watch.fail(turn, error)

        turn: Turn = self.loop.create_future()
        calls = self._waiting[turn] = self._watch.listener()._listeners.calls()
        try:
            self._watch.watch(look)
            if calls != self._armed_at:
                look()
            await turn
        finally:
            del self._waiting[turn]
            if not self._waiting:
                self._armed_at = -1
                self._watch.unwatch()

    def _look(self, is_set: Callable[[], bool]) -> None:
        """Let go who can, and arm the listener for the others."""
        listener = self._watch.listener()
        calls = -1
        # What called after it was counted, and before it was armed, is counted the next time.
        while calls != (calls := listener._listeners.calls()):
            over, left = is_set(), False
            for turn, came_at in self._waiting.items():
                if over or came_at != calls:
                    self._watch.wake(turn)
                elif not turn.done():
                    left = True
            if not left:
                return
            listener._arm(0)
            self._armed_at = calls


Waiters = TypeVar("Waiters", _Line, _Crowd)

# Who waits in each loop, by what for: two faces of one ring have one line.
_all: weakref.WeakKeyDictionary[Loop, weakref.WeakValueDictionary[Any, Any]] = (
    weakref.WeakKeyDictionary()
)


class _Where(Generic[Waiters]):
    """Where the tasks of the running loop wait: what a face has for each of its calls."""

    def __init__(
        self, kind: type[Waiters], key: tuple[Any, ...], listen: Callable[[], Listener]
    ) -> None:
        self._make: Callable[[Loop], Waiters] = lambda loop: kind(loop, listen)
        self._key = key
        self._last: Waiters | None = None

    def here(self) -> Waiters:
        """Return them."""
        loop, last = asyncio.get_running_loop(), self._last
        if last is not None and last.loop is loop:
            return last
        known = _all.setdefault(loop, weakref.WeakValueDictionary())
        found: Waiters | None = known.get(self._key)
        if found is None:
            found = known[self._key] = self._make(loop)
        self._last = found
        return found


class _Face(Generic[In, Out]):
    """What the faces of rings and queues have in common."""

    def __init__(self, ring: rings.Ring, get: Callable[[], Out], put: Callable[[In], None]) -> None:
        self._ring, self._get_now, self._put_now = ring, get, put
        place = ring._arena._id, ring._cell.offset, ring._cell.generation
        self._getting = _Where(_Line, (*place, "records"), ring.listen)
        self._putting = _Where(_Line, (*place, "room"), ring._listen_for_room)

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


class Ring(_Face[Any, bytes]):
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


class Queue(_Face[T, T]):
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


class Event:
    """An event whose ``wait`` is awaited.

    Args:
        event: What is waited for; it is set, cleared and asked by its own calls. Tasks do not
            count among its ``max_waiters``.

    Example:
        >>> import asyncio
        >>> from ipcmap import Event, aio
        >>> event = Event()
        >>> async def main():
        ...     asyncio.get_running_loop().call_later(0.01, event.set)
        ...     return await aio.Event(event).wait()
        >>> asyncio.run(main())
        True
    """

    def __init__(self, event: events.Event) -> None:
        self.event = event
        place = event._arena._id, event._cell.offset, event._cell.generation
        self._waiting = _Where(_Crowd, place, event._listen)

    async def wait(self) -> bool:
        """Wait until it is set, and return ``True``.

        All who wait when it is set go on, though it is cleared at once.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: It was destroyed.
        """
        await self._waiting.here().until(self.event.is_set)
        return True

    def __repr__(self) -> str:
        return f"<ipcmap.aio.Event: {self.event!r}>"
