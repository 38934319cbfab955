"""One log for all workers, and the last words of one that is killed.

A file that several processes write to gets torn lines, and the thread by which
multiprocessing's queue sends dies with its process. Here a log call that has returned is
in shared memory.

    python examples/log_from_workers.py
"""

import logging
import logging.config
import os
import signal
import sys
from logging.handlers import QueueHandler, QueueListener

from ipcmap import Process, Queue

WORKERS, LINES = 3, 100

records: Queue[logging.LogRecord] = Queue()
IN_WORKERS = {
    "version": 1,
    "handlers": {"queue": {"()": QueueHandler, "queue": records}},
    "root": {"handlers": ["queue"], "level": "INFO"},
}


def work(name: str, victim: bool) -> None:
    """Say what is done; as the victim, be killed at once after the last word."""
    logging.config.dictConfig(IN_WORKERS)
    log = logging.getLogger(name)
    for number in range(LINES):
        log.info("step %d", number)
    if victim:
        log.error("something is wrong here")
        os.kill(os.getpid(), signal.SIGKILL)


class Counting(logging.StreamHandler):  # type: ignore[type-arg]
    """Show what is no routine, and count all."""

    steps = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        if record.levelno > logging.INFO:
            super().emit(record)
        else:
            self.steps += 1


workers = [Process(target=work, args=(f"worker-{n}", n == 0)) for n in range(WORKERS)]
for worker in workers:
    worker.start()

out = Counting(sys.stdout)
out.setFormatter(logging.Formatter("%(levelname)s of %(name)s: %(message)s"))
listener = QueueListener(records, out)
listener.start()  # a thread: after the forks
for worker in workers:
    worker.join()
listener.stop()  # after it has written what is there

assert out.steps == WORKERS * LINES
print(f"{out.steps} other records of {WORKERS} workers, ended by {workers[0].exitcode}, 0 and 0")
