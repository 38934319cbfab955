"""N producers and M consumers share one ring: each record goes to one of them, once.

The producers put numbers, the consumers square them, and the parent sees that each
number was squared by exactly one. Records of one producer never overtake each other.

    python examples/many_to_many.py [N [M]]
"""

import sys
from collections import Counter

from ipcmap import ClosedError, Process, Ring

EACH = 2_000  # numbers of each producer


def produce(work: Ring, first: int) -> None:
    """Put one range of numbers, many at a time."""
    work.put_many(b"%d" % number for number in range(first, first + EACH))


def consume(work: Ring, results: Ring, name: int) -> None:
    """Square numbers until the ring is closed and empty."""
    while True:
        try:
            number = int(work.get())
        except ClosedError:
            return
        results.put(b"%d %d %d" % (name, number, number**2))


def main() -> None:
    """Let them run, and count."""
    producers, consumers = [*map(int, sys.argv[1:]), *(4, 3)[len(sys.argv) - 1 :]]
    work, results = Ring(), Ring()
    takers = [Process(target=consume, args=(work, results, name)) for name in range(consumers)]
    givers = [Process(target=produce, args=(work, name * EACH)) for name in range(producers)]
    for process in takers + givers:
        process.start()

    squared, by_consumer = Counter[int](), Counter[int]()
    for _ in range(producers * EACH):
        name, number, square = map(int, results.get().split())
        assert square == number**2
        squared[number] += 1
        by_consumer[name] += 1
    for process in givers:
        process.join()
    work.close()
    for process in takers:
        process.join()

    for name, count in sorted(by_consumer.items()):
        print(f"consumer {name}: {count:,} numbers")
    once = squared == Counter(range(producers * EACH))
    print(f"{squared.total():,} numbers from {producers} producers, each once: {once}")
    sys.exit(0 if once else 1)


if __name__ == "__main__":
    main()
