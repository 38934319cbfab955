"""How many restarts there may be in how many seconds, and what they were for."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures.process import _RemoteTraceback

from ipcmap.errors import BrokenError
from ipcmap.family import ExitRecord

__all__ = ["RestartBudget"]

_MOST_NOTES = 10  # of deaths, in an error


class RestartBudget:
    """At most ``intensity`` restarts within ``period`` seconds.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, intensity: int, period: float) -> None:
        if intensity < 0 or not period > 0:
            raise ValueError(
                "restarts are limited to intensity, 0 or more, within a period of more than "
                f"0 seconds: intensity={intensity}, period={period}"
            )
        self._intensity, self._period = intensity, period
        self._spent: deque[tuple[float, str, ExitRecord]] = deque()
        self.count = 0  # of all restarts ever

    def spend(self, name: str, record: ExitRecord) -> None:
        """Take one restart, after the end of this worker.

        Raises:
            BrokenError: There is none left.
        """
        now = time.monotonic()
        while self._spent and self._spent[0][0] <= now - self._period:
            self._spent.popleft()
        if len(self._spent) >= self._intensity:
            self._give_up([(n, r) for _, n, r in self._spent] + [(name, record)])
        self._spent.append((now, name, record))
        self.count += 1

    def _give_up(self, ends: list[tuple[str, ExitRecord]]) -> None:
        name, last = ends[-1]
        way_out = "mend the worker, or allow more restarts"
        if last.exitcode == 0:
            way_out = "let it go on, or add it with restart='transient'"
        error = BrokenError(
            f"workers must not end more often than they may be restarted: ends={len(ends)}, "
            f"intensity={self._intensity}, period={self._period} seconds; "
            f"the last: name={name!r}, {last}; {way_out}",
            [record for _, record in ends],
        )
        for earlier, record in ends[-_MOST_NOTES:]:
            error.add_note(f"ended: name={earlier!r}, {record}")
        if last.traceback is None:
            raise error
        raise error from _RemoteTraceback(last.traceback)  # type: ignore[arg-type]
