"""An arena whose processes die: who it was is told, and what they had comes back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator

import pytest

from children import Child, Fork
from ipcmap import Arena, ArenaFull, Semaphore

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    """A small arena, closed with its test."""
    with_limit = Arena(8 * MIB, max_processes=8)
    yield with_limit
    with_limit.close()


def killed(fork: Fork, arena: Arena, *lengths: int) -> Child:
    """Return a child that allocated so many blocks and was killed."""
    done = Semaphore(0)

    def allocate() -> None:
        for length in lengths:
            arena.allocate(length).view()[:] = b"x" * length
        done.release()
        signal.pause()

    child = fork(allocate)
    done.acquire()
    done.destroy()
    child.kill()
    return child


def test_the_blocks_of_a_killed_process_come_back(arena: Arena, fork: Fork) -> None:
    """Small ones and large ones, and only its own."""
    mine = arena.allocate(100)
    child = killed(fork, arena, 10, 5000, 3 * MIB)
    assert arena.statistics().blocks == 4

    assert arena.sweep() == 1
    assert arena.statistics().blocks == 1
    assert arena.statistics().bytes_in_use == 100
    assert [record.pid for record in arena.deaths()] == [child.pid]
    mine.free()


def test_deaths_say_who_died_of_what(arena: Arena, fork: Fork) -> None:
    """Exit codes and signals, as long as nobody has reaped the child before."""

    def use_and_exit(code: int) -> None:
        arena.allocate(1)
        os._exit(code)

    def use_and_die(number: int) -> None:
        arena.allocate(1)
        os.kill(os.getpid(), number)

    children = [fork(use_and_exit, 0), fork(use_and_exit, 3), fork(use_and_die, signal.SIGTERM)]
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    records = {record.pid: record for record in arena.deaths()}
    assert [records[child.pid].exitcode for child in children] == [0, 3, -signal.SIGTERM]
    assert records[children[2].pid].signal == signal.SIGTERM
    assert arena.statistics().blocks == 0


def test_a_full_arena_sweeps_before_it_gives_up(arena: Arena, fork: Fork) -> None:
    """What only the dead hold is room."""
    killed(fork, arena, 7 * MIB)

    block = arena.allocate(7 * MIB)
    with pytest.raises(ArenaFull):
        arena.allocate(7 * MIB)
    block.free()


def test_many_more_processes_than_slots_one_after_the_other(arena: Arena, fork: Fork) -> None:
    """A claim that finds no slot free buries the dead first, their blocks included."""
    pids = [killed(fork, arena, 64, 2 * MIB).pid for _ in range(30)]

    assert sorted(record.pid for record in arena.deaths()) == sorted(pids)
    assert arena.statistics().blocks == 0


def test_a_sweep_that_comes_late_takes_nothing_from_the_next_owner_of_the_slot(
    arena: Arena, fork: Fork
) -> None:
    """Two sweepers may find one death; the slower one meets another generation."""
    killed(fork, arena, 64)
    family, allocator = arena._open().family, arena._open().allocator
    late: list[tuple[int, int]] = []
    family.on_death(lambda slot, generation: late.append((slot, generation)))
    arena.sweep()
    ready, over = Semaphore(0), Semaphore(0)

    def successor() -> None:
        block = arena.allocate(64)
        ready.release()
        over.acquire()
        block.free()

    child = fork(successor)
    ready.acquire()
    [(slot, generation)] = late
    assert [member.slot for member in family.members() if member.pid == child.pid] == [slot]
    freed = allocator.sweep(slot, dead=lambda: family.is_dying(slot, generation))
    over.release()

    assert freed == 0
    assert child.wait() == 0
    for semaphore in (ready, over):
        semaphore.destroy()


@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=pytest.mark.stress)])
@pytest.mark.timeout(600)
def test_a_storm_of_kills_leaves_no_block_behind(
    rounds: int, chance: random.Random, arena: Arena, fork: Fork
) -> None:
    """Children that allocate and free for ever, killed at random: all comes back, exactly."""
    counter = arena.allocate(64)
    words = counter.view().cast("Q")
    words[0] = 0

    def churn(number: int) -> None:
        own = random.Random(number)
        held = []
        while True:
            words[0] += 1
            with contextlib.suppress(ArenaFull):
                held.append(arena.allocate(own.choice([1, 100, 5000, 600_000])))
            if held and own.random() < 0.6:
                held.pop(own.randrange(len(held))).free()

    for number in range(rounds):
        children = [fork(churn, 2 * number), fork(churn, 2 * number + 1)]
        until = words[0] + chance.randrange(1, 80)
        while words[0] < until:
            os.sched_yield()
        for child in children:
            child.kill()
        if chance.random() < 0.3:
            arena.sweep()

    arena.sweep()
    assert arena.statistics().blocks == 1
    assert arena.statistics().bytes_in_use == 64
    assert arena.statistics().damaged == 0
    words.release()
    counter.free()
