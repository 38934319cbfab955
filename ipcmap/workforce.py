"""The workers of an executor: how they come, and what becomes of the dead.

A worker says in its cell which task it has in hand (worker.py), so that the death of a worker is
the loss of that task alone.

Hiring and burying cannot be done again: the manager alone does them, whose thread no signal
handler runs in. Others call :meth:`Workforce.end`, and no more. Who hires, buries, dismisses or
gives back has the lock of the assignments; the rest take it where they need it.

Fields that others than the manager write
  _killed   under the lock: the workers are ended, and no task is done again; never taken back
  grace     under the lock, or by a finalizer: after it who was asked to end is killed
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from concurrent.futures import CancelledError
from typing import Any

from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.assignments import Assignments
from ipcmap.errors import CorruptError, WorkerDied
from ipcmap.seats import Seat
from ipcmap.tasks import Task
from ipcmap.worker import Blueprint
from ipcmap.zygote import Zygote, ZygoteProcess, zygote_for

__all__ = ["Workforce"]

_log = logging.getLogger("ipcmap")
_STILLBORN = 3  # workers in a row, at least, that died before they were ready; or zygotes
_GRACE = 5.0  # seconds for a worker to end of SIGTERM
_LOOK = 0.1  # seconds between two looks whether that is over
_PAUSE = 1.0  # seconds until another worker is tried for, where none could be forked


class Workforce:
    """Those who do the tasks.

    Args:
        assignments: Which tasks there are, and who has them.
        blueprint: What every worker has.
        arena: Where the rings of tasks are.
        early: Whether the zygote is that of ``prefork()``, if there is one.
    """

    def __init__(
        self, assignments: Assignments, blueprint: Blueprint, arena: Arena, *, early: bool
    ) -> None:
        self._assigned, self._seats = assignments, assignments.seats
        self._blueprint, self._arena = blueprint, arena
        self._cells = blueprint.cells()
        self._tried: dict[int, int] = {}  # how often a task was lost, and is done again
        self._overdue: set[int] = set()  # tasks whose workers are killed for them
        self._stillborn = 0
        self.has_hired = False
        self._pause = Deadline(0)
        self._killed = False
        self.grace: Deadline | None = None
        self._zygote: Zygote | None = zygote_for(blueprint.work, early=early)

    # Workers come

    def hire(self) -> Seat | None:
        """Have another worker forked, if one is wanting; return its seat.

        Where that fails the workers that there are go on, and it is tried again in a while.
        """
        if not self._assigned.lacks_workers or (self._seats and self._pause.remaining()):
            return None
        index = next(number for number in itertools.count() if number not in self._seats)
        seat = Seat(index, self._cells, self._arena)
        try:
            seat.process = self._forked(seat)
        except (OSError, ValueError) as error:
            seat.give_back()  # the error, which may be kept, has a traceback to it
            if not self._seats:
                self._assigned.break_down(f"no worker can be forked: {error}", error)
            self._pause = Deadline(_PAUSE)
            return None
        self._seats[index] = self._assigned.idle[index] = seat
        self.has_hired = True
        return seat

    def _forked(self, seat: Seat) -> ZygoteProcess:
        work, args = self._blueprint.work, (seat.index, seat.ring)
        name = f"ipcmap: worker {seat.index}"
        dead = 0
        while True:
            zygote = self._zygote = self._zygote or Zygote(work)
            try:
                process = ZygoteProcess(zygote, work, args, name)
                process.start()
                return process
            except BrokenPipeError:
                zygote.close()
                self._zygote = None
                dead += 1
                if dead == _STILLBORN:
                    raise
                _log.warning("zygote of an executor died: pid %d; another is forked", zygote.pid)

    # Workers die

    def bury(self, seat: Seat) -> None:
        """Replace a dead worker; what it had in hand is lost, or done again."""
        # Of those who are killed while they start, nothing follows if others come that far.
        ready = any(one.ready for one in self._seats.values())
        record, lost, rest = seat.clear()
        self._seats.pop(seat.index, None)
        self._assigned.idle.pop(seat.index, None)
        if self._killed:  # taken, and not begun
            for task in rest:
                self._assigned.end_task(task, CancelledError())
        else:
            self._assigned.queue.extendleft(reversed(rest))
        if lost is not None:
            self._lose(lost, record)
        if ready:
            self._stillborn = 0
        elif not seat.condemned:
            self._stillborn += 1
        if (
            self._stillborn >= max(_STILLBORN, self._assigned.max_workers)
            and not self._assigned.closing
        ):
            self._assigned.break_down(
                f"workers die before they are ready: {self._stillborn} in a row, the last: {record}; "
                "see what the initializer does",
                None,
            )

    def _lose(self, task: Task, record: Any) -> None:
        overdue = task.number in self._overdue
        self._overdue.discard(task.number)
        if task.number not in self._assigned.tasks:  # cancelled
            self._tried.pop(task.number, None)
            return
        tried = self._tried.pop(task.number, 0)
        if tried < task.owner.retries and not self._killed:
            self._tried[task.number] = tried + 1
            self._assigned.queue.appendleft(task)
        elif overdue:
            self._assigned.end_task(
                task,
                TimeoutError(
                    f"task took too long, and its worker was killed: task {task.name}, "
                    f"timeout={task.owner.timeout} s, pid={record.pid}; give it more (with_options)"
                ),
            )
        else:
            how = f"signal={record.signal}" if record.signal else f"exitcode={record.exitcode}"
            error = WorkerDied(
                f"worker died while it did a task: task {task.name}, pid={record.pid}, {how}; all "
                "others go on, and an executor tries again where it is asked to (retries=)",
                record,
                task.name,
            )
            if record.traceback:
                error.add_note(record.traceback)
            self._assigned.end_task(task, error)

    def look_at_the_clock(self) -> None:
        """Kill the workers whose tasks take longer than they may."""
        if not self._assigned.timed:
            return
        now = time.monotonic_ns()
        with self._assigned.lock:
            for seat in self._seats.values():
                task = seat.in_hand()
                timeout = task.owner.timeout if task else None
                if task is None or timeout is None or seat.condemned:
                    continue
                if now - seat.begun() > timeout * 1e9 and seat.condemn(task):
                    self._overdue.add(task.number)

    def end(self, *, kill: bool) -> None:
        """Send every worker a signal that ends it."""
        with self._assigned.lock:
            self._killed = True
            self._signal_all(kill=kill)
            self.grace = None if kill else Deadline(_GRACE)

    def _signal_all(self, *, kill: bool) -> None:
        for seat in self._seats.values():
            seat.condemned = True
            if kill:
                seat.process.kill()
            else:
                seat.terminate()

    def kill_who_stayed(self) -> None:
        """Kill whom SIGTERM has not ended in time."""
        if self.grace is not None and not self.grace.remaining():
            self.end(kill=True)

    def dismiss_all(self) -> None:
        """Let the workers go."""
        if self._assigned.broken is not None:
            self.end(kill=True)
        for seat in self._seats.values():
            seat.dismiss()

    def see_them_off(self) -> None:
        """Wait until all workers have ended; without the lock, which whoever kills them needs."""
        for seat in list(self._seats.values()):
            while seat.process.exit_record is None:
                self.kill_who_stayed()
                seat.process.join(_LOOK)

    def give_back(self) -> None:
        """Let go of all that is no more needed, when all workers have ended."""
        while self._seats:
            self._seats.popitem()[1].clear()
        self._assigned.idle.clear()
        if self._zygote is not None and self._zygote.target is not None:
            self._zygote.close()
        self._zygote = None
        with contextlib.suppress(CorruptError):
            self._assigned.results.destroy()
        del self._cells
        self._blueprint.block.free()
        del self._blueprint  # and what the initializer was given; this is one of a cycle
