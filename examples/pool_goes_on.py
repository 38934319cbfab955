"""A pool whose workers are killed now and then: what they had in hand says so, and the rest arrives.

The work has no end, and is taken no further ahead than it is read.

python examples/pool_goes_on.py
"""

import itertools
import os
import signal
from collections.abc import Iterator

from ipcmap import Pool, WorkerDied

taken: list[int] = []


def numbers() -> Iterator[int]:
    """Yield one after the other, and note it."""
    for number in itertools.count():
        taken.append(number)
        yield number


def square(number: int) -> int:
    """Square it; every hundredth is the end of its worker."""
    if number % 100 == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def main() -> None:
    """Read a thousand results."""
    with Pool(4) as pool:
        results = pool.imap(square, numbers(), buffersize=50)
        arrived, lost = 0, []
        for number in range(1000):
            try:
                assert next(results) == number * number
                arrived += 1
            except WorkerDied as error:
                lost.append(error.task.index)
        print(f"{arrived} of 1000 squares arrived, at most 50 were ahead: {len(taken) <= 1050}")
        print("the workers of these were killed:", *lost)
        print("and the pool goes on:", pool.map(abs, [-1, -2, -3]))


if __name__ == "__main__":
    main()
