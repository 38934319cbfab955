"""Processes as holders of something: who it was, whether it lives, and what it died of."""

from __future__ import annotations

import os
import signal

import pytest

from children import Fork, die
from families import Place
from ipcmap import CorruptError
from ipcmap._core import slot_layout as at


def test_a_process_is_a_holder_from_its_first_question_on(place: Place, fork: Fork) -> None:
    """Its children are others."""
    assert place.table.known_holder() == 0
    mine = place.table.holder()

    assert place.table.known_holder() == mine
    assert fork(lambda: os._exit(place.table.holder() == mine)).wait() == 0


def test_the_living_have_no_cause_of_death(place: Place, fork: Fork) -> None:
    """Oneself, and a child that is stopped."""

    def live() -> None:
        place.shared[1] = place.table.holder()
        place.shared[0] = 1
        signal.pause()

    child = fork(live)
    place.wait_for(0)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)

    assert place.table.cause_of_death(place.shared[1]) is None
    assert place.table.cause_of_death(place.table.holder()) is None


@pytest.mark.parametrize("buried", [False, True])
@pytest.mark.parametrize(
    ("end", "reaped", "cause"),
    [
        (die, False, at.KILLED),
        (die, True, at.UNKNOWN),
        (lambda: os._exit(3), False, at.EXITED),
        (lambda: os._exit(3), True, at.UNKNOWN),
    ],
)
def test_the_cause_is_that_of_the_slot_or_of_the_log(
    end: object, reaped: bool, cause: int, buried: bool, place: Place, fork: Fork
) -> None:
    """Before and after a sweep has buried it; the look itself buries nobody."""

    def die() -> None:
        place.shared[0] = place.table.holder()
        end()  # type: ignore[operator]

    child = fork(die)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        child.wait()
    if buried:
        place.table.sweep()

    assert place.table.cause_of_death(place.shared[0]) == cause
    assert len(place.table.deaths()) == buried
    place.table.sweep()
    assert place.table.cause_of_death(place.shared[0]) == cause
    assert [death.cause for death in place.table.deaths()] == [cause]


def test_who_said_that_it_ends_by_itself_is_believed_when_nobody_saw_it(
    place: Place, fork: Fork
) -> None:
    """A kill that was seen counts for more."""

    def leave(index: int) -> None:
        place.shared[index] = place.table.holder()
        place.table.leave()
        if index:
            die()

    fork(leave, 0).wait()
    killed = fork(leave, 1)
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)

    assert place.table.cause_of_death(place.shared[0]) == at.LEFT
    assert place.table.cause_of_death(place.shared[1]) == at.KILLED


def test_the_next_owner_of_a_slot_does_not_inherit_the_word_of_the_last(
    place: Place, fork: Fork
) -> None:
    """It is the generation that says so."""

    def leave() -> None:
        place.table.slot()
        place.table.leave()

    def die() -> None:
        place.shared[0] = place.table.holder()
        die()

    fork(leave).wait()
    place.table.sweep()
    fork(die).wait()

    assert place.shared[0] & at.HOLDER_SLOT == 1
    assert place.table.cause_of_death(place.shared[0]) == at.UNKNOWN


def test_a_process_without_a_slot_has_nothing_to_leave(place: Place) -> None:
    """It claims none for it."""
    place.table.leave()

    assert place.pids() == []


@pytest.mark.parametrize("holder", [0, 65, 1 << at.HOLDER_BITS, 2, (5 << at.HOLDER_BITS) + 1])
def test_a_holder_that_cannot_have_been_is_an_error(holder: int, place: Place) -> None:
    """Of no slot, a slot that was never taken, or a life that is still to come."""
    place.table.slot()

    with pytest.raises(CorruptError, match="of a holder="):
        place.table.cause_of_death(holder)
