"""One process makes something, another uses it: a ring between them, and nothing else.

The child produces readings and the parent adds them up. The child attaches itself as
the ring's producer, so the end needs no sentinel: when it has put its last reading,
or dies, the parent's loop ends.

    python examples/producer_consumer.py
"""

import struct
import sys

from ipcmap import ClosedError, Process, Ring

READINGS = 10_000
READING = struct.Struct("<Id")  # a number and a value


def produce(ring: Ring) -> None:
    """Put readings, then leave."""
    with ring.attach_producer():
        for number in range(READINGS):
            ring.put(READING.pack(number, number / 10))


def main() -> None:
    """Add up what the child has measured."""
    ring = Ring()
    child = Process(target=produce, args=(ring,))
    child.start()

    count, total = 0, 0.0
    while True:
        try:
            # Waits for the first, and takes with it whatever else is there.
            readings = ring.get_many()
        except ClosedError:
            break
        for number, value in map(READING.unpack, readings):
            assert number == count, "one producer's records keep their order"
            count += 1
            total += value
    child.join()

    print(f"{count:,} readings, total {total:,.1f}")
    sys.exit(0 if count == READINGS and child.exitcode == 0 else 1)


if __name__ == "__main__":
    main()
