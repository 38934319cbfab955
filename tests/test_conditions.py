"""The condition: who waits for a change under a lock, on every engine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from types import FrameType

import pytest

import ipcmap
from children import Child, Fork, die
from ipcmap import Arena, Condition, FamilyFull, Lock, Mapping, NotOwned, RLock, StaleHandle
from ipcmap._core import reference_parking as parking
from monitor_harness import Raised, stop
from room_harness import (
    in_a_thread,
    last_ticket,
    members,
    set_trap,
    wait_for_arrival,
)

pytestmark = pytest.mark.usefixtures("engine")


def waiter(fork: Fork, condition: Condition) -> Child:
    """Return a child that waits, and exits with 0 once it was notified."""
    before = last_ticket(condition)

    def wait() -> None:
        with condition:
            assert condition.wait()

    child = fork(wait)
    wait_for_arrival(condition, before)
    with condition:  # it has given the lock back
        return child


def notify(condition: Condition, n: int = 1) -> None:
    """Notify under the lock."""
    with condition:
        condition.notify(n)


def test_the_oldest_is_notified_first(arena: Arena, fork: Fork, endless_rooms: None) -> None:
    """One for one, then two, then the rest."""
    condition = Condition(arena=arena)
    children = [waiter(fork, condition) for _ in range(5)]

    notify(condition)
    assert children[0].wait() == 0
    assert condition._core.count_waiting() == 4
    notify(condition, 2)
    assert [child.wait() for child in children[1:3]] == [0, 0]
    with condition:
        condition.notify_all()
    assert [child.wait() for child in children[3:]] == [0, 0]
    assert members(condition) == []


def test_who_comes_after_a_notify_does_not_have_it(arena: Arena, fork: Fork) -> None:
    """Neither one nor all that were notified are for the next."""
    condition = Condition(arena=arena)
    children = [waiter(fork, condition) for _ in range(3)]
    for n in (1, 2, 5):
        with condition:
            condition.notify(n)
            assert not condition.wait(0.05)

    assert [child.wait() for child in children] == [0, 0, 0]


def test_it_needs_no_other_arena_than_its_locks(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No default arena is mapped for it, for which there may be no room."""
    monkeypatch.setattr(ipcmap.arena, "_default", None)
    condition = Condition(Lock(arena=arena))

    assert ipcmap.arena._default is None
    assert condition._arena is arena


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_a_wait_gives_all_of_the_lock_back_and_takes_all_of_it_again(
    kind: type[Lock] | type[RLock], arena: Arena
) -> None:
    """After a notify and after a timeout."""
    lock = kind(arena=arena)
    condition = Condition(lock)
    levels = 3 if kind is RLock else 1
    for _ in range(levels):
        condition.acquire()
    came: list[bool] = []

    def change() -> None:
        with condition:
            came.append(True)
            condition.notify()

    thread = threading.Thread(target=change)
    thread.start()
    assert condition.wait()
    thread.join()
    assert came == [True]
    assert not condition.wait(0.01)
    for _ in range(levels):
        assert lock._is_mine()
        condition.release()
    assert not lock.locked()


