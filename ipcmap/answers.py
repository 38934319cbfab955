"""The answers of an executor: who takes them, and whom they are for.

All answers come through one ring. Whoever waits for one takes them all, for everybody, while
it holds the *lead*; where nobody does, the manager, a thread, takes the lead itself.
So a call that waits for its own answer is woken by the worker, and by no thread in between.

Guards
  lock   all that is said of tasks, seats and the queue. No code of a caller runs under it.
  lead   the ring of answers, and the order in which they are dealt with. Who holds it may
         wait for answers; the lock is taken inside it, and never the other way round.
What an exception of a signal handler breaks off is done again: an answer stays in ``_taken``
until it is dealt with, and in ``_finished`` until its future has it, and a call in ``_answered``
until it is told; and what is said of tasks and seats is mended (assignments.py). Where the ring of
answers is plain Python, an answer could be lost between the ring and ``_taken``: there the main
thread, which handlers run in, never leads.
"""

from __future__ import annotations

import itertools
import os
import queue
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.assignments import STUCK
from ipcmap.errors import BusyError
from ipcmap.messages import CHECKED, DIED, TAIL, UNPREPARED, forms_of, load
from ipcmap.seats import Seat
from ipcmap.tasks import MapCall, Owner
from ipcmap.worker import Blueprint
from ipcmap.workforce import Workforce

__all__ = ["LED", "WORKER", "Answers"]

WORKER = struct.Struct("<QQ")  # index and pid
LED = 0.01  # seconds between two looks of the manager while tasks are under way
_SLICE = 0.1  # seconds that anybody leads on end


class Answers(Workforce):
    """The answers, and who takes them.

    Args:
        blueprint: What every worker has.
        arena: Where the rings are.
        max_workers: The most at a time.
        early: As of a workforce.
    """

    def __init__(
        self, blueprint: Blueprint, arena: Arena, max_workers: int, *, early: bool = False
    ) -> None:
        super().__init__(blueprint, arena, max_workers, early=early)
        self.numbers = itertools.count(1)  # of tasks
        self.dump, self.load = forms_of(self._results)
        self._in_one_step = blueprint.engine == "native"
        self._lead = threading.Lock()
        self._leader = 0  # the thread that waits for answers in pull()
        self._waits_in: threading.Condition | None = None  # the main thread, where handlers run
        self._led = 0  # how often somebody other than the manager has led
        self._taken: deque[list[bytes]] = deque()
        self._answered: set[MapCall] = set()  # and not told so
        # What of the notices was taken: kind, index and pid.
        self._noticed: deque[tuple[int, int, int]] = deque()
        self._hurried = False
        self._moved = time.monotonic()  # when something came, or the last line was said
        self._over = False

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
            if self._lead.locked() or self._over or not self._may_lead():
                self._wait(done, condition, min(left, LED))
            else:
                with self._lead:
                    self._led += 1
                    if not (self._finished or self._over or done()):
                        self._pump(left)
            self.settle()
            if not left:
                return

    def _wait(
        self, done: Callable[[], bool], condition: threading.Condition, timeout: float
    ) -> None:
        before = self._waits_in
        if threading.current_thread() is threading.main_thread():
            self._waits_in = condition
        with condition:
            if not done():
                condition.wait(timeout)
        if threading.current_thread() is threading.main_thread():
            self._waits_in = before

    def _may_lead(self) -> bool:
        """Return whether no answer is lost if a signal handler raises; else have it done."""
        if self._in_one_step or threading.current_thread() is not threading.main_thread():
            return True
        if not self._hurried:
            self.hurry()
        return False

    def _check_calls(self) -> None:
        leads = self._leader == threading.get_ident() and self._lead.locked()
        waits_in: Any = self._waits_in  # whoever settles needs it
        if leads or self.lock._is_owned() or (waits_in is not None and waits_in._is_owned()):
            raise BusyError(
                "a signal handler cannot wait for an executor amid whose own call it was called: "
                f"pid={self.pid}; return from the handler first"
            )

    def _check_owner(self) -> None:
        if not self.is_ours:
            raise RuntimeError(
                f"executor belongs to the process that made it: pid={os.getpid()}, made by "
                f"pid={self.pid}; make another here"
            )

    def collect(self) -> None:
        """Take what has come, without waiting; unless another does."""
        if not (self._lead.locked() or self.lock._is_owned()) and self._may_lead():
            with self._lead:
                if not self._over and len(self._results):
                    self._led += 1
                    self._pump(0)

    def _pump(self, timeout: float) -> None:
        """Take what has come, waiting for the first; called with the lead."""
        get_many = self._results.get_many
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
            broken_off = self._changing
            self._changing = True
            self._deal()
            if broken_off:
                return
            now = time.monotonic_ns()
            if now - self._looked > STUCK:
                self._free_the_stuck(now)
            if self.queue:
                self._feed()
            self._changing = False

    def _deal(self) -> None:
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
                    self._finished[number] = owner, record
                if seat is not None:
                    held = seat.held
                    held.pop(number, None)
                    if not held:
                        self._rest(seat)
                tasks.pop(number, None)
            taken.popleft()
        if seat is not None and self.seats.get(seat.index) is seat:
            self._measure(seat)
        for call in [*calls]:
            call.notify()
            calls.discard(call)

    def settle(self) -> None:
        """Give the futures their answers; callbacks are called, so nothing may be held."""
        finished = self._finished
        while finished:
            for number, (future, answer) in list(finished.items()):
                future.settle(answer)
                finished.pop(number, None)

    def finish(self, owner: Owner) -> None:
        """Have an owner settled, whose answers have all been dealt with; called with the lock."""
        self._finished[next(self.numbers)] = owner, b""

    def nudge(self) -> None:
        """Have whoever waits for answers look whether there is need to."""
        with self.lock:
            self._nudge()

    def _notice(self, kind: int, record: bytes) -> None:
        if kind in (DIED, CHECKED):
            self._noticed.append((kind, *WORKER.unpack_from(record)))
            self.wake()
        elif kind == UNPREPARED:
            error = load(record)
            self._break(f"initializer of a worker failed: {type(error).__name__}: {error}", error)

    def hurry(self) -> None:
        """Have the manager take the lead now: somebody waits for answers and takes none."""
        self._hurried = True
        self.wake()
