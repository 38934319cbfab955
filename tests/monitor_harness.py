"""What tests of locks and semaphores share: traps for their stores, and counts of who waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import ipcmap
from children import Child, die
from ipcmap._core import monitor_layout as at
from ring_harness import Trap

Guard = ipcmap.Lock | ipcmap.RLock | ipcmap.Semaphore
LockType = type[ipcmap.Lock]
SemaphoreType = type[ipcmap.Semaphore]


class Raised(Exception):
    """What a signal handler raises."""


def leave_to_reference(guard: Guard) -> None:
    """Let this process use it by the methods of the reference engine, on the same bytes."""
    if hasattr(guard, "_native"):
        del guard._native


def set_trap(guard: Guard, store: int, before: bool, act: Callable[[], object]) -> Trap:
    """Act at the n-th store of a word from here on, by the methods of the reference engine."""
    leave_to_reference(guard)
    trap = Trap(guard._core._words, store, before, act)
    guard._core._words = cast(Any, trap)
    return trap


def sleepers(guard: Guard) -> int:
    """Return how many are counted as asleep."""
    return int(guard._core._words[at.SLEEPERS])


def wait_for_sleepers(guard: Guard, count: int) -> None:
    """Wait until so many are counted as asleep."""
    while sleepers(guard) < count:
        os.sched_yield()


def stop(child: Child, signal_number: int) -> None:
    """Stop a child, and wait until it is."""
    os.kill(child.pid, signal_number)
    os.waitpid(child.pid, os.WUNTRACED)


def wait_until_dead(child: Child) -> None:
    """Wait until a child has ended, and leave it as a zombie."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def take_and_die(guard: Guard) -> None:
    """Be killed with it."""
    assert guard.acquire()
    die()
