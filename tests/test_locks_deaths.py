"""The lock when processes die, stop, exec, or end by themselves."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys

import pytest

from children import Fork, die
from ipcmap import Arena, Mapping, Semaphore
from ipcmap._core import monitor_layout as at
from ipcmap._core import reference_parking as parking
from monitor_harness import (
    LockType,
    leave_to_reference,
    set_trap,
    sleepers,
    stop,
    take_and_die,
    wait_for_sleepers,
    wait_until_dead,
)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2, 3])
def test_who_dies_at_any_store_of_acquire_does_not_have_it(
    store: int, before: bool, lock_type: LockType, fork: Fork
) -> None:
    """Not taken, or taken over."""
    lock = lock_type()

    def take() -> None:
        set_trap(lock, store, before, die)
        lock.acquire()

    assert fork(take).wait() == -signal.SIGKILL
    assert not lock.locked()
    assert lock.acquire(block=False)
    lock.release()


@pytest.mark.parametrize("before", [True, False])
def test_who_dies_at_the_store_of_release_does_not_have_it(
    before: bool, lock_type: LockType, fork: Fork
) -> None:
    """Released, or taken over."""
    lock = lock_type()

    def give() -> None:
        lock.acquire()
        set_trap(lock, 1, before, die)
        lock.release()

    assert fork(give).wait() == -signal.SIGKILL
    assert lock.acquire(block=False)
    assert not lock.acquire(block=False)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2, 3, 4, 5])
def test_who_dies_at_any_store_of_a_wait_harms_nobody(
    store: int, before: bool, lock_type: LockType, fork: Fork
) -> None:
    """Announced, woken, or just about to have it: the others go on."""
    lock = lock_type()
    lock.acquire()

    def wait() -> None:
        set_trap(lock, store, before, die)
        lock.acquire()
        os._exit(0)

    child = fork(wait)
    if (store, before) != (1, True):
        wait_for_sleepers(lock, 1)
        lock.release()
        died = child.wait()
        assert died == -signal.SIGKILL
        assert lock.acquire(timeout=30)
    assert child.wait() == -signal.SIGKILL
    lock.release()
    assert lock.acquire(block=False)


@pytest.mark.parametrize("reaped", [True, False])
def test_all_who_wait_for_a_killed_holder_go_on_one_at_a_time(
    reaped: bool, lock_type: LockType, fork: Fork
) -> None:
    """Whether or not the parent has seen what it died of."""
    lock, shared = lock_type(), Mapping.anonymous(16)
    inside, most = (shared.view(offset, 8).cast("Q") for offset in (0, 8))

    def hold() -> None:
        lock.acquire()
        most[0] = 1
        signal.pause()

    def enter() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            os.sched_yield()
            inside[0] -= 1

    holder = fork(hold)
    while not most[0]:
        os.sched_yield()
    children = [fork(enter) for _ in range(10)]
    wait_for_sleepers(lock, 10)
    os.kill(holder.pid, signal.SIGKILL)
    if reaped:
        holder.wait()

    assert [child.wait() for child in children] == [0] * 10
    assert [inside[0], most[0]] == [0, 1]
    assert sleepers(lock) == 0
    if not reaped:
        assert [(d.pid, d.signal) for d in lock._arena.deaths() if d.pid == holder.pid] == [
            (holder.pid, signal.SIGKILL)
        ]


def test_who_takes_over_from_a_killed_holder_can_ask(lock_type: LockType, fork: Fork) -> None:
    """Until it gives the lock back; who takes over from a second one is told again."""
    lock = lock_type()

    def told() -> bool:
        with lock:
            return lock.recovered

    def hold() -> None:
        lock.acquire()
        assert lock.recovered
        die()

    assert not told()
    fork(take_and_die, lock).wait()
    assert fork(hold).wait() == -signal.SIGKILL
    assert told()
    assert not told()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2])
def test_who_dies_at_any_store_of_a_take_over_hides_no_death(
    store: int, before: bool, lock_type: LockType, fork: Fork
) -> None:
    """The next takes over all the same, and is told."""
    lock = lock_type()

    def take_over() -> None:
        set_trap(lock, store, before, die)
        lock.acquire(block=False)

    fork(take_and_die, lock).wait()
    assert fork(take_over).wait() == -signal.SIGKILL

    assert lock.acquire(block=False)
    assert lock.recovered


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2])
def test_who_dies_as_it_gives_back_what_it_took_over_does_not_have_it(
    store: int, before: bool, lock_type: LockType, fork: Fork
) -> None:
    """Told once too often, if anything."""
    lock = lock_type()

    def repair() -> None:
        lock.acquire()
        set_trap(lock, store, before, die)
        lock.release()

    fork(take_and_die, lock).wait()
    assert fork(repair).wait() == -signal.SIGKILL

    assert lock.acquire(block=False)
    assert lock.recovered or (store, before) == (2, False)


def test_a_stopped_holder_is_not_robbed(lock_type: LockType, fork: Fork) -> None:
    """It is alive, and has it when it goes on."""
    lock, ready, go = lock_type(), Semaphore(0), Semaphore(0)

    def hold() -> None:
        with lock:
            ready.release()
            go.acquire()
            assert lock.locked()

    holder = fork(hold)
    ready.acquire()
    stop(holder, signal.SIGSTOP)

    assert not lock.acquire(timeout=0.3)
    assert lock.locked()
    os.kill(holder.pid, signal.SIGCONT)
    go.release()
    assert lock.acquire(timeout=30)
    assert holder.wait() == 0


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_leaves_it_taken(code: int, lock_type: LockType, fork: Fork) -> None:
    """As in multiprocessing, and until somebody releases it for the one who is gone."""
    lock = lock_type()

    def hold() -> None:
        lock.acquire()
        os._exit(code)

    child = fork(hold)
    wait_until_dead(child)

    assert not lock.acquire(timeout=0.1)
    assert child.wait() == code
    lock._arena.sweep()
    assert lock.locked()
    assert not lock.acquire(block=False)
    lock.release()
    assert lock.acquire(block=False)


def test_the_end_of_an_interpreter_leaves_it_taken_though_nobody_saw_its_exit_code() -> None:
    """The process said so itself, before its parent reaped it."""
    program = (
        "import os, ipcmap\n"
        "lock = ipcmap.Lock()\n"
        "pid = os.fork()\n"
        "lock.acquire() if pid == 0 else os.waitpid(pid, 0)\n"
        "if pid:\n"
        "    print(lock.locked(), lock.acquire(timeout=0.1))\n"
        "    print([(d.cause, d.exitcode) for d in ipcmap.default_arena().deaths()])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (ended.stdout, ended.stderr) == ("True False\n[('exited', None)]\n", "")


def test_the_end_of_a_process_of_multiprocessing_leaves_it_taken(lock_type: LockType) -> None:
    """It ends by os._exit and is reaped by join, but says so before."""
    context = multiprocessing.get_context("fork")
    lock, killed = lock_type(), lock_type()

    def hold_and_die() -> None:
        killed.acquire()
        die()

    for target in (lock.acquire, hold_and_die):
        process = context.Process(target=target)
        process.start()
        process.join()
        process.close()

    assert lock.locked()
    assert not lock.acquire(timeout=0.05)
    assert killed.acquire(block=False)


def test_an_exit_that_nobody_can_tell_from_a_kill_counts_as_one(
    lock_type: LockType, fork: Fork
) -> None:
    """os._exit, and reaped before anyone looked: a wait for ever is the worse mistake."""
    lock = lock_type()
    fork(lock.acquire).wait()

    assert lock.acquire(timeout=30)


def test_who_becomes_another_program_loses_it(lock_type: LockType, fork: Fork) -> None:
    """It has the region no more, and could never give it back."""
    lock, ready = lock_type(), Semaphore(0)

    def hold() -> None:
        lock.acquire()
        ready.release()
        os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])

    child = fork(hold)
    ready.acquire()

    assert lock.acquire(timeout=30)
    child.kill()


def test_a_newcomer_in_the_slot_of_the_dead_is_not_taken_for_it(
    lock_type: LockType, fork: Fork
) -> None:
    """The slot's number is the same, its generation is not."""
    with_few = Arena(1 << 20, max_processes=2)
    lock, ready, go = lock_type(arena=with_few), Semaphore(0), Semaphore(0)
    with_few._open().family.slot()

    def hold() -> None:
        lock.acquire()
        die()

    def live_on() -> None:
        assert with_few._open().family.slot() == 2
        ready.release()
        go.acquire()

    fork(hold).wait()
    newcomer = fork(live_on)
    ready.acquire()

    assert not lock.locked()
    assert lock.acquire(block=False)
    go.release()
    assert newcomer.wait() == 0


