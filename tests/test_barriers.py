"""The barrier: nobody goes on before all have come, on every engine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from threading import BrokenBarrierError

import pytest

from children import Child, Fork, die
from ipcmap import Arena, Barrier, Event, Mapping, StaleHandle
from monitor_harness import stop
from room_harness import (
    in_a_thread,
    last_ticket,
    members,
    set_trap,
    wait_for_arrival,
)

pytestmark = pytest.mark.usefixtures("engine")

BROKEN = 77


def comer(fork: Fork, barrier: Barrier) -> Child:
    """Return a child that comes, and exits with its number, or with BROKEN."""
    before = last_ticket(barrier)

    def come() -> None:
        try:
            os._exit(barrier.wait())
        except BrokenBarrierError:
            os._exit(BROKEN)

    child = fork(come)
    wait_for_arrival(barrier, before)
    return child


def test_all_go_on_once_all_have_come_each_with_a_number(
    arena: Arena, fork: Fork, endless_rooms: None
) -> None:
    """Round after round."""
    barrier = Barrier(4, arena=arena)

    for _ in range(3):
        children = [comer(fork, barrier) for _ in range(3)]
        assert (barrier.n_waiting, barrier.parties, barrier.broken) == (3, 4, False)
        assert "waiters=3/4" in repr(barrier)
        assert barrier.wait() == 3
        assert [child.wait() for child in children] == [0, 1, 2]
    assert members(barrier) == []


def test_nobody_is_a_round_ahead(arena: Arena, fork: Fork, endless_rooms: None) -> None:
    """Processes and threads count their rounds, and see all the others' at each."""
    parties, rounds = 4, 100
    barrier, shared = Barrier(parties, arena=arena), Mapping.anonymous(8 * parties)
    counts = shared.view().cast("Q")

    def run(party: int) -> None:
        for number in range(1, rounds + 1):
            counts[party] = number
            barrier.wait()
            assert min(counts) >= number
            barrier.wait()

    def run_two(party: int) -> None:
        thread = threading.Thread(target=run, args=(party,))
        thread.start()
        run(party + 1)
        thread.join()

    children = [fork(run_two, party) for party in (0, 2)]
    assert [child.wait() for child in children] == [0, 0]
    assert counts.tolist() == [rounds] * parties


def test_the_last_to_come_calls_the_action_before_all_go_on(arena: Arena, fork: Fork) -> None:
    """Once a round; who comes meanwhile is of the next."""
    late: list[Child] = []
    calls = Mapping.anonymous(1)

    def act() -> None:
        calls[0] = calls.read(0, 1)[0] + 1
        if calls[0] == 1:
            late.append(comer(fork, barrier))

    barrier = Barrier(2, act, arena=arena)
    child = comer(fork, barrier)
    assert barrier.wait() == 1
    assert child.wait() == 0
    assert barrier.wait() in (0, 1)
    assert late[0].wait() in (0, 1)
    assert calls[0] == 2


def test_what_the_action_raises_breaks_it(arena: Arena, fork: Fork) -> None:
    """It comes out of the wait of the one who called it."""
    barrier = Barrier(2, lambda: 1 / 0, arena=arena)
    child = comer(fork, barrier)

    with pytest.raises(ZeroDivisionError):
        barrier.wait()
    assert child.wait() == BROKEN
    assert barrier.broken
    assert members(barrier) == []


def test_a_timeout_breaks_it_for_all_until_it_is_reset(arena: Arena, fork: Fork) -> None:
    """The barrier's own, or the call's."""
    barrier = Barrier(3, timeout=0.05, arena=arena)
    copy: Barrier = pickle.loads(pickle.dumps(barrier))
    for timeout in (None, 0.01, 0):
        with pytest.raises(BrokenBarrierError, match="reset"):
            copy.wait(timeout)
        assert barrier.broken
        with pytest.raises(BrokenBarrierError):
            barrier.wait()
        assert barrier.n_waiting == 0
        assert repr(barrier).endswith(": broken>")
        barrier.reset()
        assert not barrier.broken


@pytest.mark.parametrize("end", ["abort", "reset"])
def test_an_abort_and_a_reset_send_away_who_waits(end: str, arena: Arena, fork: Fork) -> None:
    """Only the first leaves it broken."""
    barrier = Barrier(3, arena=arena)
    children = [comer(fork, barrier) for _ in range(2)]
    getattr(barrier, end)()

    assert [child.wait() for child in children] == [BROKEN, BROKEN]
    assert barrier.broken == (end == "abort")


