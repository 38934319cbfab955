"""The forked workers of ``ipcmap demo``, which lose nothing when one of them is killed.

    parent                          two rings                          worker 1..N
    hands out file numbers  --->    tasks:   7  8  9         lease --> takes a number, reads the file
    adds up, draws progress <---    results: {"if": 3, …}   <---  put  its count of words

A worker leases its task: should it die, the ring hands the task to another, and the
file is counted again. The parent forks a new worker in its place.
"""

from __future__ import annotations

import marshal
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipcmap.errors import BrokenError, ClosedError
from ipcmap.mapping import Mapping
from ipcmap.process import Process
from ipcmap.ring import Ring

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
        self._files, self._count = files, count
        self._tasks, self._results = Ring(), Ring()
        # What each worker has in hand: 1 + the number of a file, or 0.
        self._in_hand = Mapping.anonymous(8 * workers)
        self._workers = [self._fork(place) for place in range(workers)]

    def run(self, *, kill: bool) -> Iterator[Counts]:
        """Count everything; ``kill`` one worker at half-way.

        Raises:
            BrokenError: A worker failed, or they die one after the other.
        """
        files, counted = len(self._files), set[int]()
        numbers = iter(range(files))
        for _ in range(_AHEAD * len(self._workers)):
            self._hand_out(numbers)
        while len(counted) < files:
            try:
                number, counts = marshal.loads(self._results.get(_POLL))
            except queue.Empty:
                self._replace_the_dead()
                continue
            if number in counted:  # its worker died between the result and the end of its lease
                continue
            counted.add(number)
            self._hand_out(numbers)
            yield counts
            if kill and files // 2 <= len(counted) < files:
                kill = not self._kill_one()
        self._tasks.close()
        for worker in self._workers:
            worker.join()

    def close(self) -> None:
        """End the workers, whatever they are doing, and free what they shared."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
            worker.close()
        self._tasks.destroy()
        self._results.destroy()
        self._in_hand.close()

    def _hand_out(self, numbers: Iterator[int]) -> None:
        number = next(numbers, None)
        if number is not None:
            self._tasks.put(number.to_bytes(8, "little"))

    # Workers

    def _fork(self, place: int) -> Process:
        self._note(place, 0)
        worker = Process(target=self._work, args=(place,), daemon=True)
        worker.start()
        return worker

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
            for place, worker in enumerate(self._workers):
                if self._noted(place) and worker.is_alive() and self._kill_busy(place, worker):
                    return True
            time.sleep(0)
        return False

    def _kill_busy(self, place: int, worker: Process) -> bool:
        """Kill a worker if it still has a file in hand once it stands still."""
        assert worker.pid
        os.kill(worker.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if not self._noted(place):
            os.kill(worker.pid, signal.SIGCONT)
            return False
        worker.kill()
        self._replace(place)
        return True

    def _replace_the_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            if not worker.is_alive():
                self._replace(place)

    def _replace(self, place: int) -> None:
        worker = self._workers[place]
        worker.join()
        record = worker.exit_record
        if record is None or record.signal is None or len(self.deaths) == _MOST_DEATHS:
            cause = _cause(worker.exitcode)
            raise BrokenError(
                f"worker died before its files were counted: pid={worker.pid}, {cause}; "
                "run the demo again",
                [record] if record else [],
            )
        in_hand = self._noted(place)
        redone = str(self._files[in_hand - 1]) if in_hand else None
        self.deaths.append(Death(record.pid, signal.Signals(record.signal).name, redone))
        worker.close()
        self._workers[place] = self._fork(place)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal={signal.Signals(-exitcode).name}"
    return f"exit code={exitcode}"
