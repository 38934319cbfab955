"""The forked workers of ``ipcmap demo``, which lose nothing when one of them is killed.

    parent                          two rings                          worker 1..N
    hands out file numbers  --->    tasks:   7  8  9         lease --> takes a number, reads the file
    adds up, draws progress <---    results: {"if": 3, …}   <---  put  its count of words

A worker leases its task: should it die, the ring hands the task to another, and the
file is counted again. A supervisor starts a new worker in its place.
"""

from __future__ import annotations

import marshal
import math
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipcmap.errors import BrokenError, ClosedError
from ipcmap.family import ExitRecord, signal_name
from ipcmap.mapping import Mapping
from ipcmap.ring import Ring
from ipcmap.supervisor import Supervisor

__all__ = ["Counts", "Crew", "Death"]

_AHEAD = 16  # files handed out for each worker: it never waits for the parent
_POLL = 0.2  # seconds between two looks at who is still alive
_MOST_DEATHS = 10  # before it is no accident any more

Counts = dict[str, int]


@dataclass(frozen=True)
class Death:
    """A worker that died: who, of what, and the file that was counted again for it."""

    pid: int
    cause: str
    redone: str | None


class Crew:
    """Workers that count files, each of which is yielded once.

    Args:
        files: What to count.
        workers: How many processes.
        count: Counts one file; called in the workers.
    """

    def __init__(
        self, files: Sequence[Path], workers: int, count: Callable[[Path], Counts]
    ) -> None:
        self.deaths: list[Death] = []
        self._failed = False
        self._files, self._count = files, count
        self._tasks, self._results = Ring(), Ring()
        # What each worker has in hand: 1 + the number of a file, or 0.
        self._in_hand = Mapping.anonymous(8 * workers)
        self._supervisor = Supervisor(intensity=_MOST_DEATHS, period=math.inf, stop_timeout=0)
        self._supervisor.on_death(self._bury)
        for place in range(workers):
            self._supervisor.add(self._work, (place,), name=str(place), restart="transient")

    def run(self, *, kill: bool) -> Iterator[Counts]:
        """Count everything; ``kill`` one worker at half-way.

        Raises:
            BrokenError: A worker failed, or they die one after the other.
        """
        files, counted = len(self._files), set[int]()
        numbers = iter(range(files))
        with self._supervisor:
            for _ in range(_AHEAD * len(self._supervisor.statistics().workers)):
                self._hand_out(numbers)
            while len(counted) < files:
                try:
                    number, counts = marshal.loads(self._results.get(_POLL))
                except queue.Empty:
                    self._supervisor.attend(timeout=0)
                    continue
                if number in counted:  # its worker died between the result and the end of its lease
                    continue
                counted.add(number)
                self._hand_out(numbers)
                yield counts
                if kill and files // 2 <= len(counted) < files:
                    kill = not self._kill_one()
            self._tasks.close()
            self._supervisor.attend()

    def close(self) -> None:
        """Free what the workers shared."""
        self._tasks.destroy()
        self._results.destroy()
        self._in_hand.close()

    def _hand_out(self, numbers: Iterator[int]) -> None:
        number = next(numbers, None)
        if number is not None:
            self._tasks.put(number.to_bytes(8, "little"))

    # Workers

    def _work(self, place: int) -> None:
        while True:
            try:
                with self._tasks.lease() as task:
                    number = int.from_bytes(task, "little")
                    self._note(place, number + 1)
                    counts = dict(self._count(self._files[number]))
                    self._results.put(marshal.dumps((number, counts)))
                    self._note(place, 0)
            except ClosedError:
                return

    def _note(self, place: int, value: int) -> None:
        self._in_hand.write(8 * place, value.to_bytes(8, "little"))

    def _noted(self, place: int) -> int:
        return int.from_bytes(self._in_hand.read(8 * place, 8), "little")

    # Deaths

    def _kill_one(self) -> bool:
        """Kill a worker that has a file in hand; ``False`` = there is none just now."""
        give_up = time.monotonic() + _POLL
        while time.monotonic() < give_up:
            for place, worker in enumerate(self._supervisor.statistics().workers):
                if worker.pid and self._noted(place) and self._kill_busy(place, worker.pid):
                    return True
            time.sleep(0)
        return False

    def _kill_busy(self, place: int, pid: int) -> bool:
        """Kill a worker if it still has a file in hand once it stands still."""
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if not self._noted(place):
            os.kill(pid, signal.SIGCONT)
            return False
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self._supervisor.attend(timeout=0)
        return True

    def _bury(self, name: str, record: ExitRecord) -> None:
        """Note who was killed, and over what; to end in another way is to have failed."""
        if record.exitcode == 0 or self._failed:
            return
        place = int(name)
        in_hand = self._noted(place)
        if record.signal is None or len(self.deaths) == _MOST_DEATHS:
            self._failed = True
            print(record.traceback or "", end="", file=sys.stderr)
            raise BrokenError(
                f"worker died before its files were counted: {record}; run the demo again", [record]
            )
        redone = str(self._files[in_hand - 1]) if in_hand else None
        self.deaths.append(Death(record.pid, signal_name(record.signal), redone))
        self._note(place, 0)
