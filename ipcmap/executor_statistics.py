"""What an executor's workers do: a snapshot, and the line that a stalled executor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ipcmap.tasks import TaskName

__all__ = ["ExecutorStatistics", "ExecutorWorker"]


@dataclass(frozen=True)
class ExecutorWorker:
    """One worker as it was.

    Attributes:
        pid: Its pid.
        state: ``"starts"`` until its initializer is done, then ``"works"`` or ``"waits"``;
            ``"stopped"`` by a signal or a debugger.
        task: What it has in hand, or ``None``.
        since: When it began that, in seconds since the epoch; 0.0 where there is none.
        tasks_done: How many tasks it has answered.
        busy: Seconds that it spent on them.
        wait: Seconds of its life that it did not.
        rss: Bytes that it has resident, 0 where that cannot be told.
    """

    pid: int
    state: Literal["starts", "works", "waits", "stopped"]
    task: TaskName | None
    since: float
    tasks_done: int
    busy: float
    wait: float
    rss: int


@dataclass(frozen=True)
class ExecutorStatistics:
    """An executor as it was: a snapshot, stale as soon as it is taken.

    Attributes:
        tasks: How many tasks are not done.
        queued: How many of them no worker was given.
        workers: Its workers, in the order of their seats.
    """

    tasks: int
    queued: int
    workers: tuple[ExecutorWorker, ...]

    def describe(self, now: float) -> str:
        """Say what each worker does, ``now`` being seconds since the epoch."""
        lines = [f"{self.tasks} tasks, {self.queued} of them given to nobody"]
        for worker in self.workers:
            line = f"pid {worker.pid} {worker.state}"
            if worker.task is not None:
                line += f", task {worker.task} for {max(0.0, now - worker.since):.1f} s"
            lines.append(f"{line}, {worker.tasks_done} done")
        return "; ".join(lines)
