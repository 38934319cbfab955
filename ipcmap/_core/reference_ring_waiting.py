"""How the two sides of the reference engine's ring attach to it and wait for each other.

The waiting half of reference_ring, whose header names the fields and sync points. A
side looks at the other's position in the other's section, and notes it in its own;
it waits when that position has not moved since the note.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ipcmap._core import reference_parking as parking
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_sections import Reentered, enter, trylock, unlock
from ipcmap._deadline import Deadline

__all__ = [
    "CLOSED",
    "DONE",
    "EMPTY",
    "FULL",
    "LARGEST",
    "Damaged",
    "RingWaiting",
    "Side",
    "Stalled",
]

# What an attempt came to, where it is no record.
DONE, FULL, EMPTY, CLOSED = range(4)

LARGEST = 2**63 - 1  # of a position or count: at a byte a nanosecond, 292 years

_SLICE = 1.0  # seconds asleep at most; a token that a death took costs this much
_SPIN = 50e-6  # seconds of looking before sleeping, where there is a second CPU

Result = TypeVar("Result")


class Stalled(Exception):
    """The deadline passed while another process, alive, was inside a section."""


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

    def wait(self, side: Side, deadline: Deadline) -> int:
        """Wait for the other side to move on; DONE = try again, EMPTY = in vain, CLOSED = over.

        CLOSED for consumers means that nothing will come, and all was taken.
        """
        seen = self._inside(side.section, deadline, lambda: self._words[side.seen])
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
        finally:
            outcome = self._look(side, seen, Deadline(None), leaving=1)  # P4 woken
        if outcome == CLOSED and self._words[side.sleepers]:
            parking.wake(side.parking)  # each of those who sleep wakes the next at the end
        return outcome

    def _look(
        self, side: Side, seen: int, deadline: Deadline, *, arriving: int = 0, leaving: int = 0
    ) -> int:
        """Look whether the other side has moved since ``seen``, and note that for our side."""
        words = self._words

        def look() -> tuple[int, int]:
            pos, ended, sleepers = words[side.other_pos], words[side.other_ended], leaving
            if leaving or (pos == seen and not ended):
                sleepers = words[side.sleepers] + arriving - leaving
                words[side.sleepers] = min(max(0, sleepers), LARGEST)
            return pos, ended

        def note() -> None:
            # Another process of our side may have noted a later one meanwhile.
            latest, own = max(pos, words[side.seen]), words[side.own_pos]
            if not 0 <= (latest - own) * side.sign <= self.capacity:
                raise Damaged(f"position={own}, the other side's={latest}")
            words[side.seen] = latest

        pos, ended = self._inside(side.other_section, deadline, look)
        if pos < seen:
            raise Damaged(f"the other side's position={pos}, earlier={seen}")
        if pos > seen:
            self._inside(side.section, deadline, note)
            return DONE
        return CLOSED if ended else EMPTY

    def _inside(self, section: int, deadline: Deadline, change: Callable[[], Result]) -> Result:
        """Run ``change``, which waits for nothing, in a section."""
        held = section
        try:
            if (answer := trylock(held)) and not enter(held, deadline, answer):  # X1
                raise Stalled
            return change()
        except Reentered:
            held = 0
            raise
        finally:
            if held:
                unlock(held)  # X2

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
        time.sleep(0)
    return True
