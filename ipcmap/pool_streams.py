"""Results one by one, while the items they come from are still being taken: imap.

Each call has a thread, the feeder, that takes the items: an iterable may wait for whatever it
likes, for earlier results too, and holds nobody up but its own call. It goes no further ahead of the
workers than keeps them busy, and of the reader as far as ``buffersize`` says.

Shared fields of a stream     written by
  answers   whoever deals with answers, under the dispatcher's lock; the feeder, what was no task
  fed       feeder         items that have become tasks
  taken     reader         answers that were handed out, under the stream's lock
  length    feeder, once   how many items there are; ``None`` = not known
  stopped   any thread     nobody asks any more, or the pool was terminated: nothing is fed
A reader who waits is woken by an answer, by the end of the feeder, and by the end of the
executor (``dispatcher.closing``), whatever the iterable does at that time. The feeder waits in
slices: what a signal handler breaks off may be a wake-up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ipcmap._deadline import Deadline
from ipcmap.dispatch import Dispatcher
from ipcmap.pool_results import value_of
from ipcmap.tasks import Function, MapCall, Task

__all__ = ["IMapIterator", "Stream", "UnorderedStream", "feed"]

T = TypeVar("T")
Answer = bytes | BaseException

_WINDOW = 4096  # tasks that wait for a worker, or for its answer
_SLICE = 1.0  # seconds between two looks of a feeder that nobody wakes


class Stream(MapCall):
    """The calls of one imap, in order.

    Args:
        pool: Lives as long as somebody reads.
        dispatcher: Who has the answers.
        function: What is called.
        buffersize: How many items are taken ahead of the reader at most, ``None`` = any number.
    """

    dispatcher: Dispatcher

    def __init__(
        self, pool: Any, dispatcher: Dispatcher, function: Function, buffersize: int | None
    ) -> None:
        super().__init__(dispatcher, function, None, 0)
        self.pool: Any = pool
        self.waiters = 1  # so notify() is called
        self.fed = self.taken = 0
        self.length: int | None = None
        self.stopped = self._waits = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ahead = buffersize
        self._lock = threading.RLock()

    # The feeder's side

    def feed(self, tasks: Iterator[Task | None]) -> None:
        """Have tasks done, as far as there is room for them."""
        while self._await_room():
            for task in tasks:
                if task is not None:
                    self.dispatcher.add((task,), timed=False)
                self.fed += 1
                if task is None:
                    self._wake_reader()
                break
            else:
                self.length = self.fed
                return

    def fail(self, error: BaseException) -> None:
        """End with an exception in the place of the next answer."""
        self.answers[self.fed] = self._reason() if self.dispatcher.closing else error
        self.length = self.fed = self.fed + 1

    def end(self) -> None:
        """See that whoever waits for more knows that there is none."""
        self._wake_reader()

    def stop(self) -> None:
        """Have nothing more fed."""
        self.stopped = True
        self._wake_feeder()

    def notify(self) -> None:
        """Wake whoever waits for an answer, and who waits for room; called with the lock."""
        super().notify()
        self._wake_feeder()

    def _wake_feeder(self) -> None:
        # By no lock, which a thread that a signal handler interrupts may hold.
        if self._waits:
            self._wakes.put(None)

    def abandon(self) -> None:
        """Have nothing more fed, if it is the reader that makes room; safe in a finalizer."""
        self.stopped |= self._ahead is not None

    def _wake_reader(self) -> None:
        """Have the reader look, for what no worker has answered."""
        super().notify()
        self.dispatcher.nudge()

    def _await_room(self) -> bool:
        """Wait until another item is to be taken; ``False`` = none is any more."""
        while not (self.stopped or self._has_room()):
            self._waits = True
            if not (self.stopped or self._has_room()):
                with contextlib.suppress(queue.Empty):
                    self._wakes.get(timeout=_SLICE)
            self._waits = False
        return not self.stopped

    def _has_room(self) -> bool:
        out = self.fed - self.taken
        if self._ahead is not None and out >= self._ahead:
            return False
        return out - self._waiting() < _WINDOW

    # The reader's side

    def next(self, deadline: Deadline) -> Answer:
        """Return the next answer.

        Raises:
            multiprocessing.TimeoutError: It is not there in time.
            StopIteration: There is none.
        """
        while True:
            answer = self._take()
            if answer is not None:
                return answer
            if self.taken == self.length:
                self.pool = None
                raise StopIteration
            if self._is_cut_off():
                self.pool = None
                return self._reason()
            if not deadline.remaining():
                raise multiprocessing.TimeoutError(
                    "result is not there in time; ask again, or give it more"
                )
            self._wake_feeder()  # again, if it was broken off
            self.dispatcher.pull(self._is_over, self.condition, deadline)

    def _reason(self) -> BaseException:
        """Return why the executor has no answer for what is not fed."""
        if self.dispatcher.broken is not None:
            return BrokenProcessPool(self.dispatcher.broken)
        return CancelledError("pool was terminated before it took all items of an imap")

    def _is_over(self) -> bool:
        return self._is_next_there() or self.taken == self.length or self._is_cut_off()

    def _is_cut_off(self) -> bool:
        """Return whether there will be no answer, since nothing can be fed any more."""
        return self.dispatcher.closing and self.length is None and self.taken >= self.fed

    def _take(self) -> Answer | None:
        with self._lock:
            answer = self._pop()
            if answer is not None:
                self.taken += 1
        self._wake_feeder()
        return answer

    # How answers wait

    def _is_next_there(self) -> bool:
        return self.taken in self.answers

    def _pop(self) -> Answer | None:
        return self.answers.pop(self.taken, None)

    def _waiting(self) -> int:
        return len(self.answers)


class UnorderedStream(Stream):
    """The calls of one imap_unordered: first answered, first taken."""

    def __init__(
        self, pool: Any, dispatcher: Dispatcher, function: Function, buffersize: int | None
    ) -> None:
        super().__init__(pool, dispatcher, function, buffersize)
        self._arrived: deque[Answer] = deque()

    def _is_next_there(self) -> bool:
        return bool(self._arrived or self.answers)

    def _pop(self) -> Answer | None:
        arrived, answers = self._arrived, self.answers
        if not arrived:
            # Many at a time: to find the first of a dict is to pass all that were deleted.
            arrived.extend([answers.pop(index) for index in list(answers)])
        return arrived.popleft() if arrived else None

    def _waiting(self) -> int:
        return len(self.answers) + len(self._arrived)


class IMapIterator(Iterator[T]):
    """The results of :meth:`Pool.imap` or :meth:`Pool.imap_unordered`, one by one.

    An item whose worker died raises :class:`WorkerDied`, and one whose call raised raises that;
    the next call goes on with the next item.

    Example:
        >>> import ipcmap
        >>> with ipcmap.Pool(1) as pool:
        ...     results = pool.imap(abs, [-1, -2])
        ...     results.next(timeout=60), next(results)
        (1, 2)
    """

    def __init__(self, stream: Stream, chunked: bool) -> None:
        self._stream, self._chunked = stream, chunked
        self._chunk: deque[T] = deque()

    def next(self, timeout: float | None = None) -> T:
        """Return the next result; raise what its call raised.

        Args:
            timeout: Seconds to wait for it at most; ``None`` = for ever.

        Raises:
            multiprocessing.TimeoutError: It is not there in time, and may be asked for again.
            WorkerDied: Its worker died over it.
            CancelledError: The pool was terminated before it was begun.
        """
        deadline = Deadline(timeout)
        while True:
            if self._chunk:
                return self._chunk.popleft()
            value, error = value_of(self._stream.next(deadline), self._stream.dispatcher.load)
            if error is not None:
                try:
                    raise error
                finally:
                    del error, self  # its traceback has this frame
            if not self._chunked:
                return value  # type: ignore[no-any-return]
            self._chunk.extend(value)

    def __next__(self) -> T:
        """Return the next result."""
        return self.next()

    def __del__(self) -> None:
        self._stream.abandon()


def feed(stream: Stream, tasks: Iterator[Task | None], ended: Callable[[Stream], object]) -> None:
    """Be the thread that feeds a stream: until there is nothing left, or nobody asks.

    Args:
        stream: Where the answers go.
        tasks: What the items become; ``None`` = what has its answer already.
        ended: Called at the end.
    """
    try:
        stream.feed(tasks)
    except BaseException as error:  # of the iterable; or the executor takes no more
        traceback.clear_frames(error.__traceback__)
        stream.fail(error)
    finally:
        stream.end()
        ended(stream)
        del stream, tasks, ended  # the traceback has this frame
