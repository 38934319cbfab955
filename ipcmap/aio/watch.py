"""What a loop looks at while its tasks wait, and where they wait in it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Descriptor", "Loop", "Turn", "Watch", "Where"]

Turn = asyncio.Future[None]
Loop = asyncio.AbstractEventLoop


class Descriptor(Protocol):
    """What a loop looks at: an :class:`ipcmap.Listener`, or what a connection has for one."""

    def fileno(self) -> int:
        """Return its number."""

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the parent of this process."""

    def close(self) -> None:
        """Give it back."""


class Watch:
    """The listener of those who wait in one loop, which looks at it as long as there are any."""

    def __init__(self, loop: Loop, listen: Callable[[], Descriptor]) -> None:
        self._loop, self._listen, self._pid = loop, listen, os.getpid()
        self._listener: Descriptor | None = None
        self._watched = -1  # the descriptor that the loop looks at

    def listener(self) -> Any:
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
        # A child that gives its parent's tasks up has the parent's own epoll in its hands.
        if number >= 0 and not self._loop.is_closed() and self._pid == os.getpid():
            self._loop.remove_reader(number)

    def wake(self, turn: Turn) -> None:
        """Let a task go on, unless its loop is at an end."""
        if not turn.done() and not self._loop.is_closed():
            turn.set_result(None)

    def fail(self, turn: Turn, error: Exception) -> None:
        """Raise an error in a task that waits, likewise."""
        if not turn.done() and not self._loop.is_closed():
            turn.set_exception(error)


class Waiting(Protocol):
    """The tasks of one loop that wait for one thing."""

    loop: Loop


Waiters = TypeVar("Waiters", bound=Waiting)

# Who waits in each loop, by what for: two faces of one ring have one line.
_all: weakref.WeakKeyDictionary[Loop, weakref.WeakValueDictionary[Any, Any]] = (
    weakref.WeakKeyDictionary()
)


class Where(Generic[Waiters]):
    """Where the tasks of the running loop wait: what a face has for each of its calls."""

    def __init__(
        self, kind: type[Waiters], key: tuple[Any, ...], listen: Callable[[], Descriptor]
    ) -> None:
        make: Callable[[Loop, Callable[[], Descriptor]], Waiters] = kind
        self._make: Callable[[Loop], Waiters] = lambda loop: make(loop, listen)
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
