"""Tasks that do next to nothing, so that what is timed is the handing over: all at once, or one by one.

Every result is looked at.
"""

from __future__ import annotations

import operator
import time

from ipcmap.bench.channels import Peer, Terms
from ipcmap.bench.clock import percentiles, timed
from ipcmap.bench.place import Figures, Place, Wrong
from ipcmap.bench.pools import Pool

__all__ = ["mapped", "one_by_one"]

_WARM_UP = 200  # tasks, in which all workers have begun
_ENOUGH = 50  # round trips, however long they take

_task = operator.neg  # found by name in every worker, whatever it has imported


def _open(peer: Peer[Pool], workers: int, place: Place) -> Pool:
    pool = peer.open(Terms(1, place.folder, consumers=workers))
    _do(pool, _WARM_UP)
    return pool


def _do(pool: Pool, count: int) -> None:
    if list(pool.map(_task, range(count))) != list(range(0, -count, -1)):
        raise Wrong(f"the results are not those of the tasks: tasks={count}")


def mapped(peer: Peer[Pool], workers: int, place: Place) -> Figures:
    """Measure tasks a second of one map, and CPU seconds a task of all that take part."""
    pool = _open(peer, workers, place)
    result = timed(lambda count: _do(pool, count), place.effort.seconds, pool.pids())
    pool.close()
    return {
        "tasks": result.count,
        "tasks_per_second": result.count / result.seconds,
        "cpu_seconds_per_task": result.cpu_seconds / result.count,
    }


def one_by_one(peer: Peer[Pool], workers: int, place: Place) -> Figures:
    """Measure seconds from giving a task to having its result; the next is given then."""
    pool = _open(peer, workers, place)
    took: list[int] = []
    clock = time.perf_counter_ns
    until = clock() + round(place.effort.seconds * 1e9)
    ended = 0
    while ended < until or len(took) < _ENOUGH:
        number = len(took)
        began = clock()
        result = pool.call(_task, number)
        ended = clock()
        if result != -number:
            raise Wrong(f"the result is not that of the task: number={number}, result={result}")
        took.append(ended - began)
    pool.close()
    return percentiles(took)
