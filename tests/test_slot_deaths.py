"""Deaths in the table of process slots: each is found, told of once, and stops nobody."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from types import FrameType

import pytest

from children import Fork, die
from families import Place, Raised, Stores, raise_it
from ipcmap import BusyError
from ipcmap._core import liveness
from ipcmap._core import reference_sections as sections
from ipcmap._core import slot_layout as at
from ipcmap._core.reference_slots import Step


def test_a_death_is_recorded_with_what_is_known(place: Place, fork: Fork) -> None:
    """Exit codes and signals of one's own children are known until they are reaped."""

    def child(end: Callable[[], object]) -> None:
        place.table.slot()
        end()

    ends = (lambda: os._exit(0), lambda: os._exit(3), die)
    children = [fork(child, end) for end in ends]
    for one in children:
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)

    assert place.table.sweep() == 3
    known = {death.pid: (death.cause, death.status) for death in place.table.deaths()}
    assert [known[one.pid] for one in children] == [
        (at.EXITED, 0),
        (at.EXITED, 3),
        (at.KILLED, signal.SIGKILL),
    ]


def test_the_cause_is_unknown_once_the_parent_has_reaped(place: Place, fork: Fork) -> None:
    """The death counts all the same."""
    child = fork(place.table.slot)
    child.wait()

    assert place.table.sweep() == 1
    assert [(d.pid, d.cause) for d in place.table.deaths()] == [(child.pid, at.UNKNOWN)]


def test_steps_get_the_dead_slot_before_it_is_free(place: Place, fork: Fork) -> None:
    """In the order given, and with nothing of the table held."""
    seen: list[tuple[str, int, int, int]] = []

    def step(name: str) -> Step:
        return lambda slot, generation: seen.append(
            (name, slot, generation, place.table.members()[0].state)
        )

    place.table.steps = (step("blocks"), step("locks"))
    fork(place.table.slot).wait()

    assert place.table.sweep() == 1
    assert seen == [("blocks", 1, 0, at.DYING), ("locks", 1, 0, at.DYING)]
    assert place.table.sweep() == 0


def test_a_step_that_fails_is_taken_again(place: Place, fork: Fork) -> None:
    """The slot stays with the dead until every step has succeeded."""
    fork(place.table.slot).wait()
    place.table.steps = (lambda *_: raise_it(),)

    with pytest.raises(Raised):
        place.table.sweep()
    assert [slot.state for slot in place.table.members()] == [at.DYING]

    place.table.steps = ()
    assert place.table.sweep() == 1
    assert len(place.table.deaths()) == 1


def test_a_sweeper_that_dies_in_a_step_is_followed_by_another(place: Place, fork: Fork) -> None:
    """And the death that it was about counts once."""
    fork(place.table.slot).wait()

    def sweep() -> None:
        place.table.steps = (lambda *_: die(),)
        place.table.sweep()

    assert fork(sweep).wait() == -signal.SIGKILL
    assert place.table.sweep() == 1
    assert len(place.table.deaths()) == 1


def test_two_sweepers_at_once_count_each_death_once(fork: Fork) -> None:
    """Who comes second finds nothing left to do."""
    place = Place()
    for round_ in range(10):
        for _ in range(8):
            fork(place.table.slot).wait()
        place.shared[:4] = memoryview(bytes(32)).cast("Q")

        def sweep(index: int) -> None:
            place.wait_for(0)
            place.shared[index] = place.table.sweep()

        sweepers = [fork(sweep, 1), fork(sweep, 2)]
        place.shared[0] = 1

        assert [one.wait() for one in sweepers] == [0, 0]
        assert place.shared[1] + place.shared[2] == 8
        assert len(place.table.deaths()) == 8 * (round_ + 1)
    assert place.pids() == []


def test_a_sweeper_that_is_overtaken_leaves_the_successor_alone(place: Place, fork: Fork) -> None:
    """While it took its steps, somebody else buried the dead one and a newcomer took the slot."""
    fork(place.table.slot).wait()

    def overtake(slot: int, generation: int) -> None:
        place.table.steps = ()
        assert place.table.sweep() == 1
        assert place.table.slot() == slot

    place.table.steps = (overtake,)

    assert place.table.sweep() == 0
    assert place.pids() == [os.getpid()]
    assert len(place.table.deaths()) == 1


