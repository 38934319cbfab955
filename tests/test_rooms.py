"""What condition, event, barrier and RWLock have in common, on every engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import BrokenBarrierError
from typing import Any

import pytest

from children import Fork, die
from ipcmap import Arena, Barrier, BusyError, Condition, CorruptError, Event, RWLock
from ipcmap._core import room_layout as at
from room_harness import InRoom, members, set_trap, wait_for_members

pytestmark = pytest.mark.usefixtures("engine")


def wait_at(room: InRoom, timeout: float | None) -> bool:
    """Wait in any of them; whether what was waited for came."""
    if isinstance(room, Condition):
        with room:
            return room.wait(timeout)
    if isinstance(room, Event):
        return room.wait(timeout)
    if isinstance(room, RWLock):
        return room.writer.acquire(timeout=timeout)
    try:
        room.wait(timeout)
    except BrokenBarrierError:
        return False
    return True


MAKERS: dict[str, Callable[..., Any]] = {
    "Condition": Condition,
    "Event": Event,
    "Barrier": lambda **keywords: Barrier(2, **keywords),
    "RWLock": RWLock,
}
ROOMS = pytest.mark.parametrize("kind", MAKERS)


@ROOMS
@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_timeout_ends_a_wait_for_one_who_is_stopped_inside(
    timeout: float, kind: str, arena: Arena, fork: Fork
) -> None:
    """Nothing is taken from the living, and nobody waits for ever for them."""
    room = MAKERS[kind](arena=arena)

    def stop_inside() -> None:
        if isinstance(room, Condition):  # without its lock, which would be waited for
            core = room._core
            set_trap(room, 4, True, lambda: os.kill(os.getpid(), signal.SIGSTOP))
            core.notify(1)
            core.attend(core_deadline, [0], core.come)
        set_trap(room, 4, True, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        wait_at(room, 0.01)

    from ipcmap._deadline import Deadline

    core_deadline = Deadline(30)
    child = fork(stop_inside)
    os.waitpid(child.pid, os.WUNTRACED)

    assert not wait_at(room, timeout)
    os.kill(child.pid, signal.SIGCONT)
    child.kill()


@ROOMS
def test_a_handler_that_waits_where_it_interrupts_gets_an_error(kind: str, arena: Arena) -> None:
    """Not a deadlock; the call that it broke into goes on."""
    room = MAKERS[kind](arena=arena)
    refused: list[bool] = []

    def reenter() -> None:
        room._core._words = trap.memory
        with pytest.raises(BusyError, match="return from the handler first"):
            wait_at(room, 1)
        refused.append(True)

    trap = set_trap(room, 4, True, reenter)
    wait_at(room, 0.05)

    assert refused == [True]


@ROOMS
def test_the_dead_take_no_room(kind: str, arena: Arena, fork: Fork) -> None:
    """However many were killed there."""
    room = MAKERS[kind](max_waiters=2, arena=arena)
    if kind == "RWLock":
        room.reader.acquire()
    for _ in range(4):
        child = fork(wait_at, room, None)
        wait_for_members(room, 1)
        while not room._core.count_waiting() and kind != "RWLock":
            os.sched_yield()
        child.kill()
        if kind == "Barrier":
            room.reset()
    assert not wait_at(room, 0.1) if kind != "RWLock" else room.reader.acquire(timeout=30)


@ROOMS
def test_a_number_of_cells_that_cannot_be_is_an_error(kind: str, arena: Arena) -> None:
    """Rather than cells behind the end of the block."""
    for word, value in ((at.USED, 2000), (at.LAST, 2**64 - 2)):
        room = MAKERS[kind](arena=arena)
        room._core._words[word] = value
        with pytest.raises(CorruptError, match=f"{kind} was overwritten"):
            wait_at(room, 1)
    with pytest.raises(ValueError, match="max_waiters"):
        MAKERS[kind](max_waiters=0, arena=arena)


def test_who_is_killed_while_it_buries_leaves_the_rest_to_the_next(
    arena: Arena, fork: Fork
) -> None:
    """At each store of it."""
    for store in range(1, 5):
        lock = RWLock(arena=arena)

        def take_and_die(lock: RWLock = lock) -> None:
            lock.writer.acquire()
            die()

        def bury(lock: RWLock = lock, store: int = store) -> None:
            set_trap(lock, store, True, die)
            lock.writer.acquire(timeout=30)

        fork(take_and_die).wait()
        assert fork(bury).wait() == -signal.SIGKILL
        assert lock.writer.acquire(timeout=30)
        assert lock.recovered
        assert len(members(lock)) == 1
