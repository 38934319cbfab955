"""The lock that its thread may take again: what differs from the other one, on every engine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal

import pytest

from children import Fork, die
from ipcmap import Arena, CorruptError, NotOwned, RLock, Semaphore
from ipcmap._core import monitor_layout as at
from monitor_harness import Raised, set_trap, sleepers, wait_for_sleepers, wait_until_dead
from room_harness import in_a_thread

pytestmark = pytest.mark.usefixtures("engine")


def test_its_thread_takes_it_as_often_as_it_likes(arena: Arena, fork: Fork) -> None:
    """Others get it after as many releases, and not before."""
    lock = RLock(arena=arena)
    for _ in range(3):
        assert lock.acquire()
    for _ in range(3):
        assert in_a_thread(lambda: lock.acquire(block=False)) is False
        assert fork(lambda: os._exit(lock.acquire(block=False))).wait() == 0
        lock.release()

    assert fork(lambda: os._exit(not lock.acquire(block=False))).wait() == 0


def test_nobody_else_releases_it(arena: Arena, fork: Fork) -> None:
    """Neither a thread, nor a child, nor the one who has given it back; it is as it was."""
    lock = RLock(arena=arena)

    def refused() -> None:
        with pytest.raises(NotOwned, match="not owned by thread") as raised:
            lock.release()
        assert isinstance(raised.value, AssertionError)
        assert isinstance(raised.value, RuntimeError)

    refused()
    with lock:
        assert isinstance(in_a_thread(lock.release), NotOwned)
        assert fork(refused).wait() == 0
        assert lock.locked()
    refused()
    assert not lock.locked()


def test_its_repr_is_that_of_multiprocessing(arena: Arena, fork: Fork) -> None:
    """Owner and count, as far as they are this process's to know."""
    lock, peer = RLock(arena=arena), multiprocessing.get_context("fork").RLock()

    def both() -> str:
        assert repr(lock) == repr(peer)
        return repr(lock)

    assert both() == "<RLock(None, 0)>"
    for _ in range(3):
        lock.acquire()
        peer.acquire()
    assert both() == "<RLock(MainProcess, 3)>"
    assert in_a_thread(both) == "<RLock(SomeOtherThread, nonzero)>"
    assert fork(lambda: os._exit(repr(lock) != "<RLock(SomeOtherProcess, nonzero)>")).wait() == 0


def test_it_travels_by_pickle(arena: Arena) -> None:
    """The count as well: it is one and the same lock."""
    lock = RLock(arena=arena)
    lock.acquire()
    copy: RLock = pickle.loads(pickle.dumps(lock))

    copy.acquire()
    assert repr(lock) == "<RLock(MainProcess, 2)>"
    copy.release()
    copy.release()
    assert not lock.locked()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", range(1, 10))
def test_who_dies_at_any_store_loses_all_of_it(
    store: int, before: bool, arena: Arena, fork: Fork
) -> None:
    """Two acquires and two releases, broken off anywhere."""
    lock = RLock(arena=arena)

    def use() -> None:
        set_trap(lock, store, before, die)
        with lock, lock:
            pass

    code = fork(use).wait()
    assert code == (-signal.SIGKILL if store <= 7 else 0), "seven stores"
    assert lock.acquire(block=False)
    assert repr(lock) == "<RLock(MainProcess, 1)>"


def test_a_killed_holder_gives_way_to_all_who_wait(arena: Arena, fork: Fork) -> None:
    """However deep it was in."""
    lock, ready = RLock(arena=arena), Semaphore(0, arena=arena)

    def hold() -> None:
        with lock, lock:
            ready.release()
            signal.pause()

    def enter() -> None:
        with lock, lock:
            os.sched_yield()

    holder = fork(hold)
    ready.acquire()
    children = [fork(enter) for _ in range(5)]
    wait_for_sleepers(lock, 5)
    os.kill(holder.pid, signal.SIGKILL)

    assert [child.wait() for child in children] == [0] * 5
    assert sleepers(lock) == 0
    assert not lock.recovered


def test_an_exit_leaves_it_taken(arena: Arena, fork: Fork) -> None:
    """As in multiprocessing, where nobody can release it any more."""
    lock = RLock(arena=arena)
    child = fork(lock.acquire)
    wait_until_dead(child)

    assert not lock.acquire(timeout=0.05)
    with pytest.raises(NotOwned):
        lock.release()


@pytest.mark.parametrize("store", [4, 5, 6, 7])
def test_a_handler_that_raises_at_any_store_leaves_the_count_right(
    store: int, arena: Arena
) -> None:
    """The second acquire and both releases: undone, or finished."""
    lock = RLock(arena=arena)

    def raise_it() -> None:
        raise Raised

    trap = set_trap(lock, store, True, raise_it)
    taken = 0
    try:
        for step in (1, 1, -1, -1):
            (lock.acquire if step > 0 else lock.release)()
            taken += step
    except Raised:
        taken -= store > 5
    lock._core._words = trap.memory

    assert lock._count() == taken


def test_a_count_that_cannot_be_is_an_error(arena: Arena) -> None:
    """Rather than a lock that is never given back."""
    lock = RLock(arena=arena)
    lock.acquire()
    for count in (0, 2**31, 2**64 - 1):
        lock._core._words[at.COUNT] = count
        for call in (lock.acquire, lock.release):
            with pytest.raises(CorruptError, match="RLock was overwritten: count="):
                call()
