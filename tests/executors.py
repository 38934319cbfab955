"""An executor of two workers, and what tests have them do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from ipcmap import Arena, Pool, ProcessPoolExecutor, Ring
from processes import read


@pytest.fixture
def executor(engine: str, arena: Arena) -> Iterator[ProcessPoolExecutor]:
    """An executor of two workers."""
    with ProcessPoolExecutor(2, arena=arena) as executor:
        yield executor


@contextlib.contextmanager
def held_by_a_thread(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Have another thread hold a lock, as at a fork, until the block ends."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        holder.join()


def same(obj: Any) -> Any:
    """Return what is given."""
    return obj


def are_one(one: object, other: object) -> bool:
    """Return whether both are the same object."""
    return one is other


def add(one: int, other: int) -> int:
    """Add two numbers."""
    return one + other


def pid_of(_: object = None) -> int:
    """Return the worker's pid."""
    return os.getpid()


def die(number: int = signal.SIGKILL) -> None:
    """Die of a signal."""
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)
    threading.Event().wait()


def exit_at_once(code: int) -> None:
    """End the process without any ado."""
    os._exit(code)


def die_on(item: int, fatal: int) -> int:
    """Return the item; die of the fatal one."""
    if item == fatal:
        die()
    return item


def die_once(ring: Ring, item: int) -> int:
    """Die as long as there is something in the ring."""
    with contextlib.suppress(Exception):
        ring.get(0)
        die()
    return item


def record(ring: Ring, item: int) -> int:
    """Put a record for each call."""
    ring.put(str(item).encode())
    return item


def fail(error: BaseException) -> None:
    """Raise."""
    raise error


def say_and_wait(said: Ring, gate: Ring, item: object = b"begun") -> object:
    """Say that the task has begun, and wait until something comes through the gate."""
    said.put(str(item).encode())
    gate.get()
    return item


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    while not condition():
        time.sleep(0.001)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] in ([], ["Z"])


class Unpicklable(Exception):
    """An exception that is not loaded as it was dumped."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Loud:
    """An object that kills whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return die, ()


class Unloadable:
    """An object that cannot be loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (ValueError("not to be loaded"),)


class Undumpable:
    """An object that cannot be dumped."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("not to be dumped")


class Hooked:
    """An object that is loaded as 5, by calling what is in ``hooks`` of the process."""

    hooks: list[Callable[[], object]] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        return load_hooked, ()


def load_hooked() -> int:
    """Load it."""
    while Hooked.hooks:
        Hooked.hooks.pop()()
    return 5


def make_hooked(_: object = None) -> Hooked:
    """Return what calls the hooks of whoever loads it."""
    return Hooked()


def make_undumpable() -> Undumpable:
    """Return what cannot be dumped."""
    return Undumpable()


def record_number(ring: Ring, item: int) -> int:
    """Put a record for each number."""
    if not isinstance(item, int):
        raise ValueError("no number")
    return record(ring, item)


def fail_always(_: object) -> None:
    """Raise, whatever comes."""
    raise ValueError("from a callback")


def interrupt(_: object) -> None:
    """Raise as a signal handler does."""
    raise KeyboardInterrupt


def squares_of_pool(count: int) -> list[int]:
    """Have a pool of this process's own do it."""
    with Pool(2) as pool:
        return pool.starmap(pow, [(item, 2) for item in range(count)], 1)


class Recorder:
    """Puts a record for each call."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring

    def __call__(self, item: int) -> int:
        """Do it."""
        return record(self.ring, item)


class Waiter:
    """Says that a call has begun, and waits until something comes through the gate."""

    def __init__(self, said: Ring, gate: Ring) -> None:
        self.said, self.gate = said, gate

    def __call__(self, item: int) -> object:
        """Do it."""
        return say_and_wait(self.said, self.gate, item)


class Blocker(Waiter):
    """Does so for one item."""

    def __init__(self, said: Ring, gate: Ring, blocking: int) -> None:
        super().__init__(said, gate)
        self.blocking = blocking

    def __call__(self, item: int) -> object:
        """Return the item."""
        return super().__call__(item) if item == self.blocking else item


class Fatal:
    """Kills whoever calls it with one item."""

    def __init__(self, item: int) -> None:
        self.item = item

    def __call__(self, item: int) -> int:
        """Return the item."""
        return die_on(item, self.item)


def record_or_die(ring: Ring, item: int, fatal: int) -> int:
    """Put a record for each call but the fatal one."""
    return record(ring, die_on(item, fatal))


def ignore_and_wait(said: Ring, gate: Ring) -> object:
    """Wait, and do not end of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return say_and_wait(said, gate)
