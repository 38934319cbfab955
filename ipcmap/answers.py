"""The answers of an executor: who takes them, and whom they are for.

All answers come through one ring. Whoever waits for one takes them all, for everybody, while
it holds the *lead*; where nobody does, the manager, a thread, takes the lead itself.
So a call that waits for its own answer is woken by the worker, and by no thread in between.

Guards
  lock   all that is said of tasks, seats and the queue. No code of a caller runs under it.
  lead   the ring of answers, and the order in which they are dealt with. Who holds it may
         wait for answers; the lock is taken inside it, and never the other way round.
What an exception of a signal handler breaks off is done again: an answer stays in ``_taken``
until it is dealt with, and in ``finished`` until its future has it, and a call in ``_answered``
until it is told; and what is said of tasks and seats is mended (assignments.py). Where the ring of
answers is plain Python, an answer could be lost between the ring and ``_taken``: there the main
thread, which handlers run in, never leads.

Shared fields      written
  _taken           with the lead; taken out under the lock
  _answered        under the lock: calls of map that have answers and are not told so
  noticed          under the lock: of the notices that were taken kind, index and pid
  led              with the lead: how often somebody other than the manager has led
  _leader          with the lead: the thread that waits for answers, 0 = none
  _waits_in        by the main thread, where handlers run: the condition that it waits in
  hurried          by any thread: the manager is to lead; it takes that back
  _moved           when something came, under the lock; infinite, by the manager: that was said
  over             with both, by the manager: the ring is given back, and nobody leads any more
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ipcmap._core import stall_log
from ipcmap._deadline import Deadline
from ipcmap.assignments import STUCK, Assignments
from ipcmap.errors import BusyError
from ipcmap.messages import CHECKED, DIED, TAIL, UNPREPARED, WORKER, forms_of, load
from ipcmap.ring import Ring
from ipcmap.seats import Seat
from ipcmap.tasks import MapCall, Owner, is_main_thread, wait_until

__all__ = ["LED", "Answers"]

_log = logging.getLogger("ipcmap")
LED = 0.01  # seconds between two looks of who does not lead, while tasks are under way
_SLICE = 0.1  # seconds that anybody leads on end


class Answers(Assignments):
    """The answers, and whose turn it is to take them; the tasks that they end, too.

    Args:
        results: The ring of answers.
        max_workers: The most at a time.
        engine: Of the ring.
    """

    def __init__(self, results: Ring, max_workers: int, engine: str) -> None:
        super().__init__(results, max_workers)
        self.numbers = itertools.count(1)  # of tasks
        self.dump, self.load = forms_of(results)
        self._in_one_step = engine == "native"
        self.lead = threading.Lock()
        self._leader = 0
        self._waits_in: threading.Condition | None = None
        self.led = 0
        self._taken: deque[list[bytes]] = deque()
        self._answered: set[MapCall] = set()
        self.noticed: deque[tuple[int, int, int]] = deque()
        self.hurried = False
        self._moved = time.monotonic()
        self.over = False
        self.attend: Callable[[], None]  # the manager's, who waits here itself where it calls back

    def pull(
        self, done: Callable[[], bool], condition: threading.Condition, deadline: Deadline
    ) -> None:
        """Take answers for all until ``done()``, or until the deadline; or wait until another has.

        Raises:
            BusyError: A signal handler has interrupted a call that takes answers or tasks.
            RuntimeError: This is a child of the process that made it.
        """
        while not done():
            self._check_owner()
            self._check_calls()
            left = deadline.slice(_SLICE)
            if self.lead.locked() or self.over or not self._may_lead():
                self._wait(done, condition, min(left, LED))
            else:
                with self.lead:
                    self.led += 1
                    if not (self.finished or self.over or done()):
                        self.pump(left)
            self.settle()
            if not left:
                return
            if not done():
                self.attend()

    def _wait(
        self, done: Callable[[], bool], condition: threading.Condition, timeout: float
    ) -> None:
        before = self._waits_in
        if is_main_thread():
            self._waits_in = condition
        try:
            wait_until(done, condition, timeout)
        finally:
            if is_main_thread():
                self._waits_in = before

    def _may_lead(self) -> bool:
        """Return whether no answer is lost if a signal handler raises; else have it done."""
        if self._in_one_step or not is_main_thread():
            return True
        if not self.hurried:
            self.hurry()
        return False

    def _check_calls(self) -> None:
        leads = self._leader == threading.get_ident() and self.lead.locked()
        waits_in: Any = self._waits_in  # whoever settles needs it
        if leads or self.lock._is_owned() or (waits_in is not None and waits_in._is_owned()):
            raise BusyError(
                "a signal handler cannot wait for an executor amid whose own call it was called: "
                f"pid={self.pid}; return from the handler first"
            )

    def collect(self) -> None:
        """Take what has come, without waiting; unless another does."""
        if not (self.lead.locked() or self.lock._is_owned()) and self._may_lead():
            with self.lead:
                if not self.over and len(self.results):
                    self.led += 1
                    self.pump(0)

    def pump(self, timeout: float) -> None:
        """Take what has come, waiting for the first; called with the lead."""
        get_many = self.results.get_many
        self._leader = threading.get_ident()
        try:
            # In one step, where that is written in C: what was taken is never lost to
            # an exception from a signal handler.
            self._taken.extend(map(get_many, (None,), (timeout,)))
        except queue.Empty:
            pass
        finally:
            try:
                self._use_answers()
            finally:
                self._leader = 0

    def _use_answers(self) -> None:
        """Deal with what was taken, and give the workers more."""
        with self.lock:
            broken_off = self.changing
            self.changing = True
            self.deal()
            if broken_off:
                return
            now = time.monotonic_ns()
            if now - self._looked > STUCK:
                self._free_the_stuck(now)
            if self.queue:
                self.feed()
            self.changing = False

    def deal(self) -> None:
        """Deal with what was taken; called with the lock."""
        if self._taken:
            self._moved = time.monotonic()
        taken, tasks, unpack, tail = self._taken, self.tasks, TAIL.unpack_from, -TAIL.size
        seat: Seat | None = None
        calls = self._answered
        while taken:
            for record in taken[0]:
                number, kind = unpack(record, tail)
                task = tasks.get(number)
                if task is None:
                    if not number:
                        self._notice(kind, record)
                    continue
                seat, owner = task.seat, task.owner
                if type(owner) is MapCall or isinstance(owner, MapCall):  # the first is fast
                    owner.answers[task.index] = record
                    if owner.waiters and owner not in calls:
                        calls.add(owner)
                else:
                    self.finished[number] = owner, record
                if seat is not None:
                    held = seat.held
                    held.pop(number, None)
                    if not held:
                        self.rest(seat)
                tasks.pop(number, None)
            taken.popleft()
        if seat is not None and self.seats.get(seat.index) is seat:
            self._measure(seat)
        for call in [*calls]:
            call.notify()
            calls.discard(call)

    def settle(self) -> None:
        """Give the futures their answers; callbacks are called, so nothing may be held."""
        finished = self.finished
        while finished:
            for number, (future, answer) in list(finished.items()):
                future.settle(answer)
                finished.pop(number, None)

    def finish(self, owner: Owner) -> None:
        """Have an owner settled, whose answers have all been dealt with; called with the lock."""
        self.finished[next(self.numbers)] = owner, b""

    def _notice(self, kind: int, record: bytes) -> None:
        if kind in (DIED, CHECKED):
            self.noticed.append((kind, *WORKER.unpack_from(record)))
            self.wake()
        elif kind == UNPREPARED:
            error = load(record)
            self.break_down(
                f"initializer of a worker failed: {type(error).__name__}: {error}", error
            )

    def say_if_stalled(self) -> None:
        """Log what each worker does, where nothing has come for long; the manager's alone."""
        stalled = time.monotonic() - self._moved
        if self.tasks and stalled >= stall_log.SECONDS:
            self._moved = math.inf  # once, until something comes
            _log.warning(
                "pid %d has waited %.1f s for any worker of an executor: %s",
                os.getpid(), stalled, self.statistics().describe(time.time()),
            )  # fmt: skip

    def hurry(self) -> None:
        """Have the manager take the lead now: somebody waits for answers and takes none."""
        self.hurried = True
        self.wake()
