"""A map whose workers are forked for one call: what they need they have, only results travel.

    parent                             shared                              worker 1..N
    puts all indices, closes  --->  tasks:   5  6  7            --->  takes one, notes it, calls fn
    puts results in order     <---  results: 3 (True, value)    <---  puts what came of it

Shared fields
  in_hand[place]  u64  the worker of the place   1 + the index it has begun, 0 = none yet; 0 is
                                                 stored by the parent before it forks

If a worker dies
  before it took an index, or after it put the result: nothing is missing;
  between taking and noting: the index is in nobody's hand and was not begun. Once all
      workers have ended, what has no outcome is handed out again;
  after noting, before the result is put: the item is the one it died of.

What a dead worker put is taken before it is judged.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import _ExceptionWithTraceback
from typing import Any, Literal, TypeVar, overload

from ipcmap._core.processors import available
from ipcmap.errors import BrokenError, ClosedError, WorkerDied
from ipcmap.family import ExitRecord
from ipcmap.mapping import Mapping
from ipcmap.objects import Objects
from ipcmap.process import Process
from ipcmap.ring import Ring

__all__ = ["fork_map"]

T = TypeVar("T")
R = TypeVar("R")

_LOOK = 0.02  # seconds between two looks at who has died
_MOST_IDLE_DEATHS = 10  # of workers that had begun nothing: then no worker can live here
_INDEX = 8  # bytes


@overload
def fork_map(
    fn: Callable[[T], R],
    iterable: Iterable[T],
    *,
    max_workers: int | None = None,
    return_exceptions: Literal[False] = False,
) -> list[R]: ...


@overload
def fork_map(
    fn: Callable[[T], R],
    iterable: Iterable[T],
    *,
    max_workers: int | None = None,
    return_exceptions: Literal[True],
) -> list[R | BaseException]: ...


def fork_map(
    fn: Callable[[T], R],
    iterable: Iterable[T],
    *,
    max_workers: int | None = None,
    return_exceptions: bool = False,
) -> list[R] | list[R | BaseException]:
    """Return ``[fn(item) for item in iterable]``, made by workers forked for this call.

    Workers have ``fn``, whatever it closes over, and the items by the fork, so none of
    these is pickled; only results are. Who is free takes the next item. A worker that dies
    costs the item that it had in hand, which is not tried again, and another takes its
    place. The workers have ended when the call returns.

    Args:
        fn: Called with each item; its changes to anything but shared memory stay in the
            worker.
        iterable: The items, all of which are taken before the fork.
        max_workers: How many processes; ``None`` = as many as there are processors to run
            on, by affinity and by the quota of the cgroup.
        return_exceptions: Whether exceptions, :exc:`WorkerDied` among them, stand in the
            list in the place of results.

    Raises:
        Exception: Otherwise: what ``fn`` raised for the first item, in order, for which it
            did. Its cause is the traceback of the worker. No item is begun after it.
        WorkerDied: Likewise, where that was the end of a worker.
        BrokenError: Workers die before they begin.
        ValueError: ``max_workers`` is less than 1.

    Warns:
        RuntimeWarning: The process has other threads: what they hold at the moment of the
            fork stays held in the workers.

    Example:
        >>> factor = 3
        >>> fork_map(lambda number: factor * number, range(5))
        [0, 3, 6, 9, 12]
    """
    if max_workers is None:
        max_workers = available()
    if max_workers < 1:
        raise ValueError(f"number of workers must be 1 or more: max_workers={max_workers}")
    _warn_of_threads()
    items = list(iterable)
    crew = _Crew(fn, items, min(max_workers, len(items)), keep_on=return_exceptions)
    try:
        crew.run()
    finally:
        crew.close()
    if crew.failures and not return_exceptions:
        raise crew.failures[min(crew.failures)]
    outcomes = crew.results | crew.failures
    return [outcomes[index] for index in range(len(items))]


def _warn_of_threads() -> None:
    others = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
    if others:
        warnings.warn(
            f"workers should be forked by a process without other threads: threads={others}; "
            "a lock that one of them holds now stays locked in the workers; fork before they start",
            RuntimeWarning,
            stacklevel=3,
        )


class _Results(Objects[Any]):
    """What came of items, each behind its index."""

    def put(self, index: int, outcome: object) -> None:
        record, head = self._dumps(outcome), index.to_bytes(_INDEX, "little")
        self._put_record(
            head + record if isinstance(record, bytes) else [head, *record], timeout=None
        )

    def take(self, timeout: float) -> list[bytes]:
        """Return what is there."""
        try:
            return self._ring.get_many(timeout=timeout)
        except queue.Empty:
            return []

    def check(self, outcome: object) -> None:
        """Raise where it cannot travel."""
        record = self._dumps(outcome)
        self._loads(record if isinstance(record, bytes) else b"".join(record))

    def read(self, record: bytes) -> tuple[bool, Any]:
        outcome: tuple[bool, Any] = self._loads(record[_INDEX:])
        return outcome


class _Crew:
    """The workers of one call, and what came of the items so far."""

    def __init__(
        self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int, *, keep_on: bool
    ) -> None:
        self._fn, self._items, self._keep_on = fn, items, keep_on
        self.results: dict[int, Any] = {}
        self.failures: dict[int, BaseException] = {}
        self._workers: list[Process | None] = [None] * workers
        self._mapping = Mapping.anonymous(8 * max(1, workers))
        self._shm_in_hand = self._mapping.view().cast("Q")
        self._results = _Results(None, None, None)
        self._tasks: Ring | None = None
        self._idle_deaths: list[ExitRecord] = []

    def run(self) -> None:
        """See to it that every item has an outcome, or that the first failed one has."""
        next_look = time.monotonic() + _LOOK
        while not self._is_done():
            if not any(self._workers):
                self._hand_out()
            records = self._results.take(_LOOK)
            self._note(records)
            if not records or time.monotonic() >= next_look:
                self._look_for_the_dead()
                next_look = time.monotonic() + _LOOK

    def _is_done(self) -> bool:
        if self.failures and not self._keep_on:
            return not any(self._workers)
        return len(self.results) + len(self.failures) == len(self._items)

    def close(self) -> None:
        """Wait for the workers, or end them where something is amiss, and free what was shared."""
        well = self._is_done()
        for worker in filter(None, self._workers):
            if not well:
                worker.kill()
            worker.join()
            worker.close()
        self._results.destroy()
        self._shm_in_hand.release()
        self._mapping.close()
        if self._tasks is not None:
            self._tasks.destroy()

    # Workers

    def _hand_out(self) -> None:
        """Hand out every item that has no outcome."""
        if self._tasks is not None:
            self._tasks.destroy()
        left = [
            index.to_bytes(_INDEX, "little")
            for index in range(len(self._items))
            if index not in self.results and index not in self.failures
        ]
        self._tasks = Ring(2 * _INDEX * len(left) + 4096)  # a record has as much again before it
        self._tasks.put_many(left)
        self._tasks.close()
        for place in range(min(len(self._workers), len(left))):
            self._fork(place, self._tasks)

    def _fork(self, place: int, tasks: Ring) -> None:
        self._shm_in_hand[place] = 0
        worker = self._workers[place] = Process(target=self._work, args=(place, tasks))
        try:
            worker.start()
        except BaseException:
            if worker.pid is None:
                self._workers[place] = None
            raise

    def _work(self, place: int, tasks: Ring) -> None:
        with contextlib.suppress(ClosedError):
            while True:
                index = int.from_bytes(tasks.get(), "little")
                self._shm_in_hand[place] = index + 1
                try:
                    self._results.put(index, (True, self._fn(self._items[index])))
                except BaseException as error:
                    self._results.put(index, (False, self._told(error)))

    def _told(self, error: BaseException) -> _ExceptionWithTraceback:
        """Return an exception as it travels, with its traceback; or else another, that says it."""
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        told = _ExceptionWithTraceback(error, trace)  # type: ignore[arg-type]
        try:
            self._results.check(told)
        except Exception as reason:
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            told.exc = RuntimeError(
                f"exception cannot be pickled: type={name}, text={str(error)!r}, {reason!r}"
            )
        return told

    # Outcomes

    def _note(self, records: Iterable[bytes]) -> None:
        for record in records:
            index = int.from_bytes(record[:_INDEX], "little")
            try:
                well, value = self._results.read(record)
            except Exception as error:  # it can be pickled, and not loaded
                well, value = False, error
            (self.results if well else self.failures)[index] = value
        self._cease_if_failed()

    def _cease_if_failed(self) -> None:
        """Let nobody begin another item where the first failure is what counts."""
        if self.failures and not self._keep_on and self._tasks is not None:
            with contextlib.suppress(ClosedError):
                self._tasks.get_many(timeout=0)

    def _look_for_the_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            if worker is None or worker.exit_record is None:
                continue
            self._workers[place] = None
            record = worker.exit_record
            worker.close()
            while records := self._results.take(0):
                self._note(records)
            self._judge(self._shm_in_hand[place] - 1, record)
            if self._tasks:
                self._cease_if_failed()
                if len(self._tasks):
                    self._fork(place, self._tasks)

    def _judge(self, index: int, record: ExitRecord) -> None:
        """Say what the end of a worker has cost, which had begun an item last; -1 = none."""
        if index >= 0 and index not in self.results and index not in self.failures:
            self.failures[index] = WorkerDied(
                f"worker died with an item in hand: item={index}, {record}; the others have "
                "their results with return_exceptions=True",
                record,
                index,
            )
        elif index < 0 and record.exitcode != 0:
            self._idle_deaths.append(record)
            if len(self._idle_deaths) > _MOST_IDLE_DEATHS:
                raise BrokenError(
                    f"workers must live to begin an item: deaths={len(self._idle_deaths)}, the "
                    f"last: {record}; see what ends processes of this program at their start",
                    self._idle_deaths,
                )
