"""Results one by one, while the items they come from are still being taken: imap.

Each call has a thread, the feeder, that takes the items: an iterable may wait for whatever it
likes, for earlier results too, and holds nobody up but its own call. It goes no further ahead of the
workers than keeps them busy, and of the reader as far as ``buffersize`` says.

Shared fields of a stream     written by
  answers   whoever deals with answers, under the dispatcher's lock; the feeder, what was no task
  fed       feeder         items that have become tasks
  at_hand   reader         the answer that was taken last, and how many were, under the stream's lock
  length    feeder, once   how many items there are; ``None`` = not known
  stopped   any thread     nobody asks any more, or the pool was terminated: nothing is fed
A reader who waits is woken by an answer, by the end of the feeder, and by the end of the
executor (``dispatcher.closing``), whatever the iterable does at that time. The feeder waits in
slices: what a signal handler breaks off may be a wake-up.

Nor is a result lost to such a handler, or handed out twice: an answer is loaded first, then put at
hand by one store, and then no answer any more; what is at hand is handed out by one step of C, after
which no handler comes before the return.
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
from typing import Any, NamedTuple, TypeVar

from ipcmap._deadline import Deadline
from ipcmap.dispatch import Dispatcher
from ipcmap.pool_results import value_of
from ipcmap.tasks import Function, MapCall, Task

__all__ = ["IMapIterator", "Stream", "UnorderedStream", "feed"]

T = TypeVar("T")

_WINDOW = 4096  # tasks that wait for a worker, or for its answer
_SLICE = 1.0  # seconds between two looks of a feeder that nobody wakes
_NONE, _CUT_OFF = -1, -2  # numbers of no item
_first: Callable[[deque[Any]], Any] = deque.popleft


class AtHand(NamedTuple):
    """The answer that was taken last, loaded.

    Attributes:
        taken: How many were, with it.
        number: Whose it is.
        values: What is to be handed out of it yet.
        failed: Whether that is an exception.
    """

    taken: int
    number: int
    values: deque[Any]
    failed: bool


class Stream(MapCall):
    """The calls of one imap, in order.

    Args:
        pool: Lives as long as somebody reads.
        dispatcher: Who has the answers.
        function: What is called.
        chunked: Whether an answer is a list of results.
        buffersize: How many answers are waited for ahead of the reader, ``None`` = any number.
    """

    dispatcher: Dispatcher

    def __init__(
        self,
        pool: Any,
        dispatcher: Dispatcher,
        function: Function,
        chunked: bool,
        buffersize: int | None,
    ) -> None:
        super().__init__(dispatcher, function, None, 0)
        self.pool: Any = pool
        self.waiters = 1  # so notify() is called
        self.fed = 0
        self.at_hand = AtHand(0, _NONE, deque(), failed=False)
        self.length: int | None = None
        self.stopped = self._waits = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._chunked, self._ahead = chunked, buffersize
        self._lock = threading.RLock()

    @property
    def taken(self) -> int:
        """How many answers were taken."""
        return self.at_hand.taken

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

    def next(self, deadline: Deadline) -> AtHand:
        """Return the next answer.

        Raises:
            multiprocessing.TimeoutError: It is not there in time.
            StopIteration: There is none.
        """
        # A child of the process finds the lock as it was, and what it waits for raises.
        while not (self.dispatcher.is_ours and self._take()):
            if self.taken == self.length or self._is_told():
                self.pool = None
                raise StopIteration
            if self._is_cut_off():
                self.pool = None
                self.at_hand = AtHand(self.taken, _CUT_OFF, deque([self._reason()]), failed=True)
                break
            if not deadline.remaining():
                raise multiprocessing.TimeoutError(
                    "result is not there in time; ask again, or give it more"
                )
            self._wake_feeder()  # again, if it was broken off
            self.dispatcher.pull(self._is_over, self.condition, deadline)
        return self.at_hand

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

    def _is_told(self) -> bool:
        """Return whether the reader knows that."""
        return self.at_hand.number == _CUT_OFF and self._is_cut_off()

    def _take(self) -> bool:
        """Have an answer at hand, if there is one."""
        with self._lock:
            before = self.at_hand
            if before.values:  # another thread was faster
                return True
            self.answers.pop(before.number, None)
            index = self._next_index()
            if index is None:
                return False
            value, error = value_of(self.answers[index], self.dispatcher.load)
            failed = error is not None
            results: Any = error if failed else value
            values = deque(results if self._chunked and not failed else [results])
            at_hand = AtHand(before.taken + 1, index, values, failed)
            if self.at_hand is before:  # or a signal handler has taken it meanwhile
                self.at_hand = at_hand
            self.answers.pop(index, None)
        del value, error, results, values, at_hand  # a frame of its traceback has it
        self._wake_feeder()
        return True

    # How answers wait

    def _is_next_there(self) -> bool:
        return self.taken in self.answers

    def _next_index(self) -> int | None:
        """Return whose answer is the next, if it is there."""
        return self.taken if self._is_next_there() else None

    def _waiting(self) -> int:
        return len(self.answers)


class UnorderedStream(Stream):
    """The calls of one imap_unordered: first answered, first taken."""

    _arrived: Iterator[int] = iter(())

    def _is_next_there(self) -> bool:
        return bool(self.answers)

    def _next_index(self) -> int | None:
        # Many at a time: to find the first of a dict is to pass all that were deleted.
        for index in self._arrived:
            if index in self.answers:
                return index
        self._arrived = iter(list(self.answers))
        return next(self._arrived, None)


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

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

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
            answer = self._stream.at_hand
            if not answer.values:
                answer = self._stream.next(deadline)
            failed = answer.failed
            try:
                (value,) = map(_first, (answer.values,))
            except IndexError:  # another thread was faster
                continue
            if not failed:
                return value  # type: ignore[no-any-return]
            try:
                raise value
            finally:
                del value, self  # its traceback has this frame

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
