"""A seat of an executor: one worker after another, its ring of tasks, and what it was given."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import Any, Literal

from ipcmap._core import liveness
from ipcmap.arena import Arena
from ipcmap.errors import ClosedError, IpcmapError
from ipcmap.executor_statistics import ExecutorWorker
from ipcmap.messages import numbers_of
from ipcmap.ring import Ring
from ipcmap.tasks import Task
from ipcmap.worker import (
    BEGUN,
    BUSY,
    CELL,
    CONDEMNED,
    DONE,
    KNOWN_FUNCTIONS,
    READY,
    TASK,
    Cells,
    resident_bytes,
)
from ipcmap.zygote import ZygoteProcess

__all__ = ["Seat"]

_TASKS = 1 << 16  # bytes of tasks that lie before a worker; longer ones are in the arena
_LONG = 1 << 13  # bytes of a task of which a worker is given two at most


class Seat:
    """The executor's side of one worker. Every method is called under the dispatcher's lock.

    Args:
        index: Which cell is its own.
        cells: All cells.
        arena: Where its ring is.
    """

    def __init__(self, index: int, cells: Cells, arena: Arena) -> None:
        self.index = index
        self.ring = Ring(_TASKS, arena=arena)
        self.held: dict[int, Task] = {}  # given to it and not answered, in this order
        self.condemned = False
        self.halfway = False  # a call that changes what it has is under way, or was broken off
        self.suspect = False  # such a call was broken off: what it has must be found out
        self.process: ZygoteProcess
        self._hired = time.monotonic_ns()
        self._known: dict[int, None] = {}  # functions that it has; as the worker counts them
        self._measured = 0, 0
        self._cells, self._at = cells, CELL * index
        cell = self._cell = cells.words[self._at : self._at + CELL]
        for word in range(CELL):
            cell[word] = 0

    @property
    def ready(self) -> bool:
        """Whether its worker has been prepared."""
        return bool(self._cell[READY])

    def statistics(self) -> ExecutorWorker:
        """Say what its worker does."""
        task, begun, now = self.in_hand(), self._cell[BEGUN], time.monotonic_ns()
        stat = liveness.read_stat(self.process.pid or 0)
        state: Literal["starts", "works", "waits", "stopped"] = "works" if task else "waits"
        if not self._cell[READY]:
            state = "starts"
        if stat is not None and stat.state in "Tt":
            state = "stopped"
        busy = self._cell[BUSY] / 1e9
        wait = (now - self._hired) / 1e9 - busy - ((now - begun) / 1e9 if task else 0.0)
        return ExecutorWorker(
            self.process.pid or 0,
            state,
            task.name if task else None,
            time.time() - (now - begun) / 1e9 if task else 0.0,
            self._cell[DONE],
            busy,
            max(0.0, wait),
            resident_bytes(self.process.pid or 0),
        )

    def in_hand(self) -> Task | None:
        """Return the task that was begun last, if it is not answered."""
        return self.held.get(self._cell[TASK] & ~CONDEMNED)

    def begun(self) -> int:
        """Return when that was, by the monotonic clock in nanoseconds."""
        return self._cell[BEGUN]

    def is_stuck(self, now: int, longest: int) -> bool:
        """Return whether what it has in hand takes longer than so many nanoseconds."""
        return now - self._cell[BEGUN] > longest and self.in_hand() is not None

    def condemn(self, task: Task) -> bool:
        """Say that its worker is to die of this task; return whether that is what it does."""
        return self._condemn(task.number)

    def condemn_at_rest(self) -> bool:
        """Say that its worker is to die, having nothing in hand; return whether that is so."""
        last = self._cell[TASK]
        return last not in self.held and self._condemn(last)

    def _condemn(self, number: int) -> bool:
        if not self._cells.condemn_or_begin(self._at + TASK, number, number | CONDEMNED):
            return False
        self.execute()
        return True

    def execute(self) -> None:
        """Kill its worker, if it is condemned; twice is once."""
        if self._cell[TASK] & CONDEMNED:
            self.condemned = True
            self.process.kill()

    def mean(self) -> float | None:
        """Return what a task took, in nanoseconds, of those since the last call; ``None`` = none."""
        done, busy = self._cell[DONE], self._cell[BUSY]
        known_done, known_busy = self._measured
        if done <= known_done:
            return None
        self._measured = done, busy
        return max(0.0, (busy - known_busy) / (done - known_done))

    def give(self, tasks: list[Task]) -> tuple[list[Task], Exception] | None:
        """Give it tasks; return those that it has no room for, if any, and why."""
        records: list[bytes] = []
        known, held, last = self._known, self.held, None
        self.halfway = True
        for task in tasks:
            function = task.owner.function
            if function is not last:
                last = function
                if function.number not in known:
                    records.append(function.record)
                    known[function.number] = None
                    if len(known) > KNOWN_FUNCTIONS:
                        del known[next(iter(known))]
            records.append(task.record)
            held[task.number] = task
            task.seat = self
        try:
            if len(records) == 1:
                self.ring.put(records[0], 0)
            else:
                self.ring.put_many(records, 0)
        except (queue.Full, IpcmapError) as error:
            back = self._taken_back(records[getattr(error, "put", 0) :]), error
            self.halfway = False
            return back
        self.halfway = False
        return None

    def withdraw(self) -> list[Task]:
        """Take back what its worker has not taken yet."""
        back: list[Task] = []
        self.halfway = True
        with contextlib.suppress(queue.Empty, ClosedError):  # dismissed, it has taken all
            back = self._taken_back(self.ring.get_many(timeout=0))
        self.halfway = False
        return back

    def suspend(self) -> list[Task]:
        """Give it nothing until :meth:`resume`, and take back what can be."""
        self.suspect = True
        back = self.withdraw()
        self._known.clear()  # what it has beyond that, it forgets first
        return back

    def resume(self) -> list[Task] | None:
        """Go on after :meth:`suspend`; return what its worker has not, which was lost on the way.

        Every answer that was there at the suspension must have been taken. If the task in
        hand is not answered then, its worker has taken nothing after it: the ring was
        empty. If there is none, it may have taken one that it will begin: it dies first.

        Returns:
            Those tasks, or ``None`` = it has begun a task just now: ask again.
        """
        task = self.in_hand()
        if task is None and self.held:
            return [] if self.condemn_at_rest() else None
        lost = [one for one in self.held.values() if one is not task]
        for one in lost:
            del self.held[one.number]
            one.seat = None
        self.suspect = False
        return lost

    def _taken_back(self, records: list[bytes]) -> list[Task]:
        back: list[Task] = []
        for record in records:
            number, function = numbers_of(record)
            if number:
                task = self.held.pop(number, None)
                if task is not None:
                    task.seat = None
                    back.append(task)
            else:
                self._known.pop(function, None)
        return back

    def has_long_tasks(self) -> bool:
        """Return whether it holds two tasks already, one of them long."""
        held = self.held
        return len(held) > 1 and any(len(task.record) > _LONG for task in held.values())

    def terminate(self) -> None:
        """Send its worker SIGTERM; and SIGCONT, since who is stopped does not die of it before."""
        self.process.terminate()
        self.process.resume()

    def dismiss(self) -> None:
        """Let its worker end when it has done what it has."""
        self.ring.close()

    def clear(self) -> tuple[Any, Task | None, list[Task]]:
        """Return how its dead worker ended, what it had in hand, and the rest of what it held.

        Everything that it answered must have been taken before.
        """
        self.process.join()
        record = self.process.exit_record
        lost = self.in_hand()
        rest = [task for task in self.held.values() if task is not lost]
        for task in self.held.values():
            task.seat = None
        self.held.clear()
        self.process.let_go()
        del self.process
        self.give_back()
        return record, lost, rest

    def give_back(self) -> None:
        """Let go of its ring and its cell: it has no worker, or never had one."""
        self.ring.destroy()
        self._cell.release()
        del self._cells
