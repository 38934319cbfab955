"""Those who take turns: the tasks of one loop that want the same, one after the other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from ipcmap.aio.watch import Descriptor, Loop, Turn, Watch

__all__ = ["Line"]

T = TypeVar("T")

_RUN = 100  # takes, or puts, without a wait; then the loop's other tasks have their turn


class Line:
    """Who waits in one loop to take one thing, or to put it: first come, first served."""

    def __init__(self, loop: Loop, listen: Callable[[], Descriptor]) -> None:
        self.loop = loop
        self._watch = Watch(loop, listen)
        self._waiting: OrderedDict[object, Turn] = OrderedDict()
        self._run = 0

    def is_free(self) -> bool:
        """Return whether the running task may try at once, and need not stand in line."""
        self._run = run = self._run + 1
        return run <= _RUN and not self._waiting

    async def until(
        self, attempt: Callable[[Any], T], nothing: type[Exception], tried: bool = False
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
            return await self._try_in_turn(me, turn, attempt, nothing)
        finally:
            # Before any call, in which a signal handler may raise: who is gone must not stay first.
            del self._waiting[me]
            self._leave()

    async def _try_in_turn(
        self, me: object, turn: Turn, attempt: Callable[[Any], T], nothing: type[Exception]
    ) -> T:
        while True:
            await turn
            try:
                return attempt(self._watch.listener())
            except nothing:
                turn = self._waiting[me] = self.loop.create_future()
                self._watch.watch(self._ready)

    def _ready(self) -> None:
        if self._waiting:
            self._watch.wake(next(iter(self._waiting.values())))

    def _leave(self) -> None:
        """Let the next one try, where there is one."""
        if self._waiting:
            self._ready()
        else:
            self._watch.unwatch()