def test_both_ends_need_the_lock(arena: Arena) -> None:
    """The errors are multiprocessing's, and a thread is not another."""
    condition = Condition(arena=arena)

    for call in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(AssertionError, match=r"must acquire|not owned"):
            call()
        with condition:
            assert isinstance(in_a_thread(call), NotOwned)
    with pytest.raises(TypeError, match=r"must be an ipcmap\.Lock"):
        Condition(threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave arena out"):
        Condition(Lock(), arena=arena)


def test_wait_for_gives_what_the_predicate_said_last(arena: Arena) -> None:
    """Also at the end of the timeout."""
    condition, answers = Condition(arena=arena), iter([0, "", "now"])

    with condition:
        assert condition.wait_for(list, timeout=0.05) == []
        timer = threading.Timer(0.02, notify, (condition, 9))
        timer.start()
        assert condition.wait_for(lambda: next(answers), timeout=0) == 0
        assert condition.wait_for(lambda: next(answers) or "now") == "now"
    timer.join()


def test_its_repr_is_that_of_multiprocessing(arena: Arena, fork: Fork) -> None:
    """The lock, and how many wait."""
    condition = Condition(arena=arena)
    peer = multiprocessing.get_context("fork").Condition()
    assert repr(condition) == repr(peer)
    waiter(fork, condition)

    assert repr(condition) == "<Condition(<RLock(None, 0)>, 1)>"


def test_it_travels_by_pickle_with_its_lock(arena: Arena, fork: Fork) -> None:
    """To a child that runs already; destroyed, both are gone."""
    read_end, write_end = os.pipe()

    def child() -> None:
        condition: Condition = pickle.loads(os.read(read_end, 10_000))
        with condition:
            condition.notify()

    running = fork(child)
    condition = Condition(arena=arena)
    with condition:
        os.write(write_end, pickle.dumps(condition))
        assert condition.wait(30)
    assert running.wait() == 0
    os.close(read_end)
    os.close(write_end)

    condition.destroy()
    for call in (condition.wait, condition.notify, condition.acquire):
        with pytest.raises(StaleHandle):
            call()


def test_more_than_there_is_room_for_are_turned_away(arena: Arena, fork: Fork) -> None:
    """With the lock; the dead take no room."""
    condition = Condition(max_waiters=1, arena=arena)
    child = waiter(fork, condition)

    with condition:
        with pytest.raises(FamilyFull, match="max_waiters=1"):
            condition.wait()
        assert condition._lock.locked()
        child.kill()
        assert not condition.wait(0.01)


def test_no_notify_is_lost(arena: Arena, fork: Fork, endless_rooms: None) -> None:
    """Slices that never end: three processes of two threads pass a ball round."""
    condition, shared = Condition(arena=arena), Mapping.anonymous(8)
    turn = shared.view().cast("Q")
    players, rounds = 6, 60

    def play(player: int) -> None:
        for _ in range(rounds):
            with condition:
                condition.wait_for(lambda: turn[0] % players == player)
                turn[0] += 1
                condition.notify_all()

    def play_two(player: int) -> None:
        thread = threading.Thread(target=play, args=(player,))
        thread.start()
        play(player + 1)
        thread.join()

    children = [fork(play_two, player) for player in (0, 2, 4)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert turn[0] == players * rounds


# Deaths


def test_a_waiter_killed_asleep_takes_no_notify(
    arena: Arena, fork: Fork, endless_rooms: None
) -> None:
    """The next gets it, at once, and nobody waits for the dead."""
    condition = Condition(arena=arena)
    victims = [waiter(fork, condition) for _ in range(2)]
    survivor = waiter(fork, condition)
    for victim in victims:
        victim.kill()

    notify(condition)
    assert survivor.wait() == 0
    assert members(condition) == []


def test_a_waiter_killed_after_it_was_notified_passes_it_on(arena: Arena, fork: Fork) -> None:
    """To one who was there at the notify, and to nobody else."""
    condition = Condition(arena=arena)
    victim, survivor = waiter(fork, condition), waiter(fork, condition)
    stop(victim, signal.SIGSTOP)
    notify(condition)
    late = waiter(fork, condition)
    victim.kill()

    assert survivor.wait() == 0
    assert condition._core.count_waiting() == 1
    notify(condition)
    assert late.wait() == 0


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", range(1, 9))
def test_who_dies_at_any_store_of_a_wait_holds_nobody_up(
    store: int, before: bool, arena: Arena, fork: Fork
) -> None:
    """It is notified or not, and the next notify finds the one who lives."""
    condition = Condition(arena=arena)

    def wait() -> None:
        with condition:
            set_trap(condition, store, before, die)
            condition.wait(0.05)

    assert fork(wait).wait() == -signal.SIGKILL
    survivor = waiter(fork, condition)
    notify(condition)
    assert survivor.wait() == 0
    notify(condition)
    assert members(condition) == []


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2, 3])
def test_who_dies_at_any_store_of_a_notify_leaves_the_lock_and_the_rest(
    store: int, before: bool, arena: Arena, fork: Fork
) -> None:
    """Who was told goes on; the others are there for the next notify."""
    condition = Condition(arena=arena)
    children = [waiter(fork, condition) for _ in range(4)]

    def notify_three() -> None:
        with condition:
            set_trap(condition, store, before, die)
            condition.notify(3)

    assert fork(notify_three).wait() == -signal.SIGKILL
    told = store - before
    assert [child.wait() for child in children[:told]] == [0] * told
    assert condition._core.count_waiting() == 4 - told
    notify(condition, 9)
    assert [child.wait() for child in children] == [0] * 4


# Signals


def test_what_a_handler_raises_comes_out_of_a_wait_with_the_lock(arena: Arena) -> None:
    """And nobody is counted as waiting."""
    condition = Condition(arena=arena)

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with condition:
            with pytest.raises(Raised):
                condition.wait()
            assert condition._lock._is_mine()
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert members(condition) == []


def test_a_notify_of_one_who_leaves_by_an_exception_is_passed_on(
    arena: Arena, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler raised before it could look."""
    condition = Condition(arena=arena)
    child = []

    def notified_and_interrupted(place: int, seconds: float) -> bool:
        monkeypatch.undo()
        child.append(waiter(fork, condition))
        notify(condition)
        raise Raised

    with condition:
        monkeypatch.setattr(parking, "sleep", notified_and_interrupted)
        with pytest.raises(Raised):
            condition.wait()
    assert child[0].wait() == 0