def test_a_verdict_on_the_dead_is_none_on_the_successor(
    place: Place, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it examined, somebody else buried the dead one and a newcomer took the slot."""
    fork(place.table.slot).wait()
    examine = liveness.examine

    def overtake(pid: int, started: int, region: liveness.Region) -> liveness.Death | None:
        monkeypatch.setattr(liveness, "examine", examine)
        assert place.table.sweep() == 1
        assert place.table.slot() == 1
        return examine(pid, started, region)

    monkeypatch.setattr(liveness, "examine", overtake)

    assert place.table.sweep() == 0
    assert place.pids() == [os.getpid()]


def test_the_log_keeps_the_newest_deaths(place: Place) -> None:
    """It is bounded; what is older than its length has given way."""
    place.table.slot()
    base = at.SLOT
    count = at.LOG_RECORDS + 5
    for _ in range(count):
        place.words[base + at.LIFE] = place.words[base + at.LIFE] & ~at.STATE_MASK | at.DYING
        assert place.table.sweep() == 1

    assert [d.number for d in place.table.deaths()] == [*range(6, count + 1)]


# Death and exceptions at every single store


def test_a_death_at_any_store_of_a_claim_wedges_nobody(place: Place, fork: Fork) -> None:
    """The slot is free, or belongs to a dead process."""

    def claim(last: int) -> None:
        Stores(last, die).watch(place.table)
        place.table.slot()

    for last in range(1, 100):
        if fork(claim, last).wait() == 0:
            break
        place.table.sweep()
        assert place.pids() == []
        assert fork(place.table.slot).wait() == 0
        assert place.table.sweep() == 1
    assert last > 12


def test_an_exception_at_any_store_of_a_claim_costs_no_slot(place: Place, fork: Fork) -> None:
    """Asked again, the process has one slot, and a newcomer another."""

    def claim(last: int) -> None:
        words, own = place.table._words, place.table._own
        Stores(last, raise_it).watch(place.table)
        try:
            place.table.slot()
        except Raised:
            place.shared[0] += 1
        place.table._words, place.table._own = words, own
        number = place.table.slot()
        newcomer = os.fork()
        if not newcomer:
            os._exit(place.table.slot() == number)

        assert os.waitpid(newcomer, 0)[1] == 0
        assert place.pids().count(os.getpid()) == 1

    for last in range(1, 25):
        assert fork(claim, last).wait() == 0
        place.table.sweep()
        assert place.pids() == []
    assert 12 < place.shared[0] < 24


@pytest.mark.parametrize("act", [die, raise_it])
def test_a_sweep_broken_off_at_any_store_counts_the_death_once(
    place: Place, fork: Fork, act: Callable[[], object]
) -> None:
    """Whoever comes next finishes it."""

    def sweep(last: int) -> None:
        words, own = place.table._words, place.table._own
        Stores(last, act).watch(place.table)
        try:
            place.table.sweep()
        except Raised:
            place.table._words, place.table._own = words, own
            place.table.sweep()
            os._exit(1)

    for last in range(1, 100):
        fork(place.table.slot).wait()
        code = fork(sweep, last).wait()
        place.table.sweep()

        assert place.pids() == []
        assert [d.number for d in place.table.deaths()] == [*range(1, last + 1)]
        assert place.words[at.SLOT + at.LIFE] >> at.STATE_BITS == last
        if code == 0:
            break
    assert last > 12


def test_handlers_that_raise_anywhere_leave_one_slot_each(fork: Fork) -> None:
    """A storm of exceptions during claims and sweeps."""
    place = Place()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed={seed}")

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    def claim(delay: float) -> None:
        signal.signal(signal.SIGALRM, handle)
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                place.table.slot()
                while True:
                    place.table.sweep()
            except Raised:
                break
        assert sections.unlock(place.section) != 0
        place.table.slot()
        assert place.pids().count(os.getpid()) == 1

    for _ in range(60):
        assert fork(claim, chance.uniform(1e-6, 1e-3)).wait() == 0
    place.table.sweep()

    assert place.pids() == []
    assert place.words[at.H_DEATHS] == 60


def storm(rounds: int, fork: Fork) -> None:
    """Kill claimers and sweepers at random moments."""
    place = Place(8)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed={seed}")

    def live(index: int) -> None:
        place.shared[index] = place.table.slot() << 32 | os.getpid()
        while True:
            place.table.sweep()

    known: list[int] = []
    victims: list[int] = []
    for _ in range(rounds):
        place.shared[:2] = memoryview(bytes(16)).cast("Q")
        pair = [fork(live, 0), fork(live, 1)]
        signal.sigtimedwait([], chance.uniform(0, 4e-3))
        for one in pair:
            one.kill()
        said = [word for word in place.shared[:2] if word]
        known += [word & 0xFFFFFFFF for word in said]
        victims += [one.pid for one in pair]

        assert len({word >> 32 for word in said}) == len(said), "two had one slot"
    place.table.sweep()

    deaths = place.table.deaths()
    lives = {(death.slot, death.generation) for death in deaths}
    assert place.pids() == []
    assert len(lives) == len(deaths)
    assert {*known} <= {death.pid for death in deaths} <= {*victims}


def test_a_storm_of_deaths_loses_no_slot_and_counts_none_twice(fork: Fork) -> None:
    """Forty pairs; the survivors go on."""
    storm(40, fork)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_a_long_storm_of_deaths(fork: Fork) -> None:
    """As many as the log has room for."""
    storm(at.LOG_RECORDS // 2, fork)


def test_a_signal_handler_within_a_claim_gets_an_error(place: Place) -> None:
    """It cannot wait for what it interrupted."""
    place.enter()
    with pytest.raises(BusyError, match=f"pid={os.getpid()}"):
        place.table.slot()
    place.leave()

    assert place.table.slot() == 1
