"""The tasks of an executor: which there are, which worker has each, and what is given up.

A worker has a ring of tasks of its own, which is filled ahead: by one task at a time where they
are long, by many where they are short. What lies there and was not taken can be taken
back, for another worker, or for good.

All of it is guarded by one lock, under which no code of a caller runs but that of signal
handlers and finalizers, in the thread that holds it.

So whoever changes it says so first (``changing``) and takes that back at the end. Who finds it
said has interrupted such a change, or comes after one that was broken off by a handler's
exception: that one leaves the rest to the manager, whose thread no handler runs in. It finds a
home again for every task that has none, and finds out what each worker has whose ring was
being changed: a task that is not done is never in no list for long.

Shared fields, under the lock if nothing else is said
  tasks      all that are not done, by number
  queue      those that no worker has; and some that are done, which nobody is given
  seats      the workers, and what each has; the manager alone adds and removes (workforce.py)
  idle       the seats whose workers have nothing to do
  finished   answers whose owners do not have them; taken out without the lock, and twice is once
  changing   a change of the others is under way, or was broken off
  timed      some tasks have a timeout; never taken back
  keeps_all  workers are forked before there are tasks for them; never taken back
  broken     why it is of no use any more; the first reason stays
  closing    no task is taken on any more; said without the lock, too, and never taken back
  bell       the descriptor that wakes the manager, from its begin to its end, -1 else
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ipcmap.errors import ArenaFull, IpcmapError
from ipcmap.executor_statistics import ExecutorStatistics
from ipcmap.messages import NUDGE, TAIL
from ipcmap.ring import Ring
from ipcmap.seats import Seat
from ipcmap.tasks import MapCall, Owner, Task

__all__ = ["STUCK", "Assignments"]

_MOST_AHEAD = 512  # tasks that a worker holds
_AHEAD = 500_000  # nanoseconds of work that it holds
STUCK = 5_000_000  # nanoseconds: nothing waits behind a task that takes longer
_PATIENCE = 0.01  # seconds for a task that was taken to be begun


class Assignments:
    """The tasks that are not done, and who has what of them.

    Args:
        results: Where answers come.
        max_workers: The most at a time.
    """

    def __init__(self, results: Ring, max_workers: int) -> None:
        self.pid = os.getpid()
        self.max_workers = max_workers
        self.broken: str | None = None
        self.closing = False
        self.seats: dict[int, Seat] = {}
        self.queue: deque[Task] = deque()
        self.tasks: dict[int, Task] = {}
        self.lock: Any = threading.RLock()
        self.changing = False
        self._given_up: deque[MapCall] = deque()  # by finalizers amid a change
        self._clearing = False  # drop_waiting() came amid a change
        self.results = results
        self.idle: dict[int, Seat] = {}
        self.finished: dict[int, tuple[Owner, bytes | BaseException]] = {}
        self._accused: deque[Seat] = deque()  # that drop() may have condemned
        self._mean = float(_AHEAD)  # nanoseconds that a task takes
        self._ahead = 1
        self._looked = 0
        self.timed = False
        self.keeps_all = False
        self.bell = -1

    @property
    def is_ours(self) -> bool:
        """Whether this process made it: a child has copies of what its parent uses."""
        return self.pid == os.getpid()

    def _check_owner(self) -> None:
        if not self.is_ours:
            raise RuntimeError(
                f"executor belongs to the process that made it: pid={os.getpid()}, made by "
                f"pid={self.pid}; make another here"
            )

    def statistics(self) -> ExecutorStatistics:
        """Say what there is to do, and what each worker does."""
        self._check_owner()
        with self.lock:
            workers = tuple(self.seats[index].statistics() for index in sorted(self.seats))
            queued = sum(task.number in self.tasks for task in list(self.queue))
            return ExecutorStatistics(len(self.tasks), queued, workers)

    def wake(self) -> None:
        """Have the manager look; safe in a finalizer and in a signal handler."""
        if self.bell >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self.bell, 1)

    def nudge(self) -> None:
        """Have whoever waits for answers look whether there is need to."""
        with self.lock:
            self._nudge()

    def _nudge(self) -> None:
        """Have whoever leads look again; where the ring is damaged, nobody leads for long."""
        with contextlib.suppress(queue.Full, IpcmapError):
            self.results.put(TAIL.pack(0, NUDGE), 0)

    # Tasks go to workers: with the lock, amid a change

    def feed(self) -> None:
        """Give what waits to those who have nothing to do, and short tasks to others, too."""
        waiting, idle, tasks = self.queue, self.idle, self.tasks
        while waiting and idle:
            task = waiting.popleft()
            if task.number in tasks:  # and not cancelled
                _, seat = idle.popitem()
                if not self._give(seat, [task]):
                    return
        if waiting:
            if self._ahead > 1:
                self._stock_up()
            if self.lacks_workers:
                self.wake()

    @property
    def lacks_workers(self) -> bool:
        """Whether a worker is to be forked, for a task that waits or for those to come."""
        if len(self.seats) >= self.max_workers or self.broken is not None:
            return False
        return bool(self.queue and not self.idle) or (self.keeps_all and not self.closing)

    def _stock_up(self) -> None:
        """Put short tasks before workers that will soon have none."""
        now, ahead = time.monotonic_ns(), self._ahead
        seats = [
            seat
            for seat in self.seats.values()
            if 2 * len(seat.held) <= ahead
            and not (seat.condemned or seat.suspect)
            and not (seat.is_stuck(now, STUCK) or seat.has_long_tasks())
        ]
        if not seats:
            return
        room = ahead - max(len(seat.held) for seat in seats)
        share = min(room, -(-len(self.queue) // len(seats)))
        take, known = self.queue.popleft, self.tasks
        count = min(share * len(seats), len(self.queue))
        tasks = [task for _ in range(count) if (task := take()).number in known]
        for number, seat in enumerate(seats):
            self._give(seat, tasks[number :: len(seats)])

    def _give(self, seat: Seat, tasks: list[Task]) -> bool:
        """Give tasks to a worker; return whether there was room."""
        refused = seat.give(tasks)
        if refused is None:
            self.idle.pop(seat.index, None)
            return True
        back, error = refused
        self.rest(seat)
        if not isinstance(error, queue.Full) and (
            not isinstance(error, ArenaFull) or not any(one.held for one in self.seats.values())
        ):
            self.end_task(back.pop(0), error)
        self.queue.extendleft(reversed(back))
        return False

    def _withdraw(self, seat: Seat) -> list[Task]:
        """Take back what a worker has not taken; it may have nothing to do then."""
        tasks = seat.withdraw()
        self.rest(seat)
        return tasks

    def rest(self, seat: Seat) -> None:
        """Note that a worker has nothing to do, if that is so."""
        busy = seat.held or seat.condemned or seat.suspect
        if not busy and self.seats.get(seat.index) is seat:
            self.idle[seat.index] = seat

    def _measure(self, seat: Seat) -> None:
        """Learn how long tasks take, and so how many to put before a worker."""
        mean = seat.mean()
        if mean is not None:
            self._mean += (mean - self._mean) / 4 if mean < self._mean else mean - self._mean
            self._ahead = 1 + min(_MOST_AHEAD, int(_AHEAD / (self._mean + 1000)))

    def _free_the_stuck(self, now: int) -> None:
        """Take back what waits behind a task that takes long."""
        self._looked = now
        for seat in self.seats.values():
            if len(seat.held) > 1 and seat.is_stuck(now, STUCK):
                self.queue.extendleft(reversed(self._withdraw(seat)))

    def end_task(self, task: Task, error: BaseException) -> None:
        """Let a task be done, by an exception; only its first end counts. With the lock."""
        if task.number not in self.tasks:
            return
        owner = task.owner
        if isinstance(owner, MapCall):
            owner.answers[task.index] = error
            owner.notify()
        else:
            self.finished[task.number] = owner, error
        self.tasks.pop(task.number, None)

    # Tasks are given up

    def is_begun(self, task: Task) -> bool:
        """Return whether a worker has a task in hand."""
        if not self.is_ours:
            return False
        with self.lock:
            return task.seat is not None and task.seat.in_hand() is task

    def drop(self, task: Task) -> bool:
        """Give a task up, and kill the worker that has it in hand; ``False`` = it is done."""
        if not self.is_ours:
            return False
        until = time.monotonic() + _PATIENCE
        while True:
            with self.lock:
                if task.number not in self.tasks:
                    return False
                if not self.changing:
                    self.changing = True
                    dropped = self._drop(task)
                    self.changing = False
                    if dropped:
                        self._nudge()
                        return True
                else:
                    self.wake()
            # It was taken and not begun; or it is answered, and the answer not taken.
            if time.monotonic() > until:
                return False
            os.sched_yield()

    def _drop(self, task: Task) -> bool:
        seat = task.seat
        if seat is not None:
            self.queue.extendleft(reversed(self._withdraw(seat)))
        seat = task.seat
        if seat is not None:
            self._accused.append(seat)
        dropped = seat is None or seat.condemn(task)
        if dropped:
            self.end_task(task, CancelledError())
        self.feed()
        return dropped

    def drop_waiting(self) -> None:
        """Cancel every task that no worker has begun."""
        if not self.is_ours:
            return
        with self.lock:
            if self.changing:
                self._clearing = True
                self.wake()
                return
            self.changing = True
            self._end_all_that_wait()
            self.changing = False

    def _end_all_that_wait(self) -> None:
        for seat in self.seats.values():
            self.queue.extend(self._withdraw(seat))
        for task in list(self.queue):
            self.end_task(task, CancelledError())
        self.queue.clear()

    def drop_call(self, call: MapCall) -> None:
        """Give up the items of a call that no worker has begun: nobody asks for them any more."""
        if not self.is_ours:
            return
        with self.lock:
            if self.changing:
                self._given_up.append(call)
                self.wake()
                return
            self._drop_all_of(call)

    def _drop_all_of(self, call: MapCall) -> None:
        mine = [task for task in list(self.tasks.values()) if task.owner is call]
        if not mine:
            return
        self.changing = True
        for seat in self.seats.values():
            if any(task.owner is call for task in seat.held.values()):
                self.queue.extendleft(reversed(self._withdraw(seat)))
        for task in mine:
            if task.seat is None:
                self.tasks.pop(task.number, None)
        self.feed()
        self.changing = False

    def break_down(self, reason: str, cause: BaseException | None) -> None:
        """Be of no use any more: every task fails. With the lock."""
        self.broken = self.broken or reason
        for task in list(self.tasks.values()):
            error = BrokenProcessPool(reason)
            error.__cause__ = cause
            self.end_task(task, error)
        self.queue.clear()
        self.closing = True
        self._nudge()

    # A change was broken off: the manager's alone

    def mend(self) -> list[Seat]:
        """Find a home for every task; return the seats that :meth:`resume` is to be called for.

        That is to be when the answers that are there by now have been taken.
        """
        halfway = [seat for seat in self.seats.values() if seat.halfway]
        for seat in halfway:
            self.queue.extendleft(reversed(seat.suspend()))
        homes = {task.number for task in self.queue}.union(
            *(seat.held for seat in self.seats.values())
        )
        homeless = [task for number, task in self.tasks.items() if number not in homes]
        for task in homeless:
            task.seat = None
        self.queue.extendleft(reversed(homeless))
        self.idle.clear()
        for seat in self.seats.values():
            self.rest(seat)
        return halfway

    def resume(self, seat: Seat) -> bool:
        """Go on with a worker whose ring was being changed; return whether it is known what it has.

        ``False`` = it has begun a task just now: call this again, as after :meth:`mend`.
        """
        lost = seat.resume()
        if lost is None:
            return False
        self.queue.extendleft(reversed(lost))
        self.rest(seat)
        return True

    def execute_the_condemned(self) -> None:
        """Kill whom a signal handler's exception kept :meth:`drop` from killing."""
        if not self._accused:
            return
        with self.lock:
            while self._accused:
                seat = self._accused.popleft()
                if self.seats.get(seat.index) is seat:
                    seat.execute()

    def do_what_was_left(self) -> None:
        """Do what others found no time for."""
        for _ in range(len(self._given_up)):
            self.drop_call(self._given_up.popleft())
        if self._clearing:
            self._clearing = False
            self.drop_waiting()
