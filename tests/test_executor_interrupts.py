"""A signal handler that raises at any line of an executor loses no task but, perhaps, its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import executors as work
from interrupts import OF_AN_EXECUTOR, Interrupted, interrupted
from ipcmap import Arena, BusyError, ProcessPoolExecutor, Ring
from ipcmap._deadline import Deadline

OTHERS = 6
NEVER = 1 << 62  # nanoseconds


class Stage:
    """An executor of one worker, which has one task in hand and others before it."""

    def __init__(self, executor: ProcessPoolExecutor, arena: Arena) -> None:
        self.executor, self.dispatcher = executor, executor._dispatcher
        self.said, self.gate = Ring(arena=arena), Ring(arena=arena)

    def set(self) -> None:
        """Have everything in its place."""
        arguments = [self.said] * 3, [self.gate] * 3, range(3)
        self.iterator = self.executor.map(work.say_and_wait, *arguments)
        self.gate.put(b"")
        assert next(self.iterator) == 0
        self.said.get()
        assert self.said.get(20) == b"1"
        self.others = [self.executor.submit(work.same, item) for item in range(OTHERS)]

    def cancel(self) -> None:
        """Cancel what the worker has not begun."""
        self.others[2].cancel()

    def cancel_what_waits_behind_it(self) -> None:
        """Cancel, and have the rest given to a worker that is idle."""
        self.others[-1].cancel()

    def submit(self) -> None:
        """Submit another."""
        self.others.append(self.executor.submit(work.same, OTHERS))

    def close(self) -> None:
        """Give the rest of the map up."""
        self.iterator.close()  # type: ignore[attr-defined]

    def free(self) -> None:
        """Take back what is behind the task in hand."""
        with self.dispatcher.lock:
            before, self.dispatcher.changing = self.dispatcher.changing, True
            self.dispatcher._free_the_stuck(2 * NEVER)
            self.dispatcher.feed()
            self.dispatcher.changing = before

    def wait(self) -> None:
        """Wait for all."""
        self.open()
        for future in self.others:
            future.result(20)

    def open(self) -> None:
        """Let the worker go on."""
        self.gate.put(b"")
        self.gate.put(b"")

    def is_whole(self) -> None:
        """See every task to its end."""
        self.open()
        for item, future in enumerate(self.others):
            assert future.cancelled() or future.result(20) == item
        assert sum(future.cancelled() for future in self.others) <= 1
        self.iterator.close()  # type: ignore[attr-defined]
        work.wait_until(lambda: not self.dispatcher.tasks)
        for ring in (self.said, self.gate):
            while len(ring):
                ring.get()


@pytest.fixture
def stage(engine: str, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A stage; workers are given tasks ahead, however long it takes."""
    monkeypatch.setattr("ipcmap.assignments.STUCK", NEVER)
    monkeypatch.setattr("ipcmap.answers.STUCK", NEVER)
    monkeypatch.setattr("ipcmap.dispatch.Dispatcher._measure", lambda *_: None)
    executor = ProcessPoolExecutor(1, arena=arena)
    executor._dispatcher._ahead = 4
    yield Stage(executor, arena)
    executor.kill_workers()


@pytest.mark.parametrize(
    "name", ["cancel", "cancel_what_waits_behind_it", "submit", "close", "free", "wait"]
)
def test_a_call_that_is_broken_off_loses_no_task(stage: Stage, name: str) -> None:
    """Whichever line it has come to."""
    if name != "wait":  # which gives the worker more as it goes on
        stage.dispatcher._ahead = 64
    for at in itertools.count(1):
        stage.set()
        broken_off = interrupted(getattr(stage, name), OF_AN_EXECUTOR, at)
        stage.is_whole()
        if not broken_off:
            break
    assert at > 10


class Breaks:
    """A ring of which one call is broken off, after it has done its work or before.

    Args:
        ring: The ring.
        after: Which.
    """

    def __init__(self, ring: Ring, *, after: bool) -> None:
        self._ring, self._after, self._armed = ring, after, True

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ring, name)
        if not self._armed or name not in ("put", "put_many", "get_many"):
            return method

        def call(*args: Any, **options: Any) -> Any:
            self._armed = False
            if self._after:
                method(*args, **options)
            raise Interrupted

        return call

    def __len__(self) -> int:
        return len(self._ring)


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("name", ["submit", "cancel"])
def test_tasks_on_their_way_arrive_beside_a_long_one(stage: Stage, name: str, after: bool) -> None:
    """Whether the ring has them or not; the task in hand goes on, and its worker."""
    stage.dispatcher._ahead = 64
    stage.set()
    (seat,) = stage.dispatcher.seats.values()
    pid = seat.process.pid
    seat.ring = Breaks(seat.ring, after=after)  # type: ignore[assignment]

    with pytest.raises(Interrupted):
        getattr(stage, name)()

    work.wait_until(lambda: not (stage.dispatcher.changing or seat.suspect))
    stage.is_whole()
    assert [*stage.executor._processes] == [pid]


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_task_on_its_way_arrives_at_an_idle_worker(stage: Stage, after: bool) -> None:
    """Or at the one that comes after it; done once."""
    stage.set()
    stage.is_whole()
    (seat,) = stage.dispatcher.seats.values()
    seat.ring = Breaks(seat.ring, after=after)  # type: ignore[assignment]

    with pytest.raises(Interrupted):
        stage.executor.submit(work.record, stage.said, 7)

    assert stage.executor.submit(work.same, 8).result(20) == 8
    work.wait_until(lambda: not stage.dispatcher.tasks)
    assert stage.said.get_many(timeout=0) == [b"7"]


def test_who_has_been_interrupted_with_the_lock_may_submit(stage: Stage) -> None:
    """The manager forks the worker for it, and needs the lock too."""
    with stage.dispatcher.lock:
        future = stage.executor.submit(work.same, 7)
    assert future.result(20) == 7


def test_who_has_been_interrupted_before_it_waits_cannot_wait_for_the_end(stage: Stage) -> None:
    """The manager needs the condition to settle what was waited for."""
    stage.set()
    condition: Any = threading.Condition()
    refused: list[BusyError] = []

    def look() -> bool:
        if condition._is_owned():
            with pytest.raises(BusyError) as caught:
                stage.executor.shutdown()
            refused.append(caught.value)
        return bool(refused)

    with stage.dispatcher.lead:
        stage.dispatcher.pull(look, condition, Deadline(None))
    assert len(refused) == 1
    stage.is_whole()
    stage.executor.shutdown()


def test_a_handler_amid_a_submission_may_submit_and_not_wait(stage: Stage) -> None:
    """It would wait for what it holds up."""
    stage.set()
    seen: list[Future[int]] = []
    feed = stage.dispatcher.feed

    def handle() -> None:
        stage.dispatcher.feed = feed  # type: ignore[method-assign]
        seen.append(stage.executor.submit(work.same, OTHERS + 1))
        with pytest.raises(BusyError):
            seen[0].result()
        with pytest.raises(BusyError):
            stage.executor.shutdown()
        assert not stage.others[0].cancel()
        feed()

    stage.dispatcher.feed = handle  # type: ignore[method-assign]
    stage.submit()
    stage.others += seen
    stage.is_whole()
