"""The event: a flag that processes wait for, on every engine."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time

import pytest

from children import Fork, die
from ipcmap import Arena, CorruptError, Event, StaleHandle
from ipcmap._core import room_layout as at
from room_harness import members, set_trap, wait_for_members

pytestmark = pytest.mark.usefixtures("engine")


def test_it_is_set_until_it_is_cleared(arena: Arena) -> None:
    """And a wait gives up when told."""
    event = Event(arena=arena)

    for _ in range(2):
        assert not event.is_set()
        assert not event.wait(0)
        began = time.monotonic()
        assert not event.wait(0.1)
        assert time.monotonic() - began >= 0.1
        event.set()
        assert event.is_set()
        assert event.wait()
        assert event.wait(-1)
        event.clear()


def test_all_who_wait_go_on_though_it_is_cleared_at_once(
    arena: Arena, fork: Fork, endless_rooms: None
) -> None:
    """The next wait is not one of them."""
    event = Event(arena=arena)
    for _ in range(3):
        children = [fork(lambda: os._exit(not event.wait())) for _ in range(6)]
        wait_for_members(event, 6)
        event.set()
        event.clear()
        assert not event.wait(0)
        assert [child.wait() for child in children] == [0] * 6
    assert members(event) == []


def test_its_repr_is_that_of_multiprocessing(arena: Arena) -> None:
    """Class, address, state."""
    event = Event(arena=arena)
    assert repr(event) == f"<Event at {id(event):#x} unset>"
    event.set()
    assert repr(event) == f"<Event at {id(event):#x} set>"
    event.destroy()
    assert "destroyed" in repr(event)
    for call in (event.set, event.clear, event.is_set, event.wait):
        with pytest.raises(StaleHandle):
            call()


def test_it_travels_by_pickle(arena: Arena) -> None:
    """One and the same flag."""
    event = Event(arena=arena)
    copy: Event = pickle.loads(pickle.dumps(event))
    copy.set()

    assert event.is_set()


def test_a_handler_may_set_what_it_interrupts(arena: Arena, fork: Fork) -> None:
    """At any store of a wait or a set; the wait sees it, and so do the others."""
    for store in range(1, 7):
        event = Event(arena=arena)
        other = fork(lambda event=event: os._exit(not event.wait()))
        wait_for_members(event, 1)
        trap = set_trap(event, store, True, event.set)
        assert event.wait(60)
        event._core._words = trap.memory
        assert other.wait() == 0
        assert event.is_set()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2])
def test_who_dies_at_any_store_of_set_has_set_it_or_not(
    store: int, before: bool, arena: Arena, fork: Fork
) -> None:
    """Once the flag is up, all who wait go on."""
    event = Event(arena=arena)
    children = [fork(lambda: os._exit(not event.wait())) for _ in range(3)]
    wait_for_members(event, 3)

    def set_it() -> None:
        set_trap(event, store, before, die)
        event.set()

    assert fork(set_it).wait() == -signal.SIGKILL
    assert event.is_set() == ((store, before) != (1, True))
    if not event.is_set():
        event.set()
    assert [child.wait() for child in children] == [0] * 3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", range(1, 8))
def test_who_dies_at_any_store_of_a_wait_holds_nobody_up(
    store: int, before: bool, arena: Arena, fork: Fork
) -> None:
    """Nor does it take room for ever."""
    event = Event(max_waiters=2, arena=arena)

    def wait() -> None:
        set_trap(event, store, before, die)
        event.wait(0.05)

    for _ in range(3):
        assert fork(wait).wait() in (-signal.SIGKILL, 0)
    child = fork(lambda: os._exit(not event.wait()))
    while not event._core.count_waiting():
        os.sched_yield()
    event.set()
    assert child.wait() == 0


def test_scribbled_bookkeeping_is_an_error_or_an_answer_and_never_a_crash(
    chance: random.Random, arena: Arena
) -> None:
    """Any value in any word but mutex and semaphores."""
    words = [at.USED, at.LAST, at.PASSED, at.LOOKED_AT, at.FLAG]
    words += [at.FIRST_CELL + word for word in range(4)]
    damaged = 0
    for _ in range(300):
        event = Event(max_waiters=2, arena=arena)
        for _ in range(2):
            value = chance.choice([0, 1, 2, 2**62, 2**63, 2**64 - 1, chance.randrange(2**64)])
            event._core._words[chance.choice(words)] = value
        for call in (event.is_set, lambda e=event: e.wait(0.0001), event.set):
            try:
                call()
            except CorruptError:
                damaged += 1
    assert damaged > 50
