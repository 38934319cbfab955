"""How the two sides of the reference engine's ring attach to it and wait for each other.

The waiting half of reference_ring, whose header names the fields and sync points. A
side looks at the other's position in the other's section, and notes it in its own;
it waits when that position has not moved since the note.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from ipcmap._core import reference_parking as parking
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_sections import Stalled, inside
from ipcmap._deadline import Deadline

__all__ = [
    "CLOSED",
    "DONE",
    "EMPTY",
    "LARGEST",
    "Damaged",
    "RingWaiting",
    "Side",
    "Stalled",
]

# What an attempt or a wait came to. An attempt that found no room, or no record,
# returns the position of the other side that it went by: no negative number.
DONE, CLOSED, EMPTY = -1, -2, -3

LARGEST = 2**63 - 1  # of a position or count: at a byte a nanosecond, 292 years

_SLICE = 1.0  # seconds asleep at most; a token that a death took costs this much
_SPIN = 50e-6  # seconds of looking before sleeping, where there is a second CPU


class Damaged(Exception):
    """Shared bookkeeping is not what any process of the family can have left."""


class Side(NamedTuple):
    """What one side waits for: a word of the other's, looked at in the other's section."""

    section: int
    own_pos: int
    sign: int  # of the other position less our own
    seen: int
    other_section: int
    other_pos: int
    other_ended: int
    parking: int
    sleepers: int


class RingWaiting:
    """A ring as one process holds it: attached, and able to wait."""

    def __init__(self, memory: memoryview, address: int) -> None:
        """Attach to the ring in ``memory``, which begins at ``address``."""
        self._memory = memory
        self._words = memory.cast("Q")
        self.capacity = capacity = self._words[at.CAPACITY]
        if capacity < 64 or capacity & (capacity - 1) or memory.nbytes < at.RECORDS + capacity:
            raise Damaged(f"capacity={capacity}, nbytes={memory.nbytes}")
        self._mask = capacity - 1
        self.longest = capacity // 2 - 8  # of records that fit an empty ring at any offset
        self._producers_section = address + at.PRODUCERS_SECTION
        self._consumers_section = address + at.CONSUMERS_SECTION
        self._consumers_parking = address + at.CONSUMERS_PARKING
        self._producers_parking = address + at.PRODUCERS_PARKING
        self.producers = Side(
            self._producers_section, at.WRITE_POS, -1, at.SEEN_READ_POS,
            self._consumers_section, at.READ_POS, at.ENDED,
            self._producers_parking, at.PRODUCERS_SLEEPING,
        )  # fmt: skip
        self.consumers = Side(
            self._consumers_section, at.READ_POS, 1, at.SEEN_WRITE_POS,
            self._producers_section, at.WRITE_POS, at.CLOSED,
            self._consumers_parking, at.CONSUMERS_SLEEPING,
        )  # fmt: skip

    def wait(self, side: Side, seen: int, deadline: Deadline) -> int:
        """Wait for the other side to move on from ``seen``, which an attempt returned.

        Returns:
            DONE = it has, try again. EMPTY = not before the deadline, or within a
            slice. CLOSED = it never will; what is before ``seen`` was taken.
        """
        outcome = self._look(side, seen, deadline)
        if outcome != EMPTY or not deadline.remaining():
            return outcome
        if _spin(self._words, side.other_pos, seen, deadline):
            return self._look(side, seen, deadline)
        outcome = self._look(side, seen, deadline, arriving=1)  # P1 announce, P2 re-check
        if outcome != EMPTY:
            return outcome
        try:
            parking.sleep(side.parking, deadline.slice(_SLICE))  # P3 sleep
        except BaseException:
            self._leave(side, seen)
            self._wake_next(side)  # the token may have been ours
            raise
        outcome = self._leave(side, seen)  # P4 woken
        if outcome == CLOSED or (outcome == DONE and side is self.producers):
            self._wake_next(side)
        return outcome

    def _leave(self, side: Side, seen: int) -> int:
        """Look, and be no sleeper any more; EMPTY if the section is not to be had."""
        try:
            return self._look(side, seen, Deadline(0), leaving=1)
        except Stalled:
            return EMPTY

    def _wake_next(self, side: Side) -> None:
        if self._words[side.sleepers]:
            parking.wake(side.parking)

    def _look(
        self, side: Side, seen: int, deadline: Deadline, *, arriving: int = 0, leaving: int = 0
    ) -> int:
        """Look whether the other side has moved since ``seen``, and note that for our side."""
        pos, ended = inside(
            side.other_section, deadline, self._look_across, side, seen, arriving, leaving
        )
        if pos < seen:
            raise Damaged(f"the other side's position={pos}, earlier={seen}")
        if pos > seen:
            inside(side.section, deadline, self._note, side, pos)
            return DONE
        return CLOSED if ended else EMPTY

    def _look_across(self, side: Side, seen: int, arriving: int, leaving: int) -> tuple[int, int]:
        """Read the other side's words, in its section; be a sleeper, or be none any more."""
        words = self._words
        pos, ended = words[side.other_pos], words[side.other_ended]
        if leaving or (arriving and pos == seen and not ended):
            sleepers = words[side.sleepers] + arriving - leaving
            words[side.sleepers] = min(max(0, sleepers), LARGEST)
        return pos, ended

    def _note(self, side: Side, pos: int) -> None:
        """Note the other side's position, in our section."""
        words = self._words
        # Another process of our side may have noted a later one meanwhile.
        latest, own = max(pos, words[side.seen]), words[side.own_pos]
        if not 0 <= (latest - own) * side.sign <= self.capacity:
            raise Damaged(f"position={own}, the other side's={latest}")
        words[side.seen] = latest

    def _settle(self, count: int, next_count: int, pos: int, next_pos: int) -> int:
        """Finish a change that was broken off after its commit; return the right count."""
        words = self._words
        if words[pos] == words[next_pos]:
            words[count] = words[next_count]
        return words[count]


def _spin(words: memoryview, pos: int, seen: int, deadline: Deadline) -> bool:
    """Look for a moment whether a word changes; whatever is seen is looked at again inside."""
    if len(os.sched_getaffinity(0)) < 2:
        return False
    until = time.perf_counter() + deadline.slice(_SPIN)
    while words[pos] == seen:
        if time.perf_counter() >= until:
            return False
        os.sched_yield()  # time.sleep(0) takes as long as the kernel's timer slack
    return True
