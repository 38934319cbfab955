"""Whose tokens come back: what a semaphore's ledger says of the dead, at every store."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from types import FrameType

import pytest

import ipcmap
from children import Child, Fork, die
from ipcmap import Arena, Mapping
from ipcmap._core import monitor_layout as at
from ipcmap._core import reference_parking as parking
from monitor_harness import (
    Raised,
    SemaphoreType,
    leave_to_reference,
    set_trap,
    sleepers,
    stop,
    wait_for_sleepers,
    wait_until_dead,
)


def killed_holding(fork: Fork, *semaphores: ipcmap.Semaphore) -> Child:
    """Return a child that took a token of each and was killed."""

    def hold() -> None:
        for semaphore in semaphores:
            assert semaphore.acquire()
        die()

    child = fork(hold)
    assert child.wait() == -signal.SIGKILL
    return child


def audit(semaphore: ipcmap.Semaphore, free: int) -> None:
    """See that so many tokens are there, and that the ledger says the same."""
    core = semaphore._core
    assert semaphore.value == free
    assert core._words[at.JOURNAL] == 0
    if not core._words[at.TRAVELS]:
        assert core._words[at.LEFT] + sum(core._ledger()[1]) + free == core._initial


def test_the_tokens_of_a_killed_holder_come_back(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """As many as it had taken, and no other's."""
    semaphore = semaphore_type(5)
    semaphore.acquire()
    killed_holding(fork, semaphore, semaphore)

    audit(semaphore, 4)
    assert [semaphore.acquire(block=False) for _ in range(5)] == [True] * 4 + [False]


