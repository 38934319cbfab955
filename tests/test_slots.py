"""The table of process slots: everyone has one slot, and every death is counted once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from children import Fork
from families import Place
from ipcmap import FamilyFull
from ipcmap._core import slot_layout as at

_fork_of_c: Callable[[], int] = ctypes.PyDLL(None).fork


# Who has which slot


def test_a_process_takes_one_slot_and_keeps_it(place: Place) -> None:
    """The slot says who has it."""
    number = place.table.slot()

    assert place.table.slot() == number == 1
    assert place.pids() == [os.getpid()]


def test_a_forked_child_and_a_grandchild_have_slots_of_their_own(place: Place, fork: Fork) -> None:
    """No one of them inherits a slot, whether or not its parent had one."""

    def child() -> None:
        grandchild = os.fork()
        if not grandchild:
            place.shared[2] = place.table.slot()
            os._exit(0)
        os.waitpid(grandchild, 0)
        place.shared[1] = place.table.slot()

    place.shared[0] = place.table.slot()
    assert fork(child).wait() == 0

    assert sorted(place.shared[:3].tolist()) == [1, 2, 3]
    assert place.table.slot() == place.shared[0]


def test_a_child_of_a_c_level_fork_has_a_slot_of_its_own(place: Place) -> None:
    """A fork that Python knows nothing of wipes the page as well."""
    mine = place.table.slot()
    pid = _fork_of_c()
    if pid == 0:
        place.shared[0] = place.table.slot()
        os._exit(0)
    os.waitpid(pid, 0)

    assert place.shared[0] not in (0, mine)


def test_a_process_of_multiprocessing_has_a_slot_of_its_own(place: Place) -> None:
    """Nothing has to be called in the child beforehand."""
    mine = place.table.slot()

    def child() -> None:
        place.shared[0] = place.table.slot()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    process.close()

    assert place.shared[0] not in (0, mine)


def test_a_program_started_by_exec_takes_none(place: Place) -> None:
    """Slots are for those who have the region."""
    place.table.slot()
    subprocess.run([sys.executable, "-c", ""], check=True)

    assert place.pids() == [os.getpid()]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_child_forked_by_a_thread_has_a_slot_of_its_own(place: Place, fork: Fork) -> None:
    """Whatever thread of the parent it continues."""
    place.table.slot()

    def child() -> None:
        place.shared[0] = place.table.slot()

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(fork(child).wait()))
    thread.start()
    thread.join()

    assert codes == [0]
    assert place.shared[0] == 2


def test_threads_that_claim_at_once_share_one_slot(place: Place) -> None:
    """The slot is the process's."""
    together = threading.Barrier(4)
    found: list[int] = []

    def claim() -> None:
        together.wait()
        found.append(place.table.slot())

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [1] * 4
    assert place.pids() == [os.getpid()]


def test_a_process_says_what_it_does_and_its_successor_starts_afresh(fork: Fork) -> None:
    """Notes are its own, and gone with it."""
    place = Place(1)

    def child() -> None:
        place.table.note(at.WAITS_FOR, 4096)

    assert fork(child).wait() == 0
    (dead,) = place.table.members()
    place.table.slot()
    (mine,) = place.table.members()

    assert dead.notes[0] == 4096
    assert set(mine.notes) == {0}
    assert (dead.generation, mine.generation, place.table.generation()) == (0, 1, 1)


# Full


def test_a_full_table_is_an_error_with_its_figures(fork: Fork) -> None:
    """Nobody who lives is put out."""
    place = Place(2)

    def member() -> None:
        place.table.slot()
        place.shared[0] += 1
        signal.pause()

    for count in (1, 2):
        fork(member)
        place.wait_for(0, count)

    with pytest.raises(FamilyFull, match=rf"max_processes=2, pid={os.getpid()}"):
        place.table.slot()
    assert len(place.pids()) == 2


def one_after_the_other(place: Place, count: int, fork: Fork) -> None:
    """Let many processes claim, die and be followed by the next; count their deaths."""
    lives = set()

    def child() -> None:
        place.shared[0] = place.table.slot()
        place.shared[1] = place.table.generation()

    for _ in range(count):
        assert fork(child).wait() == 0
        lives.add((place.shared[0], place.shared[1]))
    place.table.sweep()

    assert len(lives) == count
    assert place.words[at.H_DEATHS] == count
    assert place.pids() == []


def test_more_processes_than_slots_one_after_the_other(fork: Fork) -> None:
    """A claim that finds the table full sweeps first; no life of a slot is had twice."""
    one_after_the_other(Place(16), 100, fork)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_ten_thousand_processes_through_4096_slots(fork: Fork) -> None:
    """The default size, more than twice over."""
    place = Place(4096)
    one_after_the_other(place, 10_000, fork)

    assert len(place.table.deaths()) == at.LOG_RECORDS
