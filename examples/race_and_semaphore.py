"""Shared memory needs a semaphore beside it: without one, two writers lose each other's work.

A parent and its child add to one counter in an anonymous mapping. Each addition
reads the counter, adds one and writes it back; an addition of the other process
that falls between the read and the write is overwritten. A semaphore that only
one of them can hold closes the gap.

    python examples/race_and_semaphore.py
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from ipcmap import Mapping, Semaphore

ADDITIONS = 200  # by each of the two processes, in one round
ROUNDS = 100  # a race is a matter of chance: look this often for a lost addition

Guard = AbstractContextManager[object]


def add(counter: memoryview, guard: Guard) -> None:
    """Add one to the counter, many times."""
    for _ in range(ADDITIONS):
        with guard:
            seen = counter[0]
            os.sched_yield()  # here the other process may run, and its addition be lost
            counter[0] = seen + 1


def add_twice_over(guard: Guard) -> int:
    """Let a parent and its child add at the same time, and return the total."""
    with (
        Mapping.anonymous(8) as shared,
        shared.view().cast("Q") as counter,  # one unsigned number of 64 bits
    ):
        started = Semaphore(0)
        pid = os.fork()
        if pid == 0:
            started.release()
            add(counter, guard)
            os._exit(0)
        started.acquire()
        add(counter, guard)
        _, status = os.waitpid(pid, 0)
        started.destroy()
        if status:
            sys.exit(f"child failed: wait status={status}")
        return counter[0]


def main() -> None:
    """Show the race, then the semaphore that ends it."""
    expected = 2 * ADDITIONS
    print(f"two processes, {ADDITIONS:,} additions each: {expected:,} expected")

    for number in range(1, ROUNDS + 1):
        total = add_twice_over(nullcontext())
        if total != expected:
            print(f"without a semaphore: {total:,}, lost {expected - total:,} (round {number})")
            break
    else:
        print(f"without a semaphore: nothing was lost in {ROUNDS} rounds, by luck alone")

    turn = Semaphore(1)  # one token: who holds it has the counter to itself
    total = add_twice_over(turn)
    turn.destroy()
    print(f"with a semaphore:    {total:,}, lost {expected - total:,}")
    sys.exit(0 if total == expected else 1)


if __name__ == "__main__":
    main()