def test_all_who_wait_for_a_killed_holder_go_on(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """It held every token; each waiter gets one in its turn."""
    semaphore, ready = semaphore_type(3), semaphore_type(0)

    def hold() -> None:
        for _ in range(3):
            semaphore.acquire()
        ready.release()
        signal.pause()

    def enter() -> None:
        with semaphore:
            os.sched_yield()

    holder = fork(hold)
    ready.acquire()
    children = [fork(enter) for _ in range(10)]
    wait_for_sleepers(semaphore, 10)
    os.kill(holder.pid, signal.SIGKILL)

    assert [child.wait() for child in children] == [0] * 10
    audit(semaphore, 3)
    assert sleepers(semaphore) == 0


def test_two_releases_in_a_row_wake_two(
    semaphore_type: SemaphoreType, fork: Fork, endless_slices: None
) -> None:
    """The second finds a token of the first; who is woken by that wakes the next."""
    semaphore = semaphore_type(0)
    children = [fork(semaphore.acquire) for _ in range(2)]
    wait_for_sleepers(semaphore, 2)
    for child in children:
        stop(child, signal.SIGSTOP)
    semaphore.release()
    semaphore.release()
    for child in children:
        os.kill(child.pid, signal.SIGCONT)

    assert [child.wait() for child in children] == [0, 0]


@pytest.mark.parametrize("tokens", [1, 2])
def test_no_wake_up_is_lost(
    tokens: int, semaphore_type: SemaphoreType, fork: Fork, endless_slices: None
) -> None:
    """Slices that never end: whoever is not woken would sleep for ever."""
    semaphore = semaphore_type(tokens)

    def enter() -> None:
        for _ in range(500):
            with semaphore:
                os.sched_yield()

    children = [fork(enter) for _ in range(5)]

    assert [child.wait() for child in children] == [0] * 5
    assert sleepers(semaphore) == 0
    audit(semaphore, tokens)


def test_who_leaves_by_an_exception_passes_the_token_on(
    semaphore_type: SemaphoreType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was woken, and a handler raised before it could look."""
    semaphore, sleep = semaphore_type(0), parking.sleep
    leave_to_reference(semaphore)

    def woken_and_interrupted(place: int, seconds: float) -> bool:
        semaphore._core._words[at.SLEEPERS] += 1  # another one, who was not woken
        semaphore.release()
        assert sleep(place, 0)
        raise Raised

    monkeypatch.setattr(parking, "sleep", woken_and_interrupted)
    with pytest.raises(Raised):
        semaphore.acquire()

    assert sleepers(semaphore) == 1
    assert sleep(semaphore._core._parking, 0)


def test_a_stopped_holder_keeps_its_token(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """Nothing is taken from the living."""
    semaphore, ready = semaphore_type(1), semaphore_type(0)

    def hold() -> None:
        semaphore.acquire()
        ready.release()
        signal.pause()

    child = fork(hold)
    ready.acquire()
    stop(child, signal.SIGSTOP)

    assert not semaphore.acquire(timeout=0.2)
    audit(semaphore, 0)


def test_who_exits_keeps_its_tokens_and_its_entry_is_free(
    semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """As in multiprocessing; however many do so, the ledger has room."""
    semaphore = semaphore_type(4)
    for free in (3, 2, 1, 0):
        child = fork(semaphore.acquire)
        wait_until_dead(child)
        audit(semaphore, free)

    assert not semaphore.acquire(timeout=0.05)
    semaphore.release()
    assert semaphore.acquire(block=False)


# Tokens that travel


def test_tokens_that_were_passed_on_do_not_come_back(
    semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """One process takes and another gives: the kill of the taker adds nothing."""
    free_places, filled_places = semaphore_type(3), semaphore_type(0)

    def produce() -> None:
        for _ in range(4):
            free_places.acquire()
            filled_places.release()
        die()

    child = fork(produce)
    for _ in range(2):
        filled_places.acquire()
        free_places.release()
    assert child.wait() == -signal.SIGKILL

    audit(free_places, 1)
    audit(filled_places, 2)


def test_a_count_that_begins_with_nothing_travels_from_birth(
    semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """The way to have tokens that stand for something: none of them comes back."""
    places = semaphore_type(0)
    for _ in range(3):
        places.release()
    killed_holding(fork, places)

    audit(places, 2)


def test_who_gives_back_for_the_dead_gives_nothing_twice(
    semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """Before or after the token has come back by itself."""
    semaphore = semaphore_type(2)
    killed_holding(fork, semaphore)
    audit(semaphore, 2)
    semaphore.release()
    audit(semaphore, 2)

    killed_holding(fork, semaphore)
    audit(semaphore, 2)
    assert semaphore.acquire()
    semaphore.release()
    semaphore.release()
    audit(semaphore, 2)


def test_a_release_beyond_the_first_value_adds_a_token(semaphore_type: SemaphoreType) -> None:
    """As in multiprocessing; the semaphore has no bound but the largest count."""
    semaphore = semaphore_type(1)
    semaphore.release()
    semaphore.release()

    audit(semaphore, 3)
    assert [semaphore.acquire(block=False) for _ in range(4)] == [True] * 3 + [False]


def test_a_child_may_release_what_its_parent_took_for_it(
    semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """A fork takes no entry along; the token is the child's by agreement alone."""
    semaphore = semaphore_type(2)
    for _ in range(5):
        semaphore.acquire()
        assert fork(semaphore.release).wait() == 0

    audit(semaphore, 2)


# Deaths at every store

STEPS: list[tuple[str, int, int]] = [  # what is done, stores, the store that commits it
    ("take", 5, 3),
    ("give", 4, 2),
    ("take of a token that travels", 1, 1),
    ("give of a token that travels", 1, 1),
    ("first give of a token that travels", 4, 3),
    ("give of what came back", 1, 1),
    ("settle", 8, 3),
]


@pytest.mark.parametrize(
    ("step", "store", "before", "committed"),
    [
        (step, store, before, store > commit or (store == commit and not before))
        for step, stores, commit in STEPS
        for store in range(1, stores + 1)
        for before in (True, False)
    ],
)
def test_a_death_at_any_store_leaves_it_before_or_after(
    step: str,
    store: int,
    before: bool,
    committed: bool,
    semaphore_type: SemaphoreType,
    fork: Fork,
) -> None:
    """The count and the ledger agree, and the tokens are those of one of the two."""
    travels = step in {"take of a token that travels", "give of a token that travels"}
    semaphore = semaphore_type(0 if travels else 3)
    if travels:
        semaphore.release()
        semaphore.release()
        semaphore.release()
    elif step in {"give of what came back", "settle"}:
        killed_holding(fork, semaphore)
        if step != "settle":
            audit(semaphore, 3)

    def child() -> None:
        act: Callable[[], object] = semaphore.release
        if step.startswith("take"):
            act = semaphore.acquire
        elif step == "settle":
            act = semaphore.get_value
        elif step == "give":
            semaphore.acquire()
        set_trap(semaphore, store, before, die)
        act()

    assert fork(child).wait() == -signal.SIGKILL
    expected = {
        "take of a token that travels": 3 - committed,
        "give of a token that travels": 3 + committed,
        "first give of a token that travels": 3 + committed,
    }
    audit(semaphore, expected.get(step, 3))

    returned = {"give of what came back": not committed, "settle": True}.get(step, True)
    gives = step.startswith("first") and committed
    words = semaphore._core._words
    assert words[at.TRAVELS] == (travels or gives)
    if step == "settle":
        assert words[at.RETURNED] == returned
    for _ in range(semaphore.value):
        assert semaphore.acquire(block=False)
    assert not semaphore.acquire(block=False)


def test_more_processes_than_entries_find_room_once_the_dead_are_struck_out(
    semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """The ledger is no longer than the family can be large."""
    arena = Arena(1 << 20, max_processes=3)
    semaphore = semaphore_type(1000, arena=arena)
    for _ in range(10):
        killed_holding(fork, semaphore, semaphore)

    assert semaphore.acquire(block=False)
    audit(semaphore, 999)


@pytest.mark.parametrize("value", [0, 1, 3])
def test_handlers_that_raise_at_any_moment_lose_and_make_no_token(
    value: int, engine: str, chance: random.Random, semaphore_type: SemaphoreType, known_quota: None
) -> None:
    """An acquire that raised has taken nothing; a release that raised may have to be repeated.

    Of a method in C, what is raised right after its return looks as if it had been raised in it.
    """
    semaphore, armed, raised = semaphore_type(value), list[bool](), Counter[str]()
    if not value:
        semaphore.release()

    def handle(number: int, frame: FrameType | None) -> None:
        if armed:
            armed.clear()
            raise Raised

    call = "acquire"

    def contend() -> None:
        # A function: in 3.13 a handler may come at the jump of a loop, where no try around it counts.
        nonlocal call
        while armed:
            call = "acquire"
            semaphore.acquire()
            call = "release"
            semaphore.release()

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(3000):
            call = "acquire"
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 4e-5))
                contend()
            except Raised:
                raised[call] += 1
                audit(semaphore, free := semaphore.value)
                assert free == (value or 1) or call == "release" or engine == "native"
                if free != (value or 1):
                    semaphore.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert raised["acquire"] > 100
    assert raised["release"] > 20
    audit(semaphore, value or 1)


@pytest.mark.parametrize(
    "rounds", [40, pytest.param(2000, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])]
)
def test_a_storm_of_kills_leaves_every_token_where_it_was(
    rounds: int, chance: random.Random, semaphore_type: SemaphoreType, fork: Fork
) -> None:
    """Never more inside than tokens, as far as the living can tell; all are there at the end.

    Each child has a word that is odd while it is inside, and never the same again. What
    two looks one after the other find alike was so all at once, between the two.
    """
    semaphore, shared = semaphore_type(3), Mapping.anonymous(4096)
    words = shared.view().cast("Q")
    passes, looks, inside = 0, 1, 2  # one word for each child from here on

    def pass_through(number: int, life: int) -> None:
        word = life << 32
        while True:
            with semaphore:
                words[inside + number] = word + 1
                once = words[inside : inside + 6].tolist()
                if once == words[inside : inside + 6].tolist():
                    assert sum(found & 1 for found in once) <= 3
                    words[looks] += 1
                words[passes] += 1
                word += 2
                words[inside + number] = word

    children = [fork(pass_through, number, 0) for number in range(6)]
    for life in range(1, rounds + 1):
        until = words[passes] + chance.randrange(1, 100)
        while words[passes] < until:
            os.sched_yield()
        number = chance.randrange(6)
        stop(children[number], signal.SIGSTOP)  # so that its token is its own until its word is 0
        words[inside + number] = 0
        children[number].kill()
        assert children[number].wait() == -signal.SIGKILL, "no assertion failed in it"
        children[number] = fork(pass_through, number, life)
    for child in children:  # all, before one is killed: their words stay as they are
        stop(child, signal.SIGSTOP)
    for child in children:
        child.kill()
        assert child.wait() == -signal.SIGKILL

    assert words[looks]
    audit(semaphore, 3)
