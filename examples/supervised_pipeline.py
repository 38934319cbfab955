"""A pipeline of three stages that goes on though a worker of each stage is killed.

Stages are joined by rings. A stage holds a lease on what it works on, so that what a killed
worker had in hand comes again, to the worker that is started in its place. Doing a number
twice does no harm here: its square is stored where it belongs. The supervisor logs who died.

    python examples/supervised_pipeline.py
"""

import os
import signal

from ipcmap import ClosedError, Event, Mapping, Ring, Supervisor

NUMBERS = 1000

numbers, squares = Ring(), Ring()
shared = Mapping.anonymous(8 * (NUMBERS + 1))
table = shared.view().cast("Q")  # the result: table[number] = square


def die_once(killed: Event) -> None:
    """Be killed, if nobody was before."""
    if not killed.is_set():
        killed.set()
        os.kill(os.getpid(), signal.SIGKILL)


def produce(killed: Event) -> None:
    """First stage: all numbers; from the beginning again if it is started again."""
    for number in range(1, NUMBERS + 1):
        numbers.put(b"%d" % number)
        if number == NUMBERS // 2:
            die_once(killed)
    numbers.close()


def square(killed: Event) -> None:
    """Second stage: until there is no number left."""
    try:
        while True:
            with numbers.lease() as record:
                number = int(bytes(record))
                if number == NUMBERS // 3:
                    die_once(killed)
                squares.put(b"%d %d" % (number, number * number))
    except ClosedError:
        return


def store(killed: Event) -> None:
    """Third stage: until the table is full, then whatever comes twice is left."""
    while 0 in table[1:]:
        with squares.lease() as record:
            number, result = map(int, bytes(record).split())
            if number == NUMBERS // 4:
                die_once(killed)
            table[number] = result


def main() -> None:
    """Run the pipeline, and check every square."""
    supervisor = Supervisor()
    supervisor.add(produce, (Event(),), restart="transient")
    supervisor.add(square, (Event(),), count=3, restart="transient")
    supervisor.add(store, (Event(),), restart="transient")
    supervisor.run()

    right = all(table[number] == number**2 for number in range(1, NUMBERS + 1))
    print(f"{supervisor.statistics().restarts} restarts, every square is right: {right}")


if __name__ == "__main__":
    main()
