"""An event loop consumes what forked processes produce, beside whatever else it does.

`async for` takes what comes, without a thread and without polling, and ends with the ring:
when the last producer has left, or died.

    python examples/asyncio_consumer.py
"""

import asyncio
import sys

from ipcmap import Process, Ring, Semaphore, aio

PRODUCERS, RECORDS = 4, 2_500


def produce(ring: Ring, begun: Semaphore, name: int) -> None:
    """Put numbered records, then leave."""
    with ring.attach_producer():
        begun.release()
        for number in range(RECORDS):
            ring.put(b"%d %d" % (name, number))


async def tick(ticks: list[int]) -> None:
    """Show that the loop goes on meanwhile."""
    while True:
        ticks.append(1)
        await asyncio.sleep(0.001)


async def consume(ring: Ring, next_numbers: list[int], ticks: list[int]) -> None:
    """Check that each producer's records come in their order."""
    ticker = asyncio.create_task(tick(ticks))
    async for record in aio.Ring(ring):
        name, number = map(int, record.split())
        assert number == next_numbers[name], "one producer's records keep their order"
        next_numbers[name] += 1
    ticker.cancel()


def main() -> None:
    """Start the producers, and consume until they are done."""
    ring, begun = Ring(), Semaphore(0)
    children = [Process(target=produce, args=(ring, begun, name)) for name in range(PRODUCERS)]
    counts, ticks = [0] * PRODUCERS, list[int]()
    # Until all have begun, this process is one of them.
    with ring.attach_producer():
        for child in children:
            child.start()
        for _ in children:
            begun.acquire()
    asyncio.run(consume(ring, counts, ticks))
    for child in children:
        child.join()
    print(
        f"{sum(counts):,} records from {PRODUCERS} producers, while the loop went on: {bool(ticks)}"
    )
    sys.exit(0 if counts == [RECORDS] * PRODUCERS else 1)


if __name__ == "__main__":
    main()
