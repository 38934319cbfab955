"""A place of a supervisor: what is started in it, its worker, and how the last one ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ipcmap.family import ExitRecord
from ipcmap.process import Process
from ipcmap.stop_flag import StopFlag

__all__ = ["Place", "Restart", "Worker", "WorkerStatistics"]

Restart = Literal["permanent", "transient", "temporary"]


@dataclass(frozen=True)
class WorkerStatistics:
    """One place of a supervisor, as it was at a moment.

    Attributes:
        name: Its name.
        pid: The pid of its worker, ``None`` = it has none.
        starts: How often a worker was started in it.
        last_exit: How the last worker that ended there ended; ``None`` = none has.
    """

    name: str
    pid: int | None
    starts: int
    last_exit: ExitRecord | None


class Worker(Process):
    """A process that can be asked to end, and whose traceback its supervisor tells."""

    _silent = True

    def __init__(self, place: Place, flag: StopFlag) -> None:
        super().__init__(target=place.target, name=place.name, args=place.args, kwargs=place.kwargs)
        self._flag, self._number = flag, place.number

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        # All signals are blocked until run(): the handler that was inherited never runs here.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        exitcode: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        return exitcode

    def run(self) -> None:
        """Be what the supervisor started."""
        # A thread that forks may have blocked it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        self._flag.take(self._number)
        super().run()

    def stop(self) -> None:
        """Send SIGTERM; SIGCONT goes with it, since a stopped process does not die of it before."""
        assert self._popen is not None
        self.terminate()
        self._popen._send_signal(signal.SIGCONT)


class Place:
    """A worker at a time, and what is known of it.

    The thread that attends the supervisor writes; others may read ``pid``, ``starts`` and
    ``last_exit`` at any time.
    """

    def __init__(
        self,
        number: int,
        name: str,
        target: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        restart: Restart,
    ) -> None:
        self.number, self.name, self.restart = number, name, restart
        self.target, self.args, self.kwargs = target, args, kwargs
        self.pid: int | None = None
        self.starts = 0
        self.last_exit: ExitRecord | None = None
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker | None:
        """Its worker, if one was forked and is not buried yet."""
        worker = self._worker
        return None if worker is None or worker.pid is None else worker

    def start(self, flag: StopFlag) -> None:
        """Fork a worker."""
        flag.expect(self.number)
        # First, for a handler that raises when it was just forked.
        self._worker = Worker(self, flag)
        self._worker.start()
        self.pid = self._worker.pid
        self.starts += 1

    def bury(self) -> ExitRecord:
        """Let go of a worker, when it has ended; return how it did."""
        worker = self._worker
        assert worker is not None
        worker.join()
        record = worker.exit_record
        assert record is not None
        self._worker, self.pid, self.last_exit = None, None, record
        worker.close()
        return record

    def to_be_restarted(self, record: ExitRecord) -> bool:
        """Return whether another is to follow a worker that ended like this."""
        return self.restart == "permanent" or (self.restart == "transient" and record.exitcode != 0)

    def statistics(self) -> WorkerStatistics:
        """Return what can be said of it."""
        return WorkerStatistics(self.name, self.pid, self.starts, self.last_exit)
