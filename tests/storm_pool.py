"""A storm over an executor: workers die at random while several threads submit."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import threading
import time
from concurrent.futures import Future
from typing import Any

from ipcmap import Arena, ProcessPoolExecutor, Ring, WorkerDied
from ipcmap.worker import resident_bytes

EVERY = 0.02  # seconds between two deaths
TASKS_A_DEATH = 25  # at least
GROWTH = 64 << 20  # bytes
AHEAD = 100  # tasks that are submitted before the results of the first are asked for


def double(item: int, orders: Ring) -> int:
    """Double an item; die by one's own hand where that is ordered."""
    with contextlib.suppress(Exception):
        _die(orders.get(0))
    return 2 * item


def _die(order: bytes) -> None:
    if order == b"exit":
        os._exit(9)
    if order == b"grow":
        _grown.append(b"x" * GROWTH)
    else:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)


_grown: list[bytes] = []


class Storm:
    """Four threads that submit, and one that kills.

    Args:
        executor: Whose workers die.
        orders: A ring of its arena: deaths by one's own hand.
        chance: The generator.
    """

    def __init__(self, executor: ProcessPoolExecutor, orders: Ring, chance: random.Random) -> None:
        self.executor, self.orders, self.chance = executor, orders, chance
        self.futures: dict[int, Future[int]] = {}
        self.over = threading.Event()
        self.deaths = 0

    def run(self, tasks: int) -> None:
        """Submit so many tasks, and wait for the last of them."""
        threads = [
            threading.Thread(target=self._submit, args=(range(number, tasks, 4),))
            for number in range(4)
        ]
        killer = threading.Thread(target=self._kill)
        for thread in (*threads, killer):
            thread.start()
        for thread in threads:
            thread.join()
        # Else the last tasks would have all the deaths that were ordered for others.
        self.over.set()
        killer.join()
        with contextlib.suppress(queue.Empty):
            self.orders.get_many(timeout=0)
        for future in list(self.futures.values()):
            future.exception()

    def _submit(self, items: range) -> None:
        for item in items:
            self.futures[item] = self.executor.submit(double, item, self.orders)
            if item - AHEAD in self.futures:
                self.futures[item - AHEAD].exception()
            time.sleep(0.001)

    def _kill(self) -> None:
        while not self.over.wait(EVERY):
            # However slow the machine is: a task may be unlucky once or twice.
            # Of deaths that pile up, one that is done again would have the next as well.
            if len(self.futures) < TASKS_A_DEATH * self.deaths or len(self.orders):
                continue
            self.deaths += 1
            how = self.chance.choice(["kill", "exit", "grow", "segv"])
            pids = list(self.executor._processes)
            if how != "kill":
                self.orders.put(how.encode())
            elif pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.chance.choice(pids), signal.SIGKILL)


def weather(arena: Arena, chance: random.Random, tasks: int, **options: Any) -> Storm:
    """Run a storm over an executor of eight workers, and see that nothing is left of it."""
    orders = Ring(arena=arena)
    arena.sweep()
    blocks = arena.statistics().blocks
    # Workers begin with what this process has: one that has not grown must not be replaced.
    most = resident_bytes() + GROWTH // 2
    with ProcessPoolExecutor(8, max_rss=most, arena=arena, **options) as executor:
        storm = Storm(executor, orders, chance)
        storm.run(tasks)
    arena.sweep()
    assert arena.statistics().blocks == blocks
    return storm


def lost_of(storm: Storm) -> list[int]:
    """Return the items that were lost, each of which must be named by its own future alone."""
    lost, named = [], set()
    for item, future in storm.futures.items():
        error = future.exception()
        if error is None:
            assert future.result() == 2 * item
            continue
        assert isinstance(error, WorkerDied), repr(error)
        assert error.task.function == "double"
        named.add(error.task.number)
        lost.append(item)
    assert len(named) == len(lost)
    return lost
