"""The executor's inside: tasks come, answers come back, the dead are noticed.

All answers come through one ring. Whoever waits for one takes them all, for everybody, while
it holds the *lead*; where nobody does, the manager, a thread, takes the lead itself.
So a call that waits for its own answer is woken by the worker, and by no thread in between.

That a worker died is noticed by the manager, through its pidfd, and said in the same ring: when
that notice is taken, every answer of the worker has been. The manager buries it then, whoever
took the notice: a burial cannot be done again, and no signal handler breaks off what a thread
other than the main one does.

Guards
  lock   all that is said of tasks, seats and the queue. No code of a caller runs under it.
  lead   the ring of answers, and the order in which they are dealt with. Who holds it may
         wait for answers; the lock is taken inside it, and never the other way round.
What an exception of a signal handler breaks off is done again: an answer stays in ``_taken``
until it is dealt with, and in ``_finished`` until its future has it, and a call in ``_answered``
until it is told; and what is said of tasks and seats is mended (workforce.py). Where the ring of
answers is plain Python, an answer could be lost between the ring and ``_taken``: there the main
thread, which handlers run in, never leads.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import math
import os
import queue
import select
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util
from typing import Any

from ipcmap._core import stall_log
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.assignments import STUCK
from ipcmap.errors import BusyError
from ipcmap.messages import CHECKED, DIED, TAIL, UNPREPARED, forms_of, load
from ipcmap.seats import Seat
from ipcmap.tasks import Function, MapCall, Owner, Task, is_main_thread
from ipcmap.worker import Blueprint
from ipcmap.workforce import Workforce

__all__ = ["Dispatcher"]

_log = logging.getLogger("ipcmap")
_WORKER = struct.Struct("<QQ")  # index and pid
_LOOK = 0.001  # seconds until the manager leads where nobody does
_LED = 0.01  # seconds between two looks of the manager while tasks are under way
_QUIET = 50  # looks without a task, until the manager sleeps
_SLICE = 0.1  # seconds that anybody leads on end


class Dispatcher(Workforce):
    """Tasks, and who takes the answers.

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
        self._functions = itertools.count(1)
        self.manager: threading.Thread | None = None
        self._in_one_step = blueprint.engine == "native"
        self._lead = threading.Lock()
        self._leader = 0  # the thread that waits for answers in pull()
        self._waits_in: threading.Condition | None = None  # the main thread, where handlers run
        self._led = 0  # how often somebody other than the manager has led
        self._taken: deque[list[bytes]] = deque()
        self._answered: set[MapCall] = set()  # and not told so
        self._notices: deque[bytes] = deque()  # to be put behind the answers that are there
        # What of them was taken: kind, index and pid.
        self._noticed: deque[tuple[int, int, int]] = deque()
        self._rounds = 0  # how often workers were forked, if any were wanting
        self._awaiting: deque[threading.Lock] = deque()  # of those who wait for the next of them
        self._hurried = self._asleep = self._calls_back = False
        self._moved = time.monotonic()  # when something came, or the last line was said
        self._over = False
        self.ends_at_exit = False  # and with its last handle; or its tasks are done first
        self._wake = -1
        _dispatchers.add(self)
        if _exits_of != [self.pid]:
            # A process of multiprocessing ends without atexit, and waits for its children.
            _exits_of[:] = [self.pid]
            util.Finalize(None, _end_all, exitpriority=10)

    # Tasks come

    def function(self, function: Callable[..., Any], pickled: bytes) -> Function:
        """Number a function."""
        return Function(next(self._functions), function, pickled)

    def check(self) -> None:
        """Raise where it takes no tasks any more."""
        self._check_owner()
        if self.broken is not None:
            raise BrokenProcessPool(self.broken)
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _check_owner(self) -> None:
        if not self.is_ours:
            raise RuntimeError(
                f"executor belongs to the process that made it: pid={os.getpid()}, made by "
                f"pid={self.pid}; make another here"
            )

    def add(self, tasks: Sequence[Task], *, timed: bool) -> None:
        """Take tasks on; ``timed`` = some of them have a timeout.

        Raises:
            BrokenProcessPool: No worker can be had.
            RuntimeError: It was shut down.
        """
        self._check_owner()  # by no lock, which a thread may have had when this one was forked
        with self.lock:
            self.check()
            if self.manager is None or self.manager.ident is None:
                self._begin()
            interrupts = self._changing
            self._changing = True
            self._timed |= timed
            if not self.tasks:
                self._moved = time.monotonic()
            for task in tasks:
                self.tasks[task.number] = task
            self.queue.extend(tasks)
            if not interrupts:
                self._feed()
                self._changing = False
        if interrupts or self._asleep:
            self.wake()
        if self.lacks_workers:
            self._await_workers()

    def _await_workers(self) -> None:
        """Wait until the manager has had workers forked that are wanting, or has tried to."""
        # It needs the lock, which this thread may have: it has been interrupted by a handler.
        if self.lock._is_owned() or self.manager is threading.current_thread():
            return
        # Not a Condition: a handler that raises in its __enter__, which is Python, leaves it locked.
        gate = threading.Lock()
        gate.acquire()
        rounds = self._rounds
        self._awaiting.append(gate)
        while self._rounds == rounds and self.lacks_workers and not self._calls_back:
            if gate.acquire(timeout=_LED):
                break

    def staff(self) -> None:
        """Fork all workers, now and whenever one has ended.

        Raises:
            BrokenProcessPool: No worker can be forked.
            RuntimeError: It was shut down.
        """
        with self.lock:
            self.check()
            if self.manager is None or self.manager.ident is None:
                self._begin()
            self.keeps_all = True
        self.wake()
        self._await_workers()
        if not self._has_hired:
            self.check()

    def _begin(self) -> None:
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self.manager = threading.Thread(target=self._manage, name="ipcmap: executor", daemon=True)
        self.manager.start()

    def wake(self) -> None:
        """Have the manager look; safe in a finalizer and in a signal handler."""
        if self._wake >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake, 1)

    def hurry(self) -> None:
        """Have the manager take the lead now: somebody waits for answers and takes none."""
        self._hurried = True
        self.wake()

    # Answers come back

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
                self._wait(done, condition, min(left, _LED))
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
        # Not by the condition's own wait, which is Python: a signal handler that raises in it may
        # have the lock let go twice.
        gate, waiters = threading.Lock(), condition._waiters  # type: ignore[attr-defined]
        gate.acquire()
        before = self._waits_in
        if is_main_thread():
            self._waits_in = condition
        try:
            with condition:
                if done():
                    return
                waiters.append(gate)
            gate.acquire(timeout=timeout)
        finally:
            if is_main_thread():
                self._waits_in = before
            with condition, contextlib.suppress(ValueError):  # who was woken is none
                waiters.remove(gate)

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

    def _call_back(self) -> None:
        """Settle, as the manager: who waits for it may hold what a callback waits for."""
        if self._finished:
            self._calls_back = True
            try:
                self.settle()
            finally:
                self._calls_back = False

    def finish(self, owner: Owner) -> None:
        """Have an owner settled, whose answers have all been dealt with; called with the lock."""
        self._finished[next(self.numbers)] = owner, b""

    def nudge(self) -> None:
        """Have whoever waits for answers look whether there is need to."""
        with self.lock:
            self._nudge()

    def _notice(self, kind: int, record: bytes) -> None:
        if kind in (DIED, CHECKED):
            self._noticed.append((kind, *_WORKER.unpack_from(record)))
            self.wake()
        elif kind == UNPREPARED:
            error = load(record)
            self._break(f"initializer of a worker failed: {type(error).__name__}: {error}", error)

    # The manager

    def _manage(self) -> None:
        with self.lock:
            if self.manager is not threading.current_thread():
                return  # its start was broken off, and another begun
        try:
            self._look_after_all()
        except BaseException as error:
            with self.lock:
                self._break(f"manager of the executor failed: {error!r}", error)
            self.settle()
            raise
        finally:
            self._finish()

    def _look_after_all(self) -> None:
        quiet, led, wait = 0, self._led, _LOOK
        while not (self.closing and not self.tasks and not self._finished):
            self._asleep = quiet >= _QUIET and not self.tasks and not self._notices
            if self._asleep and (self.tasks or self.closing):
                self._asleep = False
            for descriptor, _ in self._epoll.poll(None if self._asleep else wait):
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                else:
                    self._note_death(descriptor)
            self._asleep = False
            self._send_notices()
            if self._accused:
                self._execute_the_condemned()
            if self._noticed or self._changing or self.lacks_workers:
                self._see_to_seats()
            if self._given_up or self._clearing:
                self._do_what_was_left()
            self._look_at_the_clock()
            self._kill_who_stayed()
            self._say_if_stalled()
            self._call_back()
            quiet = 0 if self.tasks else quiet + 1
            if self._lead.locked():
                wait = _LED
            elif (self.tasks or len(self._results)) and (
                self._hurried or self._led == led or self.closing
            ):
                with self._lead:
                    self._pump(_LED)
                self._call_back()
                wait = 0
                if not self.tasks:
                    self._hurried = False
            else:
                # The longer others lead, the longer it lets them.
                wait = _LOOK if self._led == led else min(_LED, max(_LOOK, 2 * wait))
            led = self._led

    def _say_if_stalled(self) -> None:
        """Log what each worker does, where nothing has come for long."""
        stalled = time.monotonic() - self._moved
        if self.tasks and stalled >= stall_log.SECONDS:
            self._moved = math.inf  # once, until something comes
            _log.warning(
                "pid %d has waited %.1f s for any worker of an executor: %s",
                os.getpid(), stalled, self.statistics().describe(time.time()),
            )  # fmt: skip

    def _watch(self, seat: Seat) -> None:
        self._epoll.register(seat.process.sentinel, select.EPOLLIN)

    def _note_death(self, descriptor: int) -> None:
        """Note that the worker of a pidfd has ended."""
        for seat in self.seats.values():
            if seat.process.sentinel == descriptor:
                self._epoll.unregister(descriptor)
                self._note(seat, DIED)
                return

    def _check_on(self, seat: Seat) -> None:
        self._note(seat, CHECKED)

    def _note(self, seat: Seat, kind: int) -> None:
        self._notices.append(_WORKER.pack(seat.index, seat.process.pid or 0) + TAIL.pack(0, kind))

    def _send_notices(self) -> None:
        """Put notices behind the answers that are there, as far as there is room."""
        while self._notices:
            try:
                self._results.put(self._notices[0], 0)
            except queue.Full:
                return
            self._notices.popleft()

    def _see_to_seats(self) -> None:
        """Mend what was broken off; bury the dead whose answers have been dealt with; hire."""
        with self.lock:
            if self._changing:
                self._deal()
                self._mend()
            self._changing = True
            noticed = bool(self._noticed)
            while self._noticed:
                kind, index, pid = self._noticed.popleft()
                seat = self.seats.get(index)
                if seat is not None and seat.process.pid == pid:  # twice is once
                    self._bury(seat) if kind == DIED else self._resume(seat)
            self._feed()
            while self._hire():
                self._feed()
            self._changing = False
            self._rounds += 1
        while self._awaiting:
            self._awaiting.popleft().release()
        if noticed:
            self._nudge()

    # The end

    def shutdown(self, *, wait: bool) -> None:
        """Take no more tasks; end when all are done.

        Raises:
            BusyError: To wait, in a signal handler that has interrupted a call of it.
        """
        if not self.is_ours:
            return
        with self.lock:
            self.closing = True
            manager = self.manager
        if manager is None or manager.ident is None:
            self._finish()
            return
        self.wake()
        if wait and manager is not threading.current_thread():
            self._check_calls()
            manager.join()

    def let_go(self) -> None:
        """Be shut down, since nobody can give it a task any more; called by a finalizer."""
        if self.is_ours:
            self.closing = True
            if self.ends_at_exit:
                self._grace = Deadline(0)
            if self.manager is None or self.manager.ident is None:
                self._finish()
            else:
                self.wake()

    def _finish(self) -> None:
        # Whoever leads waits in the ring that is given back here.
        with self._lead, self.lock:
            if self._over:
                return
            self._over = True
            self._dismiss_all()
        self._see_them_off()
        with self._lead, self.lock:
            self._give_back()
            if self._wake >= 0:
                self._epoll.close()
                os.close(self._wake)
                self._wake = -1


_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_exits_of: list[int] = []  # the pid whose end calls _end_all


@atexit.register
def _end_all() -> None:
    """Let the tasks of this process's executors be done before it exits; not after a Ctrl-C.

    Those of a pool are not, as of multiprocessing's.
    """
    interrupted = _was_interrupted()
    for dispatcher in list(_dispatchers):
        if dispatcher.is_ours:
            if interrupted or dispatcher.ends_at_exit:
                dispatcher.drop_waiting()
                dispatcher.settle()
                dispatcher.end_workers(kill=True)
            dispatcher.shutdown(wait=True)


def _was_interrupted() -> bool:
    """Return whether the program ends of a Ctrl-C, or of what that broke in its way up."""
    error: BaseException | None = getattr(sys, "last_value", None)
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
