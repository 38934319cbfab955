"""The workers of an executor: who there is, and what becomes of the dead.

A worker says in its cell which task it has in hand (worker.py), so that the death of a worker is
the loss of that task alone.

Hiring and burying cannot be done again: the manager alone does them.
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
_STILLBORN = 3  # workers in a row, at least, that died before they were ready
_GRACE = 5.0  # seconds for a worker to end of SIGTERM
_LOOK = 0.1  # seconds between two looks whether that is over


class Workforce(Assignments):
    """The half of an executor that nobody waits for.

    Args:
        blueprint: What every worker has.
        arena: Where the rings are.
        max_workers: The most at a time.
        early: Whether the zygote is that of ``prefork()``, if there is one.
    """

    def __init__(
        self, blueprint: Blueprint, arena: Arena, max_workers: int, *, early: bool = False
    ) -> None:
        super().__init__(blueprint.results, max_workers)
        self._blueprint, self._arena = blueprint, arena
        self._cells = blueprint.cells()
        self._tried: dict[int, int] = {}  # how often a task was lost, and is done again
        self._overdue: set[int] = set()  # tasks whose workers are killed for them
        self._stillborn = 0
        self._has_hired = False
        self._killed = False  # by terminate_workers or kill_workers
        self._grace: Deadline | None = None  # after which who was terminated is killed
        self._zygote: Zygote | None = zygote_for(blueprint.work, early=early)

    def _watch(self, seat: Seat) -> None:
        """Look after a worker from now on: a part of the subclass."""
        raise NotImplementedError

    # Workers come

    def _hire(self) -> bool:
        """Have another worker forked, if one is wanting; return whether there is one more."""
        if not self.lacks_workers:
            return False
        index = next(number for number in itertools.count() if number not in self.seats)
        seat = Seat(index, self._cells, self._arena)
        try:
            seat.process = self._forked(seat)
        except (OSError, ValueError) as error:
            seat.ring.destroy()
            if not self.seats:
                self._break(f"no worker can be forked: {error}", error)
            return False
        self.seats[index] = self._idle[index] = seat
        self._has_hired = True
        self._watch(seat)
        return True

    def _forked(self, seat: Seat) -> ZygoteProcess:
        work, args = self._blueprint.work, (seat.index, seat.ring)
        name = f"ipcmap: worker {seat.index}"
        while True:
            zygote = self._zygote = self._zygote or Zygote(work)
            try:
                process = ZygoteProcess(zygote, work, args, name)
                process.start()
                return process
            except BrokenPipeError:
                _log.warning("zygote of an executor died: pid %d; another is forked", zygote.pid)
                zygote.close()
                self._zygote = None

    # Workers die

    def _bury(self, seat: Seat) -> None:
        """Replace a dead worker; what it had in hand is lost, or done again."""
        # Of those who are killed while they start, nothing follows if others come that far.
        ready = any(one.ready for one in self.seats.values())
        record, lost, rest = seat.clear()
        self.seats.pop(seat.index, None)
        self._idle.pop(seat.index, None)
        if self._killed:  # taken, and not begun
            for task in rest:
                self._end(task, CancelledError())
        else:
            self.queue.extendleft(reversed(rest))
        if lost is not None:
            self._lose(lost, record)
        if ready:
            self._stillborn = 0
        elif not seat.condemned:
            self._stillborn += 1
        if self._stillborn >= max(_STILLBORN, self.max_workers) and not self.closing:
            self._break(
                f"workers die before they are ready: {self._stillborn} in a row, the last: {record}; "
                "see what the initializer does",
                None,
            )

    def _lose(self, task: Task, record: Any) -> None:
        overdue = task.number in self._overdue
        self._overdue.discard(task.number)
        if task.number not in self.tasks:  # cancelled
            self._tried.pop(task.number, None)
            return
        tried = self._tried.pop(task.number, 0)
        if tried < task.owner.retries and not self._killed:
            self._tried[task.number] = tried + 1
            self.queue.appendleft(task)
        elif overdue:
            self._end(
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
            self._end(task, error)

    def _look_at_the_clock(self) -> None:
        """Kill the workers whose tasks take longer than they may."""
        if not self._timed:
            return
        now = time.monotonic_ns()
        with self.lock:
            for seat in self.seats.values():
                task = seat.in_hand()
                timeout = task.owner.timeout if task else None
                if task is None or timeout is None or seat.condemned:
                    continue
                if now - seat.begun() > timeout * 1e9 and seat.condemn(task):
                    self._overdue.add(task.number)

    def end_workers(self, *, kill: bool) -> None:
        """Send every worker a signal that ends it."""
        if not self.is_ours:
            return
        with self.lock:
            self._killed = True
            for seat in self.seats.values():
                seat.condemned = True
                if kill:
                    seat.process.kill()
                else:
                    seat.terminate()
            self._grace = None if kill else Deadline(_GRACE)

    def _kill_who_stayed(self) -> None:
        """Kill whom SIGTERM has not ended in time."""
        if self._grace is not None and not self._grace.remaining():
            self.end_workers(kill=True)

    def _dismiss_all(self) -> None:
        """Let the workers go."""
        if self.broken is not None:
            self.end_workers(kill=True)
        for seat in self.seats.values():
            seat.dismiss()

    def _see_them_off(self) -> None:
        """Wait until all workers have ended; without the lock, which whoever kills them needs."""
        for seat in list(self.seats.values()):
            while seat.process.exit_record is None:
                self._kill_who_stayed()
                seat.process.join(_LOOK)

    def _give_back(self) -> None:
        while self.seats:
            self.seats.popitem()[1].clear()
        self._idle.clear()
        if self._zygote is not None and self._zygote.target is not None:
            self._zygote.close()
        self._zygote = None
        with contextlib.suppress(CorruptError):
            self._results.destroy()
        del self._cells
        self._blueprint.block.free()
