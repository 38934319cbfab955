"""Workers that are talked to: a pipe each, one is killed, and its pipe says so at once.

The parent waits for all of them at a time, as multiprocessing's wait does for its own pipes.
How many answers there were is counted by all, without a lock.

python examples/talking_workers.py
"""

import os
import signal
from multiprocessing.connection import wait

from ipcmap import Connection, Counter, Pipe, Process

WORKERS, QUESTIONS = 3, 5

answered = Counter()


def work(name: int, parent: Connection) -> None:
    """Answer questions until there are none; the first is killed over the third."""
    for count in range(1, 1 + QUESTIONS):
        question = parent.recv()
        if name == 0 and count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        parent.send((name, question, question * question))
        answered.add()


pipes: dict[Connection, Process] = {}
for name in range(WORKERS):
    ours, theirs = Pipe()
    worker = Process(target=work, args=(name, theirs))
    worker.start()
    theirs.close()  # the child's end: what is left is the child's own, and ends with it
    pipes[ours] = worker
    for question in range(QUESTIONS):
        ours.send(question)

answers = 0
while pipes:
    for ready in wait([*pipes]):  # type: ignore[list-item]
        assert isinstance(ready, Connection)
        try:
            name, question, answer = ready.recv()
            assert answer == question * question
            answers += 1
        except EOFError:
            worker = pipes.pop(ready)
            ready.close()
            worker.join()
            print(f"{worker.name} has ended: exit code {worker.exitcode}")
            worker.close()

print(f"{answers} answers; the workers counted {answered.value}")
