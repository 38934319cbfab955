"""A ring needs no framework: plain os.fork() will do.

python examples/plain_fork.py FILE...
"""

import os
import sys

from ipcmap import ClosedError, Ring


def count_lines(names: Ring, counts: Ring) -> None:
    """Count the lines of files until there are no more."""
    while True:
        try:
            name = names.get()
        except ClosedError:
            return
        with open(name, "rb") as file:
            counts.put(b"%7d %b" % (sum(1 for _ in file), name))


names, counts = Ring(), Ring()
children = []
for _ in range(2):
    if (pid := os.fork()) == 0:
        count_lines(names, counts)
        os._exit(0)
    children.append(pid)

names.put_many(os.fsencode(name) for name in sys.argv[1:])
names.close()
for _ in range(len(sys.argv) - 1):
    print(os.fsdecode(counts.get()))
for pid in children:
    os.waitpid(pid, 0)
