"""Events whose wait is awaited."""

from __future__ import annotations

from collections.abc import Callable

from ipcmap import event as events
from ipcmap.aio.watch import Loop, Turn, Watch, Where
from ipcmap.listener import Listener

__all__ = ["Event"]


class Crowd:
    """Who waits in one loop for one event: all go on at once.

    Each knows the count of calls of when it came. A set that calls nobody, for none is armed,
    is counted among them, so it lets go who was there, though the event is cleared at once.
    """

    def __init__(self, loop: Loop, listen: Callable[[], Listener]) -> None:
        self.loop = loop
        self._watch = Watch(loop, listen)
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
        listener: Listener = self._watch.listener()
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
        self._waiting = Where(Crowd, place, event._listen)

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
