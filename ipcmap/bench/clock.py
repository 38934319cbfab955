"""What is timed: until it lasted long enough, with the CPU time that went into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ipcmap.bench.place import Figures

__all__ = ["Timed", "cpu_seconds", "percentiles", "timed"]

_LEAST_GROWTH, _MOST_GROWTH = 2.0, 10.0


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used so far, all of their threads."""
    # The kernel's number of a process's clock, as clock_getcpuclockid(3) makes it.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


@dataclass(frozen=True)
class Timed:
    """How many, how long, and at what cost: of this process and those that it named."""

    count: int
    seconds: float
    cpu_seconds: float


def timed(
    do: Callable[[int], object],
    seconds: float,
    pids: Iterable[int],
    *,
    first: int = 200,
    multiple_of: int = 1,
) -> Timed:
    """Do something so many times that it takes ``seconds``; what took less does not count."""
    who, count = list(pids), first
    while True:
        count = -(-count // multiple_of) * multiple_of
        used, began = cpu_seconds(who) + time.process_time(), time.perf_counter()
        do(count)
        elapsed = time.perf_counter() - began
        used = cpu_seconds(who) + time.process_time() - used
        if elapsed >= seconds:
            return Timed(count, elapsed, used)
        growth = 1.2 * seconds / elapsed
        count = int(count * min(_MOST_GROWTH, max(_LEAST_GROWTH, growth)))


def percentiles(took: Iterable[int]) -> Figures:
    """Return the median and the tails, in seconds, of nanoseconds that round trips took."""
    counted = sorted(took)
    return {"round_trips": len(counted)} | {
        name: counted[min(len(counted) - 1, int(len(counted) * share))] / 1e9
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    }