def test_a_sleeper_gets_it_though_the_one_woken_is_killed(lock_type: LockType, fork: Fork) -> None:
    """The token died with it; the other looks again at the end of its slice."""
    lock = lock_type()
    lock.acquire()
    victim = fork(lock.acquire)
    wait_for_sleepers(lock, 1)
    stop(victim, signal.SIGSTOP)
    other = fork(lock.acquire)
    wait_for_sleepers(lock, 2)
    lock.release()
    victim.kill()

    assert other.wait() == 0


def test_a_sleeper_gets_it_though_the_giver_was_killed_before_it_woke_anyone(
    lock_type: LockType, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is free, and the sleeper finds that at the end of its slice."""
    lock, ready = lock_type(), Semaphore(0)

    def give() -> None:
        leave_to_reference(lock)
        with lock:
            ready.release()
            wait_for_sleepers(lock, 1)
            monkeypatch.setattr(parking, "wake", lambda place: die())

    giver = fork(give)
    ready.acquire()
    sleeper = fork(lock.acquire)

    assert giver.wait() == -signal.SIGKILL
    assert sleeper.wait() == 0


def test_a_timeout_ends_a_wait_for_one_who_is_stopped_inside(
    lock_type: LockType, fork: Fork
) -> None:
    """Nothing is taken from the living, and nobody waits for ever for them."""
    lock = lock_type()

    def take() -> None:
        set_trap(lock, 2, True, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        lock.acquire()
        lock.release()

    child = fork(take)
    os.waitpid(child.pid, os.WUNTRACED)

    assert not lock.acquire(timeout=0.3)
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0
    assert lock.acquire(timeout=30)


def test_who_finds_a_death_too_late_strikes_out_nobody_else(
    lock_type: LockType, fork: Fork
) -> None:
    """Two waiters found it, and one of them has the lock by now."""
    lock = lock_type()
    fork(lock.acquire).wait()
    dead = lock._core._words[at.HOLDER]
    assert lock.acquire()

    assert not lock._core._settle(dead, False)
    assert lock.locked()


@pytest.mark.parametrize(
    "rounds", [60, pytest.param(3000, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])]
)
def test_a_storm_of_kills_breaks_no_exclusion_and_stops_nobody(
    rounds: int, chance: random.Random, lock_type: LockType, fork: Fork
) -> None:
    """Two counts are raised one after the other under the lock, by processes killed at random.

    Who is killed between them leaves the first ahead by one, and the next who has the
    lock levels them. A second process inside would find them uneven while nobody died.
    """
    lock, shared = lock_type(), Mapping.anonymous(24)
    words = shared.view().cast("Q")
    first, second, repairs = range(3)

    def add() -> None:
        while True:
            with lock:
                if words[first] != words[second]:
                    assert words[first] == words[second] + 1
                    words[repairs] += 1
                    words[second] = words[first]
                words[first] += 1
                if not words[first] % 7:
                    os.sched_yield()
                words[second] += 1

    children = [fork(add) for _ in range(4)]
    for _ in range(rounds):
        until = words[second] + chance.randrange(1, 200)
        while words[second] < until:
            os.sched_yield()
        victim = children.pop(chance.randrange(len(children)))
        if chance.random() < 0.3:
            stop(victim, signal.SIGSTOP)
        victim.kill()
        assert victim.wait() == -signal.SIGKILL, "no assertion failed in it"
        children.append(fork(add))
    for child in children:
        child.kill()
        assert child.wait() == -signal.SIGKILL

    assert lock.acquire(timeout=30)
    assert words[first] - words[second] in (0, 1)
    assert words[repairs] <= rounds + 4
