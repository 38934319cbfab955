"""A queue of objects that can be waited for: the interface is that of multiprocessing.JoinableQueue."""

from __future__ import annotations

from typing import Any, SupportsIndex, TypeVar

from ipcmap.arena import Arena
from ipcmap.condition import Condition
from ipcmap.queues import Queue

__all__ = ["JoinableQueue"]

T = TypeVar("T")

_SLICE = 1.0  # seconds; what a join costs where someone was killed before it could tell


class JoinableQueue(Queue[T]):
    """A queue that can be waited for: until everything put was taken, and done with.

    It always has ``ack=True``: what a consumer has taken when it dies is given to another,
    so :meth:`join` does not wait for the dead.
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        capacity: SupportsIndex | None = None,
        codec: Any = None,
        arena: Arena | None = None,
        ctx: Any = None,
    ) -> None:
        super().__init__(maxsize, capacity=capacity, codec=codec, ack=True, arena=arena)
        self._finished = Condition(arena=self._ring._arena)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "_finished": self._finished}

    def task_done(self) -> None:
        """Say that what was taken is done with; see :meth:`Queue.task_done`."""
        super().task_done()
        core = self._ring._core
        # What is in the ring or in hand here spares a search of the arena.
        if not core.are_awaited() or core.backlog_records() or len(self._mine):
            return
        if not self._ring._unfinished():
            self._tell()

    def shutdown(self, immediate: bool = False) -> None:
        """End it for the whole family; see :meth:`Queue.shutdown`."""
        super().shutdown(immediate)
        if immediate:
            self._tell()

    @property
    def unfinished_tasks(self) -> int:
        """How many objects were put and are not done with; it may be stale at once.

        Never too few. One that a consumer was killed in the middle of taking may count twice
        until another has taken it.
        """
        return self._ring._unfinished()

    def join(self) -> None:
        """Wait until everything that was put was taken, and done with."""
        with self._finished:
            try:
                self._wait_until_finished()
            finally:
                self._ring._unfinished(-1)

    def _wait_until_finished(self) -> None:
        unfinished = self._ring._unfinished(1)
        while unfinished:
            self._finished.wait(_SLICE)
            unfinished = self._ring._unfinished()

    def _tell(self) -> None:
        with self._finished:
            self._finished.notify_all()

    def destroy(self) -> None:
        """Free it for the whole family; see :meth:`Queue.destroy`."""
        super().destroy()
        self._finished.destroy()
