"""The lock for many readers or one writer, on every engine."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import signal
import sys
import time
from types import FrameType
from typing import Any

import pytest

from children import Child, Fork, die
from ipcmap import Arena, BusyError, Lock, Mapping, NotOwned, RWLock, StaleHandle
from ipcmap._core.reference_rwlocks import READ, RWLockCore
from ipcmap.rwlock import Side
from monitor_harness import Raised, stop, wait_until_dead
from room_harness import (
    in_a_thread,
    last_ticket,
    members,
    set_trap,
    wait_for_arrival,
    wait_for_members,
)

pytestmark = pytest.mark.usefixtures("engine")


def taker(fork: Fork, side: Side, *, holds: bool = False) -> Child:
    """Return a child that stands in the queue, and exits with 0, or stays, once it has it."""
    before = last_ticket(side._lock)

    def take() -> None:
        with side:
            if holds:
                signal.pause()

    child = fork(take)
    wait_for_arrival(side._lock, before)
    return child


def can(fork: Fork, side: Side) -> bool:
    """Return whether another process could take it now."""
    return fork(lambda: os._exit(side.acquire(block=False))).wait() == 1


def test_many_read_or_one_writes(arena: Arena, fork: Fork) -> None:
    """Another thread is another holder."""
    lock = RWLock(arena=arena)

    with lock.reader:
        assert can(fork, lock.reader)
        assert not can(fork, lock.writer)
        assert in_a_thread(lambda: lock.reader.acquire(False)) is True
        assert (lock.reader.locked(), lock.writer.locked()) == (True, False)
    lock = RWLock(arena=arena)
    with lock.writer:
        assert not can(fork, lock.reader)
        assert not can(fork, lock.writer)
        assert in_a_thread(lambda: lock.reader.acquire(timeout=0.01)) is False
        assert repr(lock) == "<RWLock(readers=0, writers=1)>"
    assert can(fork, lock.writer)


def test_who_waits_longest_comes_next(arena: Arena, fork: Fork, endless_rooms: None) -> None:
    """A writer is not passed by later readers, nor they by a later writer."""
    lock, shared = RWLock(arena=arena), Mapping.anonymous(8)
    order: list[Child] = []
    count = shared.view().cast("Q")

    def take(side: Side, first: int, last: int) -> None:
        with side:
            assert first <= count[0] <= last
            with_all.acquire()
            count[0] += 1
            with_all.release()

    with_all = Lock(arena=arena)
    lock.reader.acquire()
    turns = [(lock.writer, 0, 0), *[(lock.reader, 1, 3)] * 3, (lock.writer, 4, 4)]
    for number, turn in enumerate(turns):
        order.append(fork(take, *turn))
        wait_for_members(lock, number + 2)
    assert not can(fork, lock.reader)
    lock.reader.release()

    assert [child.wait() for child in order] == [0] * 5
    assert count[0] == 5
    assert members(lock) == []


def test_a_timeout_of_a_writer_lets_the_readers_behind_it_go_on(
    arena: Arena, fork: Fork, endless_rooms: None
) -> None:
    """It stood in the way of nothing else."""
    lock = RWLock(arena=arena)
    with lock.reader:
        writer = fork(lambda: os._exit(lock.writer.acquire(timeout=0.3)))
        wait_for_members(lock, 2)
        reader = taker(fork, lock.reader)
        assert writer.wait() == 0
        assert reader.wait() == 0


def test_a_thread_reads_as_often_as_it_likes(arena: Arena, fork: Fork) -> None:
    """Also while a writer waits; what it could never get is an error, not a deadlock."""
    lock = RWLock(arena=arena)
    with lock.reader:
        writer = taker(fork, lock.writer)
        with lock.reader, pytest.raises(BusyError, match="has it already"):
            lock.writer.acquire()
        assert not can(fork, lock.writer)
    assert writer.wait() == 0
    with lock.writer:
        for side in (lock.writer, lock.reader):
            with pytest.raises(BusyError, match="release it first"):
                side.acquire(timeout=1)


def test_only_who_has_it_gives_it_back(arena: Arena, fork: Fork) -> None:
    """No other thread, and no other side."""
    lock = RWLock(arena=arena)
    for side, other in ((lock.reader, lock.writer), (lock.writer, lock.reader)):
        with pytest.raises(NotOwned, match="acquire it before"):
            side.release()
        with side:
            assert isinstance(in_a_thread(side.release), NotOwned)
            with pytest.raises(NotOwned):
                other.release()


def test_it_travels_by_pickle_and_has_an_end(arena: Arena) -> None:
    """Both sides are handles of one lock."""
    lock = RWLock(arena=arena)
    copy: RWLock = pickle.loads(pickle.dumps(lock))
    copy.writer.acquire()
    assert lock.writer.locked()
    lock.writer.release()
    lock.destroy()
    with pytest.raises(StaleHandle):
        copy.reader.acquire()


# Deaths


def test_a_killed_reader_is_forgotten(arena: Arena, fork: Fork) -> None:
    """The writer that waits for it goes on; nothing was recovered."""
    lock = RWLock(arena=arena)
    reader = taker(fork, lock.reader, holds=True)
    writer = taker(fork, lock.writer)
    reader.kill()

    assert writer.wait() == 0
    assert not lock.recovered


@pytest.mark.parametrize("code", [0, -signal.SIGKILL])
def test_after_a_writer_that_died_the_next_can_ask(code: int, arena: Arena, fork: Fork) -> None:
    """Until a writer has given it back; readers are told as well."""
    lock = RWLock(arena=arena)

    def take() -> None:
        lock.writer.acquire()
        if code:
            die()

    child = fork(take)
    wait_until_dead(child)

    with lock.reader:
        assert lock.recovered
    told = []
    for _ in range(2):
        with lock.writer:
            told.append(lock.recovered)
    assert told == [True, False]
    assert child.wait() == code


def test_a_dead_one_in_the_queue_is_no_obstacle(arena: Arena, fork: Fork) -> None:
    """Nor is the token that it was about to get."""
    lock = RWLock(arena=arena)
    lock.reader.acquire()
    victim = taker(fork, lock.writer)
    reader = taker(fork, lock.reader)
    victim.kill()
    assert reader.wait() == 0

    victim = taker(fork, lock.writer)
    stop(victim, signal.SIGSTOP)
    lock.reader.release()
    assert lock._core.held() == (0, 1)
    victim.kill()
    assert lock.reader.acquire(timeout=30)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("side", ["reader", "writer"])
@pytest.mark.parametrize("store", range(1, 13))
def test_who_dies_at_any_store_of_a_turn_holds_nobody_up(
    store: int, side: str, before: bool, arena: Arena, fork: Fork
) -> None:
    """Coming, waiting, being granted, giving back and granting the others."""
    lock = RWLock(arena=arena)
    mine: Side = getattr(lock, side)
    held = taker(fork, lock.writer, holds=True)

    def turn() -> None:
        set_trap(lock, store, before, die)
        with mine:
            pass

    child = fork(turn)
    while len(members(lock)) < 2 and not os.waitid(
        os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG
    ):
        os.sched_yield()
    waiting = [taker(fork, getattr(lock, name)) for name in ("reader", "reader", "writer")]
    held.kill()

    assert child.wait() in (-signal.SIGKILL, 0)
    assert [other.wait() for other in waiting] == [0] * 3
    assert lock.writer.acquire(timeout=30)


# Signals


def test_what_a_handler_raises_comes_out_and_nothing_is_taken(arena: Arena, fork: Fork) -> None:
    """Of the wait of a writer; the reader behind it goes on."""
    lock = RWLock(arena=arena)
    reader = taker(fork, lock.reader, holds=True)

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(Raised):
            lock.writer.acquire()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert can(fork, lock.reader)
    reader.kill()


@pytest.mark.parametrize("rounds", [40])
def test_a_storm_of_kills_breaks_no_exclusion_and_stops_nobody(
    rounds: int, chance: random.Random, arena: Arena, fork: Fork
) -> None:
    """Writers raise two counts one after the other; readers never see them differ.

    Only behind a writer that died may they differ, and then the lock says so.
    """
    lock, shared = RWLock(arena=arena), Mapping.anonymous(24)
    words = shared.view().cast("Q")

    def write() -> None:
        while True:
            with lock.writer:
                assert words[0] == words[1] or lock.recovered
                words[0] = words[1] = max(words[0], words[1])
                words[0] += 1
                os.sched_yield()
                words[1] += 1

    def read() -> None:
        while True:
            with lock.reader:
                assert words[0] == words[1] or lock.recovered
                words[2] += 1

    kinds = [write, read, read, write]
    children = [fork(kind) for kind in kinds]
    for _ in range(rounds):
        until = words[1] + chance.randrange(1, 20)
        while words[1] < until:
            time.sleep(0.0005)
        index = chance.randrange(len(children))
        if chance.random() < 0.3:
            stop(children[index], signal.SIGSTOP)
        children[index].kill()
        assert children[index].wait() == -signal.SIGKILL, "no assertion failed in it"
        children[index] = fork(kinds[index])
    for child in children:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert lock.writer.acquire(timeout=30)


def test_a_release_that_is_broken_off_gives_back_one_level() -> None:
    """At whichever step; of three levels two are left, and the last release is the last."""
    ours = RWLockCore._give.__code__

    class Broken(BaseException):
        """As a signal handler raises it."""

    for levels in (1, 3):
        for at in itertools.count(1):
            lock = RWLock()
            for _ in range(levels):
                lock.reader.acquire()
            steps = itertools.count(1)

            def trace(frame: Any, event: str, _: Any, steps: Any = steps, at: int = at) -> Any:
                if frame.f_code is ours and event == "line" and next(steps) == at:
                    raise Broken
                return trace

            sys.settrace(trace)
            try:
                lock.reader.release()
                broken = False
            except Broken:
                broken = True
            finally:
                sys.settrace(None)
            assert lock._core.levels(READ) == levels - 1
            lock.destroy()
            if not broken:
                assert at > 2
                break
