"""How the two sides of the reference engine's ring attach to it and wait for each other.

The waiting half of reference_ring, whose header names the fields and sync points. A
side looks at the other's position in the other's section, and notes it in its own;
it waits when that position has not moved since the note.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from ipcmap._core import processors
from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_cells import Cell
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
DONE, CLOSED, EMPTY, NO_SLOT = -1, -2, -3, -4

Result = TypeVar("Result")

LARGEST = 2**63 - 1  # of a position or count: at a byte a nanosecond, 292 years

_SLICE = 1.0  # seconds asleep at most; a token that a death took costs this much
_SPIN = 50e-6  # seconds of looking before sleeping, where there is a second processor
_WINDOW = 1 << 18  # bytes at the front of a ring in which a small backlog stays: in the cache


class Damaged(Exception):
    """Shared bookkeeping is not what any process of the family can have left."""


class Side(NamedTuple):
    """What one side waits for: a word of the other's, looked at in the other's section."""

    other_section: int
    other_pos: int
    other_ended: int
    parking: int
    sleepers: int


class RingWaiting:
    """A ring as one process holds it: attached, and able to wait."""

    def __init__(self, memory: memoryview, address: int) -> None:
        """Attach to the ring in ``memory``, which begins at ``address``."""
        if memory.nbytes < at.RECORDS + at.MIN_CAPACITY:
            raise Damaged(f"nbytes={memory.nbytes}")
        self.capacity = capacity = memory[: at.RECORDS].cast("Q")[at.CAPACITY]
        if (
            not at.MIN_CAPACITY <= capacity <= at.MAX_CAPACITY
            or capacity & (capacity - 1)
            or memory.nbytes < at.RECORDS + capacity
        ):
            raise Damaged(f"capacity={capacity}, nbytes={memory.nbytes}")
        self._memory = memory[: at.RECORDS + capacity]
        self._words = self._memory.cast("Q")
        self._halves = self._memory.cast("I")
        self._mask = capacity - 8  # makes an index of a position
        self._window = min(capacity, _WINDOW)
        self.longest = capacity // 2 - 8  # of records that fit an empty ring at any offset
        self._producers_section = address + at.PRODUCERS_SECTION
        self._consumers_section = address + at.CONSUMERS_SECTION
        self._producers_mutex = sections.mutex(self._producers_section)
        self._consumers_mutex = sections.mutex(self._consumers_section)
        self._enter_producers: Iterator[int] = sections.attempts(self._producers_mutex)
        self._enter_consumers: Iterator[int] = sections.attempts(self._consumers_mutex)
        self._consumers_parking = address + at.CONSUMERS_PARKING
        self._producers_parking = address + at.PRODUCERS_PARKING
        self.producers = Side(
            self._consumers_section, at.READ_POS, at.ENDED,
            self._producers_parking, at.PRODUCERS_SLEEPING,
        )  # fmt: skip
        self.consumers = Side(
            self._producers_section, at.WRITE_POS, at.CLOSED,
            self._consumers_parking, at.CONSUMERS_SLEEPING,
        )  # fmt: skip

    def wait(self, side: Side, seen: int, deadline: Deadline, need: int = 0) -> int:
        """Wait for the other side to move on from ``seen``, which an attempt returned.

        Args:
            side: Ours.
            seen: What the attempt returned.
            deadline: When to give up.
            need: The room that a producer waits for: bytes of the record and its header.

        Returns:
            DONE = it has, try again. EMPTY = not before the deadline, or within a
            slice. CLOSED = it never will; what is before ``seen`` was taken.
        """
        outcome = self._wait(side, seen, deadline, need)
        if outcome == CLOSED:
            # Whoever hears of the end tells the next: its one token may have been taken by
            # a sleeper that found a record first.
            self.wake_next(side)
        return outcome

    def _wait(self, side: Side, seen: int, deadline: Deadline, need: int) -> int:
        outcome = self._look(side, seen, deadline, need)
        if outcome != EMPTY or not deadline.remaining():
            return outcome
        if _spin(self._words, side.other_pos, seen, deadline):
            return self._look(side, seen, deadline, need)
        outcome = self._look(side, seen, deadline, need, arriving=1)  # P1 announce, P2 re-check
        if outcome != EMPTY:
            return outcome
        try:
            parking.sleep(side.parking, deadline.slice(_SLICE))  # P3 sleep
        except BaseException:
            self._leave(side, seen, need)
            self.wake_next(side)  # the token may have been ours
            raise
        outcome = self._leave(side, seen, need)  # P4 woken
        if outcome == DONE and side is self.producers:
            self.wake_next(side)
        return outcome

    def pass_on(self) -> None:
        """Wake the next consumer if records are left, or the end: after a wait and a get."""
        words = self._words
        left = words[at.READ_POS] != words[at.SEEN_WRITE_POS] or words[at.RETURNED]
        if left or words[at.CLOSED]:
            self.wake_next(self.consumers)

    def wake_next(self, side: Side) -> None:
        """Wake one more of a side, if any sleep."""
        if self._words[side.sleepers] & at.SLEEPING:
            parking.wake(side.parking)

    def wake_consumers(self, sleepers: int) -> None:
        """Wake a consumer, and the listeners, as their word said in the section (P5 look)."""
        if sleepers & at.SLEEPING:
            parking.wake(self._consumers_parking)  # P6 post
        if sleepers > at.SLEEPING:
            self.call_listeners()

    def wake_producers(self, sleepers: int, taken: Sequence[bytes | Cell] = ()) -> None:
        """Wake a producer, and who listens for room, likewise; broken off, ``taken`` comes again."""
        try:
            if sleepers & at.SLEEPING:
                parking.wake(self._producers_parking)  # P6 post
            if sleepers > at.SLEEPING:
                self.call_room_listeners()
        except BaseException:
            self.return_all(taken)
            raise

    def return_all(self, taken: Sequence[bytes | Cell]) -> None:
        """Have what a call has taken come again: reference_ring_blocks."""
        raise NotImplementedError

    def call_listeners(self) -> None:
        """Call those who listen for records: reference_ring_listeners."""
        raise NotImplementedError

    def call_room_listeners(self) -> None:
        """Call those who listen for room."""
        raise NotImplementedError

    def _leave(self, side: Side, seen: int, need: int) -> int:
        """Look, and be no sleeper any more; EMPTY if the section is not to be had."""
        try:
            return self._look(side, seen, Deadline(0), need, leaving=1)
        except Stalled:
            return EMPTY

    def _look(
        self,
        side: Side,
        seen: int,
        deadline: Deadline,
        need: int,
        *,
        arriving: int = 0,
        leaving: int = 0,
    ) -> int:
        """Look whether the other side has moved since ``seen``, and note that for our side."""
        pos, ended = self._inside(
            side.other_section, deadline, self._look_across, side, seen, arriving, leaving
        )
        if pos < seen:
            raise Damaged(f"the other side's position={pos}, earlier={seen}")
        if side is self.producers:
            # Room that was known before can be too little for want of a padding record.
            if (pos > seen or not (arriving or leaving)) and self._inside(
                self._producers_section, deadline, self._note_room, pos, need
            ):
                return DONE
        elif pos > seen:
            self._inside(self._consumers_section, deadline, self._note_records, pos)
        if pos > seen:
            return DONE
        return CLOSED if ended else EMPTY

    def _look_across(self, side: Side, seen: int, arriving: int, leaving: int) -> tuple[int, int]:
        """Read the other side's words, in its section; be a sleeper, or be none any more."""
        words = self._words
        pos, ended = words[side.other_pos], words[side.other_ended]
        if leaving or (arriving and pos == seen and not ended):
            word = words[side.sleepers]
            sleepers = (word & at.SLEEPING) + arriving - leaving
            words[side.sleepers] = word & ~at.SLEEPING | min(max(0, sleepers), at.SLEEPING)
        return pos, ended

    def _note_records(self, pos: int) -> None:
        """Note the producers' position, in the consumers' section."""
        words = self._words
        # Another consumer may have noted a later one meanwhile.
        latest, read_pos = max(pos, words[at.SEEN_WRITE_POS]), words[at.READ_POS]
        if not 0 <= latest - read_pos <= self.capacity or latest > LARGEST:
            raise Damaged(f"read_pos={read_pos}, write_pos={latest}")
        words[at.SEEN_WRITE_POS] = latest

    def _note_room(self, pos: int, need: int) -> bool:
        """Note the consumers' position, in the producers' section; is there room for ``need``?

        This is where a padding record is written, when what remains before the edge is
        too little. The edge is the ring's end, and of a small backlog the window's.
        """
        words = self._words
        if words[at.CLOSED]:
            return False
        latest, write_pos = max(pos, words[at.SEEN_READ_POS]), words[at.WRITE_POS]
        backlog, index = write_pos - latest, write_pos & self._mask
        if not 0 <= backlog <= self.capacity - 8 or write_pos & 7 or write_pos > LARGEST:
            raise Damaged(f"write_pos={write_pos}, read_pos={latest}")
        words[at.SEEN_READ_POS] = latest
        words[at.PUTS] = self._puts()
        full = latest + self.capacity - 8  # the stub needs a word
        edge = self._window if backlog <= self._window // 2 else self.capacity
        to_end = self.capacity - index
        if index + need > edge and write_pos + to_end + need <= full:
            first = at.FIRST_RECORD + (index >> 3)
            stub = words[first] & at.NUMBER_BITS
            words[first] = stub | at.PADDING | to_end - 8
            words[at.FIRST_RECORD] = stub
            words[at.WRITE_POS] = write_pos = write_pos + to_end  # R1 publish
            index = 0
        if index + need > edge:
            edge = self.capacity
        words[at.ROOM_END] = room_end = min(full, write_pos - index + edge)
        return bool(write_pos + need <= room_end)

    def _inside(
        self, section: int, deadline: Deadline, change: Callable[..., Result], *arguments: object
    ) -> Result:
        """Return ``change(*arguments)``, called in one of the ring's sections."""
        return inside(section, deadline, change, *arguments, inherited=self._count_takeover)

    def _count_takeover(self, section: int) -> None:
        """Count, in a section, that it was inherited from the dead."""
        producers = section == self._producers_section
        index = at.PRODUCERS_TAKEOVERS if producers else at.CONSUMERS_TAKEOVERS
        self._words[index] = self._words[index] + 1 & at.WORD_MASK

    def _puts(self) -> int:
        """Count the records ever put, in the producers' section, from the stub's number."""
        index = self._words[at.WRITE_POS] & self._mask
        number = self._words[at.FIRST_RECORD + (index >> 3)] >> at.NUMBER_SHIFT
        puts = self._words[at.PUTS]
        return min(puts + (number - puts & at.NUMBER_MASK), LARGEST)


def _spin(words: memoryview, pos: int, seen: int, deadline: Deadline) -> bool:
    """Look for a moment whether a word changes; whatever is seen is looked at again inside."""
    if not processors.may_spin():
        return False
    until = time.perf_counter() + deadline.slice(_SPIN)
    while words[pos] == seen:
        if time.perf_counter() >= until:
            return False
        os.sched_yield()  # time.sleep(0) takes as long as the kernel's timer slack
    return True
