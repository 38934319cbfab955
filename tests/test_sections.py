"""Sections of the reference engine: one thread inside, and no death that wedges the others."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from types import FrameType

import pytest

from children import Fork
from ipcmap import Mapping
from ipcmap._core import reference_sections as sections
from ipcmap._deadline import Deadline


class Place:
    """A mapping with a section at its start and words behind it."""

    def __init__(self) -> None:
        self.mapping = Mapping.anonymous(4096)
        self.section = self.mapping.address
        self.words = self.mapping.view(sections.NBYTES).cast("Q")
        sections.initialise(self.section)

    def enter(self, timeout: float | None = None) -> bool:
        """Enter, and stay inside; False = not before the timeout."""
        try:
            if answer := sections.trylock(self.section):
                sections.enter(self.section, Deadline(timeout), [answer])
        except sections.Stalled:
            return False
        return True

    def leave(self) -> int:
        """Leave; EPERM where it is not held."""
        answer: int = sections.unlock(self.section)
        return answer

    def add_one(self) -> None:
        """Count in the first word."""
        sections.inside(self.section, Deadline(None), self.count)

    def count(self) -> None:
        """Add one, inside."""
        self.words[0] += 1


@pytest.fixture
def place() -> Place:
    """A fresh section, shared with children forked from here on."""
    return Place()


def test_one_thread_is_inside_whatever_its_process(place: Place, fork: Fork) -> None:
    """No addition of three processes is lost."""
    rounds = 3000

    def count() -> None:
        for _ in range(rounds):
            place.add_one()

    children = [fork(count), fork(count)]
    count()

    assert [child.wait() for child in children] == [0, 0]
    assert place.words[0] == 3 * rounds


def test_threads_of_one_process_exclude_each_other(place: Place) -> None:
    """The owner is a thread and not a process."""
    rounds = 500

    def count() -> None:
        for _ in range(rounds):
            place.add_one()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert place.words[0] == 4 * rounds


def test_the_next_taker_enters_after_a_death_inside(place: Place, fork: Fork) -> None:
    """What the dead stored so far is there, and the section works on."""

    def die_inside() -> None:
        place.enter()
        place.words[0] = 41
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        assert fork(die_inside).wait() == -signal.SIGKILL
        assert place.enter()
        assert place.words[0] == 41
        assert place.leave() == 0
    place.add_one()

    assert place.words[0] == 42


def test_one_who_waits_enters_when_the_owner_dies(place: Place, fork: Fork) -> None:
    """A death is noticed in the middle of a wait."""
    steps = place.mapping.view(2048, 8).cast("Q")

    def hold() -> None:
        place.enter()
        steps[0] = 1
        signal.pause()

    def wait() -> None:
        steps[0] = 2
        assert place.enter()
        place.words[0] = 7
        place.leave()

    holder = fork(hold)
    while steps[0] != 1:
        os.sched_yield()
    waiter = fork(wait)
    while steps[0] != 2:
        os.sched_yield()
    holder.kill()

    assert waiter.wait() == 0
    assert place.words[0] == 7


def test_exec_away_from_inside_counts_as_a_death(place: Place, fork: Fork) -> None:
    """A program that replaced itself will never leave the section; the kernel knows."""

    def exec_inside() -> None:
        place.enter()
        os.execv("/bin/true", ["true"])

    assert fork(exec_inside).wait() == 0
    assert place.enter(0)
    assert place.leave() == 0


def test_a_stopped_owner_keeps_it_and_a_timeout_ends_the_wait(place: Place, fork: Fork) -> None:
    """Nothing is taken from the living; continued, it goes on where it was."""
    steps = place.mapping.view(2048, 8).cast("Q")

    def hold() -> None:
        place.enter()
        steps[0] = 1
        os.kill(os.getpid(), signal.SIGSTOP)
        place.words[0] += 1
        assert place.leave() == 0

    holder = fork(hold)
    os.waitpid(holder.pid, os.WUNTRACED)

    assert not place.enter(0)
    assert not place.enter(0.3)
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.wait() == 0
    place.add_one()
    assert place.words[0] == 2


def test_a_thread_that_re_enters_gets_an_error_and_the_outer_use_stays(
    place: Place, fork: Fork
) -> None:
    """A signal handler cannot break into the change that it interrupted, nor wait for it."""
    place.enter()

    with pytest.raises(sections.Reentered):
        place.add_one()

    assert fork(lambda: place.enter(0) and os._exit(3)).wait() == 0
    assert place.leave() == 0


def test_leaving_what_is_not_held_changes_nothing(place: Place, fork: Fork) -> None:
    """The owner is a thread, and the C library tells others apart."""
    assert place.leave() == errno.EPERM
    place.enter()

    assert fork(lambda: os._exit(place.leave())).wait() == errno.EPERM
    assert not fork(lambda: place.enter(0) and os._exit(3)).wait()
    assert place.leave() == 0


def test_a_child_forked_inside_holds_nothing(place: Place, fork: Fork) -> None:
    """The section stays the parent's, and the child waits like anyone."""
    place.enter()

    def child() -> None:
        assert place.leave() == errno.EPERM
        assert not place.enter(0)

    assert fork(child).wait() == 0
    assert place.leave() == 0