def test_it_has_bounds(arena: Arena) -> None:
    """And an end."""
    with pytest.raises(ValueError, match="parties must be > 0"):
        Barrier(0, arena=arena)
    barrier = Barrier(1, arena=arena)
    assert barrier.wait() == barrier.wait() == 0
    barrier.destroy()
    for call in (barrier.wait, barrier.abort, barrier.reset):
        with pytest.raises(StaleHandle):
            call()


# Deaths


@pytest.mark.parametrize("stopped", [True, False])
def test_it_breaks_when_one_that_has_come_is_killed(
    stopped: bool, arena: Arena, fork: Fork
) -> None:
    """For who is there, and for who comes; a stopped one is no dead one."""
    barrier = Barrier(3, arena=arena)
    victim, survivor = comer(fork, barrier), comer(fork, barrier)
    if stopped:
        stop(victim, signal.SIGSTOP)
        assert in_a_thread(lambda: barrier.broken) is False
    victim.kill()

    assert survivor.wait() == BROKEN
    with pytest.raises(BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    children = [comer(fork, barrier) for _ in range(2)]
    barrier.wait()
    assert [child.wait() for child in children] == [0, 1]


def test_a_dead_one_does_not_complete_a_round(arena: Arena, fork: Fork) -> None:
    """Who comes last looks at those who came before; a kill a moment ago breaks it."""
    for action in (None, str):
        barrier = Barrier(3, action, arena=arena)
        victim, survivor = comer(fork, barrier), comer(fork, barrier)
        stop(survivor, signal.SIGSTOP)
        victim.kill()

        with pytest.raises(BrokenBarrierError):
            barrier.wait()
        os.kill(survivor.pid, signal.SIGCONT)
        assert survivor.wait() == BROKEN


def test_a_stopped_one_that_was_let_go_holds_up_no_later_round(arena: Arena, fork: Fork) -> None:
    """Nor does its death break one."""
    barrier = Barrier(2, arena=arena)
    slow = comer(fork, barrier)
    stop(slow, signal.SIGSTOP)
    barrier.wait()
    for _ in range(2):
        child = comer(fork, barrier)
        barrier.wait()
        assert child.wait() == 0
    slow.kill()
    child = comer(fork, barrier)
    barrier.wait()
    assert child.wait() == 0


def test_who_is_killed_in_the_action_breaks_it(arena: Arena, fork: Fork) -> None:
    """It had come like the others."""
    barrier = Barrier(2, die, arena=arena)
    child = comer(fork, barrier)

    assert fork(barrier.wait).wait() == -signal.SIGKILL
    assert child.wait() == BROKEN


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("acts", [True, False])
@pytest.mark.parametrize("store", range(1, 11))
def test_who_dies_at_any_store_of_the_last_wait_lets_all_go_or_none(
    store: int, acts: bool, before: bool, arena: Arena, fork: Fork
) -> None:
    """The round is through with one store; broken or incomplete before, for all alike."""
    barrier = Barrier(4, str if acts else None, arena=arena)
    children = [comer(fork, barrier) for _ in range(3)]

    def come() -> None:
        set_trap(barrier, store, before, die)
        barrier.wait()

    code = fork(come).wait()
    assert code in (-signal.SIGKILL, 0)
    if not acts:
        assert (code == 0) == (store > 1)
    ended = Event(arena=arena)

    def complete() -> None:
        while not ended.wait(0.2):
            if barrier.n_waiting == 3:
                barrier.abort()

    thread = threading.Thread(target=complete)
    thread.start()
    codes = {child.wait() for child in children}
    ended.set()
    thread.join()
    assert codes in ({0, 1, 2}, {BROKEN})


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2, 3])
def test_who_dies_at_any_store_of_an_abort_breaks_it_for_all_or_none(
    store: int, before: bool, arena: Arena, fork: Fork
) -> None:
    """One store breaks it."""
    barrier = Barrier(3, arena=arena)
    children = [comer(fork, barrier) for _ in range(2)]

    def abort() -> None:
        set_trap(barrier, store, before, die)
        barrier.abort()

    assert fork(abort).wait() == -signal.SIGKILL
    if (store, before) == (1, True):
        assert not barrier.broken
        barrier.wait()
        assert [child.wait() for child in children] == [0, 1]
    else:
        assert [child.wait() for child in children] == [BROKEN] * 2
