"""Event loops of several processes share three places, and one of the processes is killed.

`async with` takes a place; a loop that waits for one goes on with its other tasks. What the
killed process had comes back to those who wait.

    python examples/asyncio_gate.py
"""

import asyncio
import sys

from ipcmap import BoundedSemaphore, Connection, Lock, Pipe, Process, aio

PROCESSES, TASKS, PLACES = 3, 50, 3


async def visit(places: aio.Semaphore, counter: aio.Lock, value: list[int]) -> None:
    """Take a place, and then the lock of what is counted."""
    async with places:
        await asyncio.sleep(0.001)  # a request to something that takes three at a time
        async with counter:
            value[0] += 1


def work(places: BoundedSemaphore, counter: Lock, result: Connection) -> None:
    """Have many tasks visit, and say how many did."""

    async def visit_all() -> None:
        value = [0]
        gate, guard = aio.Semaphore(places), aio.Lock(counter)
        await asyncio.gather(*(visit(gate, guard, value) for _ in range(TASKS)))
        await aio.Connection(result).send(value[0])

    asyncio.run(visit_all())


def hog(places: BoundedSemaphore, result: Connection) -> None:
    """Take all places, and never give them back."""
    for _ in range(PLACES):
        places.acquire()
    result.send("taken")
    result.recv()


async def collect(ends: list[Connection], victim: Process) -> list[int]:
    """Wait for the results of all, with all places taken by who is killed meanwhile."""
    asyncio.get_running_loop().call_later(0.1, victim.kill)
    counts: list[int] = await asyncio.gather(*(aio.Connection(end).recv() for end in ends))
    return counts


def main() -> None:
    """Start one who holds all places, then those who want them."""
    places, counter = BoundedSemaphore(PLACES), Lock()
    pipes = [Pipe() for _ in range(PROCESSES)]
    ours, theirs = Pipe()
    victim = Process(target=hog, args=(places, theirs))
    victim.start()
    ours.recv()
    workers = [Process(target=work, args=(places, counter, there)) for _, there in pipes]
    for worker in workers:
        worker.start()
    counts = asyncio.run(collect([here for here, _ in pipes], victim))
    for process in (victim, *workers):
        process.join()
    for end in (ours, theirs, *(end for pipe in pipes for end in pipe)):
        end.close()
    print(f"{sum(counts)} visits; places that are free again: {places.value} of {PLACES}")
    sys.exit(0 if counts == [TASKS] * PROCESSES and places.value == PLACES else 1)


if __name__ == "__main__":
    main()
