"""The native engine's ring in programs with threads, which fork while their threads use it."""

from __future__ import annotations

import queue
import random
import threading
from collections import Counter

import pytest

from children import Fork
from ipcmap import Arena, ClosedError, Ring

COUNT = 1500  # records of each thread


def take_all(ring: Ring, taken: Counter[bytes], batch: int) -> None:
    """Take until the end."""
    try:
        while True:
            taken.update(ring.get_many(batch) if batch > 1 else [ring.get()])
    except ClosedError:
        return


def put_all(ring: Ring, name: int, chance: random.Random) -> None:
    """Put records of one's own, one by one and in batches."""
    number = 0
    while number < COUNT:
        batch = range(number, min(number + chance.randrange(1, 9), COUNT))
        records = [b"%d.%d.%s" % (name, one, b"x" * chance.randrange(60)) for one in batch]
        ring.put_many(records) if len(records) > 1 else ring.put(records[0])
        number = batch.stop


def counted(taken: Counter[bytes]) -> dict[tuple[int, int], int]:
    """Return how often each record came, by name and number."""
    return {
        (int(name), int(number)): times
        for record, times in taken.items()
        for name, number in [record.split(b".")[:2]]
    }


@pytest.mark.parametrize("capacity", [256, 4096])
def test_threads_that_put_and_get_lose_nothing(
    capacity: int, native_arena: Arena, chance: random.Random
) -> None:
    """Three of each kind, on one handle."""
    ring, taken = Ring(capacity, arena=native_arena), [Counter[bytes]() for _ in range(3)]
    seeds = [random.Random(chance.random()) for _ in range(3)]
    givers = [threading.Thread(target=put_all, args=(ring, name, seeds[name])) for name in range(3)]
    takers = [
        threading.Thread(target=take_all, args=(ring, taken[name], 1 + 2 * name))
        for name in range(3)
    ]

    for thread in givers + takers:
        thread.start()
    for thread in givers:
        thread.join()
    ring.close()
    for thread in takers:
        thread.join()

    times = counted(sum(taken, Counter()))
    assert times == {(name, number): 1 for name in range(3) for number in range(COUNT)}


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_amid_threads_that_put_and_get_leaves_a_child_that_can(
    native_arena: Arena, fork: Fork, chance: random.Random
) -> None:
    """Whatever the threads that are not there in the child held at that moment."""
    ring, log = Ring(512, arena=native_arena), Ring(1 << 20, arena=native_arena)
    taken, over = Counter[bytes](), threading.Event()

    def put_on(name: int) -> None:
        number = 0
        while not over.is_set():
            ring.put(b"%d.%d.thread" % (name, number))
            number += 1
        put[name] = number

    def work(name: int) -> None:
        for number in range(50):
            ring.put(b"%d.%d.child" % (name, number))
            try:
                log.put(ring.get(0))
            except queue.Empty:
                continue

    put = dict.fromkeys(range(2), 0)
    threads = [threading.Thread(target=put_on, args=[name]) for name in put]
    threads.append(threading.Thread(target=take_all, args=(ring, taken, 1)))
    for thread in threads:
        thread.start()
    children = [fork(work, 2 + number) for number in range(20)]
    put |= {2 + number: 50 for number in range(20)}
    codes = [child.wait() for child in children]
    over.set()
    for thread in threads[:2]:
        thread.join()
    ring.close()
    threads[2].join()
    taken.update(log.get_many(timeout=0) if len(log) else [])

    assert codes == [0] * 20
    assert counted(taken) == {(name, number): 1 for name in put for number in range(put[name])}
    assert ring.statistics().recoveries == 0
