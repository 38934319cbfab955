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
until it is dealt with, and in ``_finished`` until its future has it.
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
from ipcmap.errors import BusyError
from ipcmap.messages import DIED, TAIL, UNPREPARED, load
from ipcmap.seats import Seat
from ipcmap.tasks import Function, MapCall, Owner, Task
from ipcmap.worker import Blueprint
from ipcmap.workforce import STUCK, Workforce

__all__ = ["Dispatcher"]

_log = logging.getLogger("ipcmap")
_DEATH = struct.Struct("<QQ")  # index and pid
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
    """

    def __init__(self, blueprint: Blueprint, arena: Arena, max_workers: int) -> None:
        super().__init__(blueprint, arena, max_workers)
        self.numbers = itertools.count(1)  # of tasks
        self._functions = itertools.count(1)
        self.manager: threading.Thread | None = None
        self._lead = threading.Lock()
        self._leader = 0  # the thread that waits for answers in pull()
        self._led = 0  # how often somebody other than the manager has led
        self._taken: deque[bytes] = deque()
        self._noticed: deque[tuple[int, int]] = deque()  # index and pid of workers to bury
        self._hurried = self._asleep = False
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
        with self.lock:
            self.check()
            if self.manager is None:
                self._begin()
            self._timed |= timed
            if not self.tasks:
                self._moved = time.monotonic()
            for task in tasks:
                self.tasks[task.number] = task
            self.queue.extend(tasks)
            self._feed()
        if self._asleep:
            self.wake()

    def staff(self) -> None:
        """Fork all workers, now and whenever one has ended.

        Raises:
            BrokenProcessPool: No worker can be had.
            RuntimeError: It was shut down.
        """
        with self.lock:
            self.check()
            if self.manager is None:
                self._begin()
            self.keeps_all = True
            self._hire_all()
            self.check()

    def _begin(self) -> None:
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
            BusyError: A signal handler has interrupted such a call.
            RuntimeError: This is a child of the process that made it.
        """
        while not done():
            self._check_owner()
            left = deadline.slice(_SLICE)
            if self._lead.locked() or self._over:
                self._check_leader()
                with condition:
                    if not done():
                        condition.wait(min(left, _LED))
            else:
                with self._lead:
                    self._led += 1
                    if not (self._finished or self._over or done()):
                        self._leader = threading.get_ident()
                        try:
                            self._pump(left)
                        finally:
                            self._leader = 0
            self.settle()
            if not left:
                return

    def _check_leader(self) -> None:
        if self._leader == threading.get_ident():
            raise BusyError(
                "a signal handler cannot wait for the answers of an executor whose answers it "
                f"interrupted the wait for: pid={self.pid}; return from the handler first"
            )

    def collect(self) -> None:
        """Take what has come, without waiting; unless another does."""
        if not self._lead.locked():
            with self._lead:
                if not self._over and len(self._results):
                    self._led += 1
                    self._pump(0)

    def _pump(self, timeout: float) -> None:
        """Take what has come, waiting for the first; called with the lead."""
        get_many = self._results.get_many
        try:
            # In one step, where that is written in C: what was taken is never lost to
            # an exception from a signal handler.
            self._taken.extend(itertools.chain.from_iterable(map(get_many, (None,), (timeout,))))
        except queue.Empty:
            pass
        finally:
            with self.lock:
                self._deal()

    def _deal(self) -> None:
        now = time.monotonic_ns()
        if self._taken:
            self._moved = now / 1e9
        taken, tasks, unpack, size = self._taken, self.tasks, TAIL.unpack, TAIL.size
        seat: Seat | None = None
        calls: set[MapCall] | tuple[()] = ()
        while taken:
            record = taken[0]
            number, kind = unpack(record[-size:])
            if not number:
                self._notice(kind, record)
            else:
                task = tasks.get(number)
                if task is not None:
                    seat, owner = task.seat, task.owner
                    if isinstance(owner, MapCall):
                        owner.answers[task.index] = record
                        if owner.waiters:
                            calls = {owner, *calls}
                    else:
                        self._finished[number] = owner, record
                    if seat is not None:
                        seat.held.pop(number, None)
                        if not seat.held:
                            self._rest(seat)
                    tasks.pop(number, None)
            taken.popleft()
        if seat is not None and self.seats.get(seat.index) is seat:
            self._measure(seat)
        for call in calls:
            call.notify()
        if now - self._looked > STUCK:
            self._free_the_stuck(now)
        if self.queue:
            self._feed()

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
        if kind == DIED:
            self._noticed.append(_DEATH.unpack_from(record))
            self.wake()
        elif kind == UNPREPARED:
            error = load(record)
            self._break(f"initializer of a worker failed: {type(error).__name__}: {error}", error)

    # The manager

    def _manage(self) -> None:
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
        died: list[tuple[int, int]] = []
        while not (self.closing and not self.tasks and not self._finished):
            self._asleep = quiet >= _QUIET and not self.tasks and not died
            if self._asleep and (self.tasks or self.closing):
                self._asleep = False
            for descriptor, _ in self._epoll.poll(None if self._asleep else wait):
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                else:
                    died += self._dead(descriptor)
            self._asleep = False
            died = [death for death in died if not self._tell(death)]
            if self._accused:
                self._execute_the_condemned()
            if self._noticed:
                self._bury_the_noticed()
            self._look_at_the_clock()
            self._kill_who_stayed()
            self._say_if_stalled()
            self.settle()
            quiet = 0 if self.tasks else quiet + 1
            if self._lead.locked():
                wait = _LED
            elif (self.tasks or len(self._results)) and (
                self._hurried or self._led == led or self.closing
            ):
                with self._lead:
                    self._pump(_LED)
                self.settle()
                wait = 0
                if not self.tasks:
                    self._hurried = False
            else:
                wait = _LOOK
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

    def _dead(self, descriptor: int) -> list[tuple[int, int]]:
        """Return index and pid of the worker of a pidfd that is readable."""
        with self.lock:
            for seat in self.seats.values():
                if seat.process.sentinel == descriptor:
                    self._epoll.unregister(descriptor)
                    return [(seat.index, seat.process.pid or 0)]
        return []

    def _tell(self, death: tuple[int, int]) -> bool:
        """Put a notice behind the answers of a dead worker; return whether there was room."""
        try:
            self._results.put(_DEATH.pack(*death) + TAIL.pack(0, DIED), 0)
        except queue.Full:
            return False
        return True

    def _bury_the_noticed(self) -> None:
        """Replace the workers whose last answers have been dealt with; twice is once."""
        with self.lock:
            while self._noticed:
                index, pid = self._noticed.popleft()
                seat = self.seats.get(index)
                if seat is not None and seat.process.pid == pid:
                    self._bury(seat)
            if self.keeps_all and not self.closing:
                self._hire_all()
            self._feed()
            self._nudge()

    # The end

    def shutdown(self, *, wait: bool) -> None:
        """Take no more tasks; end when all are done.

        Raises:
            BusyError: To wait, in a signal handler that has interrupted a wait for answers.
        """
        if not self.is_ours:
            return
        with self.lock:
            self.closing = True
            manager = self.manager
        if manager is None:
            self._finish()
            return
        self.wake()
        if wait and manager is not threading.current_thread():
            self._check_leader()
            manager.join()

    def let_go(self) -> None:
        """Be shut down, since nobody can give it a task any more; called by a finalizer."""
        if self.is_ours:
            self.closing = True
            if self.ends_at_exit:
                self._grace = Deadline(0)
            if self.manager is None:
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
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for dispatcher in list(_dispatchers):
        if dispatcher.is_ours:
            if interrupted or dispatcher.ends_at_exit:
                dispatcher.drop_waiting()
                dispatcher.settle()
                dispatcher.end_workers(kill=True)
            dispatcher.shutdown(wait=True)