def test_handlers_that_raise_anywhere_leave_no_section_held(place: Place, fork: Fork) -> None:
    """A storm of exceptions between bytecodes: each time another process can enter at once."""

    class Raised(Exception):
        pass

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed={seed}")
    previous = signal.signal(signal.SIGALRM, handle)
    raised = 0
    try:
        for _ in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 6e-5))
                while True:
                    place.add_one()
            except Raised:
                raised += 1
            assert sections.unlock(place.section) == errno.EPERM
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert raised == 2000
    assert fork(place.add_one).wait() == 0


def test_an_error_of_a_handler_that_re_enters_leaves_the_outer_use_whole(place: Place) -> None:
    """What the handler lets out ends the outer change, and the section is free again."""

    def interrupted() -> None:
        place.add_one()  # as a handler would, in the middle of a change

    with pytest.raises(sections.Reentered):
        sections.inside(place.section, Deadline(None), interrupted)

    assert place.leave() == errno.EPERM
    place.add_one()


def test_an_entry_broken_off_within_an_entry_leaves_the_outer_use_its_section(
    place: Place, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that re-enters, and is itself interrupted before it learns that."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    def interrupted() -> int:
        monkeypatch.setattr(sections, "enter", interrupt)
        with pytest.raises(KeyboardInterrupt):
            place.add_one()
        monkeypatch.undo()
        return fork(lambda: place.enter(0) and os._exit(3)).wait()

    assert sections.inside(place.section, Deadline(None), interrupted) == 0


@pytest.mark.parametrize("consistent", [False, True])
def test_an_entry_after_a_death_may_be_broken_off_before_it_is_complete(
    place: Place, fork: Fork, consistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutex must not be given up in the state that makes it useless for ever."""

    def die_inside() -> None:
        place.enter()
        os.kill(os.getpid(), signal.SIGKILL)

    fork(die_inside).wait()
    make_consistent = sections._consistent

    def interrupt(section: int) -> None:
        if consistent:
            make_consistent(section)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(sections, "_consistent", interrupt)
    with pytest.raises(KeyboardInterrupt):
        place.add_one()

    assert place.leave() == errno.EPERM
    assert fork(place.add_one).wait() == 0
    place.add_one()
    assert place.words[0] == 2


@pytest.mark.parametrize("pairs", [40, pytest.param(200, marks=pytest.mark.stress)])
def test_a_storm_of_deaths_inside_wedges_nobody(pairs: int, place: Place, fork: Fork) -> None:
    """Pairs of holders killed at random moments; whoever is left goes on counting."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed={seed}")

    def count_for_ever() -> None:
        while True:
            place.add_one()

    for _ in range(pairs):
        victims = [fork(count_for_ever), fork(count_for_ever)]
        before = place.words[0]
        while place.words[0] < before + chance.randrange(1, 200):
            os.sched_yield()
        for victim in victims:
            victim.kill()
        assert place.enter()
        assert place.leave() == 0
