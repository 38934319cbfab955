"""The family as its users see it: its members, and how they ended."""

from __future__ import annotations

import os

import pytest

from children import Fork, die
from ipcmap import Mapping
from ipcmap._core import reference_sections as sections
from ipcmap._core import slot_layout as at
from ipcmap.family import ExitRecord, Family


def family(max_processes: int) -> Family:
    """Return a family in a mapping of its own."""
    region = Mapping.anonymous(sections.NBYTES + Family.nbytes(max_processes))
    sections.initialise(region.address)
    words = region.view(sections.NBYTES).cast("Q")
    return Family(words, region.address + sections.NBYTES, region.address, max_processes)


def test_members_and_deaths_of_a_family(fork: Fork) -> None:
    """Who is there, what it says of itself, and how it ended."""
    ours = family(4)
    dead: list[tuple[int, int]] = []
    ours.on_death(lambda slot, generation: dead.append((slot, generation)))

    def child() -> None:
        ours.note(at.TASK, 7)
        die()

    victim = fork(child)
    os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
    (member,) = ours.members()
    swept = ours.sweep()
    (record,) = ours.deaths()

    assert (member.pid, member.slot, member.task, member.dying) == (victim.pid, 1, 7, False)
    assert (swept, dead, ours.members(), ours.max_processes) == (1, [(1, 0)], [], 4)
    assert record == ExitRecord(victim.pid, -9, 9, cause="killed", seen_at=record.seen_at)
    assert record.seen_at >= member.claimed_at


@pytest.mark.parametrize("max_processes", [0, -1, at.MAX_PROCESSES + 1])
def test_a_family_of_impossible_size_is_refused(max_processes: int) -> None:
    """The message says what is possible."""
    with pytest.raises(ValueError, match=f"must be 1 to {at.MAX_PROCESSES}"):
        Family.nbytes(max_processes)


def test_memory_too_short_for_a_family_is_refused() -> None:
    """The message says how much it takes."""
    with pytest.raises(ValueError, match=f"= {Family.nbytes(4)} bytes"):
        Family(memoryview(bytearray(64)).cast("Q"), 0, 0, 4)
