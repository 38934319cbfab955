"""A process with threads forks while they put and take: what a fork meets half-way."""

from __future__ import annotations

import os
import random
from collections import Counter
from threading import Thread

import pytest

from children import Fork
from ipcmap import Arena, Mapping, Ring
from ring_traffic import GETTING, LEASING, Log, Name, check_order, consume, pack, produce, take
from rings import blocks

EACH = 25  # records that a child puts, and as many that it takes
ENTRIES = 1 << 20  # of a log; nothing is touched that is not used


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("children", [8, pytest.param(400, marks=pytest.mark.stress)])
@pytest.mark.timeout(600)
def test_a_fork_among_threads_that_put_and_take_breaks_no_call_of_parent_or_child(
    children: int, ring_type: type[Ring], arena: Arena, chance: random.Random, fork: Fork
) -> None:
    """Whatever the threads hold in that moment, the child neither waits for it nor gives it back."""
    ring = ring_type(4096, arena=arena)
    stop = Mapping.anonymous(8).view().cast("Q")
    puts = [Log(0) for _ in range(2 + children)]
    takes = [Log(ENTRIES) for _ in range(2)] + [Log(EACH) for _ in range(children)]
    seeds = [chance.randrange(2**32) for _ in range(4 + children)]

    def put_and_take(which: int) -> None:
        own = random.Random(seeds[2 + which])
        for number in range(EACH):
            puts[which].begin(number + 1)
            ring.put(pack(Name(which, number), own.choice([0, 100, 5000]), own))
            puts[which].end()
            take(ring, takes[which], own.choice([GETTING, LEASING]))

    threads = [
        *(Thread(target=produce, args=(ring, n, puts[n], seeds[n], 1 << 30, stop)) for n in (0, 1)),
        *(Thread(target=consume, args=(ring, log, seeds[-1])) for log in takes[:2]),
    ]
    for thread in threads:
        thread.start()
    crew = []
    for which in range(2, 2 + children):
        # At any moment of what the threads are doing.
        until = takes[0].count + takes[1].count + chance.randrange(20)
        while takes[0].count + takes[1].count < until:
            os.sched_yield()
        crew.append(fork(put_and_take, which))
    assert [child.wait() for child in crew] == [0] * children
    stop[0] = 1
    for thread in threads[:2]:
        thread.join()
    ring.close()
    for thread in threads[2:]:
        thread.join()

    taken = Counter(name for log in takes for name in log.taken)
    assert taken == Counter(Name(n, m) for n, log in enumerate(puts) for m in range(log.done))
    assert [log.done for log in puts[2:]] == [log.count for log in takes[2:]] == [EACH] * children
    assert sum(check_order(log.taken) for log in takes) == 0
    statistics = ring.statistics()
    assert (statistics.puts, statistics.gets) == (taken.total(),) * 2
    assert blocks(arena) == 1
    assert [member.pid for member in arena._open().family.members()] == [os.getpid()]
