"""An executor of two workers, and what tests have them do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipcmap import Arena, ProcessPoolExecutor, Ring
from processes import read


@pytest.fixture
def executor(engine: str, arena: Arena) -> Iterator[ProcessPoolExecutor]:
    """An executor of two workers."""
    with ProcessPoolExecutor(2, arena=arena) as executor:
        yield executor


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
