"""A work queue that no kill can shorten: one worker is killed with a task in hand.

What a consumer took and was not done with comes again, to another, and says so.

python examples/work_queue.py
"""

import os
import signal

from ipcmap import JoinableQueue, Queue

TASKS = 20

tasks: JoinableQueue[int] = JoinableQueue()
answers: Queue[tuple[int, int, bool]] = Queue()


def work(victim: bool) -> None:
    """Square numbers for ever; as the victim, be killed with the third in hand."""
    taken = 0
    while True:
        number = tasks.get()
        taken += 1
        if victim and taken == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        answers.put((number, number * number, tasks.redelivered))
        tasks.task_done()


def start(victim: bool = False) -> int:
    """Fork a worker."""
    pid = os.fork()
    if pid == 0:
        work(victim)
    return pid


tasks.put_many(range(TASKS))
killed = start(victim=True)
os.waitpid(killed, 0)
workers = [start(), start()]
tasks.join()  # nobody waits for the dead

found = answers.get_many()
assert sorted(number for number, _, _ in found) == list(range(TASKS))
print(f"{len(found)} tasks done, though worker {killed} was killed with one in hand")
print("done at the second try:", *(number for number, _, again in found if again))

for pid in workers:
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
