"""The ring of the reference engine: records through shared bytes, any number at both ends.

Two positions that only grow; an index is a position cut to the capacity. What decides
is read and written in the section that guards it, so nothing here rests on the order
in which a processor makes stores visible. (A glance from outside, to spin or to wake
one more sleeper, decides nothing.)

Shared fields (ring_layout has their places)
  in the producers' section, changed by producers alone:
    write_pos       end of the last record; its store is the commit
    room_end        up to here producers write without a look across; never beyond the
                    ring's end, so that a record that fits never wraps; 0 once closed
    seen_read_pos   a read_pos of some time ago
    puts            records ever put, as of the last look across; exact with the number
                    of the stub at write_pos
    closed          1 once the ring is closed
    takeovers       how often the section was inherited from the dead
    consumers' sleepers   changed by consumers (reference_parking); its upper half, and
                    listeners: reference_ring_listeners
  in the consumers' section, changed by consumers alone:
    read_pos        end of the last record taken; its store consumes
    seen_write_pos  a write_pos of some time ago
    ended           1 once the ring is closed, for producers that wait for room
    takeovers       as above
    producers' sleepers   changed by producers; its upper half, and room_listeners:
                    reference_ring_listeners
    what leases need: reference_ring_blocks
  capacity          the creator's, before anyone else; a damaged one is never used
                    (each process keeps the figure with which it attached)

Sync points, each at both of its ends
  X1, X2    every section, entered and left (reference_sections)
  R1 publish   producer: write_pos, after the last byte and after the next stub
               consumer: reads it into seen_write_pos, in the producers' section
  R2 consume   consumer: read_pos, after the bytes were copied
               producer: reads it into seen_read_pos, in the consumers' section
  P1 to P6     parking (reference_parking)
  W1 to W4     listeners (reference_ring_listeners)
  E1 end       room_end = 0, then closed, then ended in its section
  B, L, J      records in blocks, and leases (reference_ring_blocks)

If a process dies (or a signal handler raises)
  before R1    the record never existed; the next writes over it. Of the stub under it
               only the number is read, which is the same in all that was written there
  after R1     it is delivered
  before R2    the record is read again by the next consumer
  after R2     it was the one record of an unfinished get
  elsewhere    nothing of the ring has changed but a sleeper too many, or a wake-up
               that comes at the end of a slice

There is no journal: each change is one store. How many records were ever put and taken
is read from the numbers in the headers at the two positions.

Invariants: 0 <= write_pos - read_pos <= capacity - 8; a record never wraps; positions
are multiples of 8. What breaks them is Damaged, not a crash: every word is copied once,
checked where the usual case ends, and an index cannot leave the ring's own memory.
"""

from __future__ import annotations

from errno import EBUSY, EOWNERDEAD

from ipcmap._core import processors
from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_blocks import NO_SLOT, RingBlocks
from ipcmap._core.reference_ring_waiting import CLOSED, DONE, Damaged
from ipcmap._core.reference_sections import abandon, enter, leave
from ipcmap._core.ring_layout import (
    CONSUMERS_SLEEPING,
    FIRST_LENGTH,
    FIRST_NUMBER,
    FIRST_RECORD,
    HALF_MASK,
    KIND_HALF,
    NUMBER_HALF,
    PRODUCERS_SLEEPING,
    READ_POS,
    RECORDS,
    ROOM_END,
    SEEN_WRITE_POS,
    WRITE_POS,
)
from ipcmap._deadline import Deadline

__all__ = ["NO_SLOT", "RingCore", "initialise", "nbytes"]

_FOR_EVER = Deadline(None)
_ENOUGH = 1 << 11  # bytes for which a look across, into the producers' section, pays
_GLANCES = 120  # some 6 us: what comes so soon is not worth the ways of a wait
_GLANCES_BETWEEN = 40  # some 2 us without another record: their producer pauses


def nbytes(capacity: int) -> int:
    """Return the length in bytes of a ring with ``capacity`` bytes for records."""
    return RECORDS + capacity


def initialise(memory: memoryview, address: int, capacity: int) -> None:
    """Make a ring of zeroed bytes, before anyone else sees them."""
    words = memory[:RECORDS].cast("Q")
    words[at.CAPACITY] = capacity
    sections.initialise(address + at.PRODUCERS_SECTION)
    sections.initialise(address + at.CONSUMERS_SECTION)
    parking.initialise(address + at.CONSUMERS_PARKING)
    parking.initialise(address + at.PRODUCERS_PARKING)


class RingCore(RingBlocks):
    """A ring as one process holds it. Its methods make one attempt each; ``wait`` waits."""

    def put(self, data: bytes | memoryview, deadline: Deadline = _FOR_EVER, pos: int = -1) -> int:
        """Append one record if there is room.

        Args:
            data: The record.
            deadline: When to stop waiting for the section.
            pos: A read_pos that was looked up just now, -1 = none.

        Returns:
            DONE, CLOSED, or the read_pos that left no room: what ``wait`` is to wait
            beyond. A record longer than ``longest`` may never find room.
        """
        words, halves, length = self._words, self._halves, len(data)
        answer = EBUSY
        try:
            for answer in self._enter_producers:  # X1  # noqa: B007
                break
            if answer:
                answers = [answer]
                try:
                    enter(self._producers_section, deadline, answers)
                finally:
                    answer = answers[-1]
                if EOWNERDEAD in answers:
                    self._count_takeover(self._producers_section)
            write_pos = words[WRITE_POS]
            end = write_pos + (length + 15 & -8)
            index = write_pos & self._mask
            if end > words[ROOM_END]:
                if pos < 0 or not self._note_room(pos, length + 15 & -8):
                    return CLOSED if words[at.CLOSED] else int(words[at.SEEN_READ_POS])
                write_pos = words[WRITE_POS]
                end = write_pos + (length + 15 & -8)
                index = write_pos & self._mask
            first = index >> 2
            number = halves[FIRST_NUMBER + first]
            index += RECORDS + 8
            try:
                self._memory[index : index + length] = data
            except ValueError:  # no handler runs here: it is the slice that is too short
                raise Damaged(f"room beyond the end: write_pos={write_pos}") from None
            halves[FIRST_LENGTH + first] = length
            if number & KIND_HALF:  # of one who died here
                number -= number & KIND_HALF
                halves[FIRST_NUMBER + first] = number
            number += NUMBER_HALF
            if number > HALF_MASK:
                number = 0
            halves[FIRST_NUMBER + ((end & self._mask) >> 2)] = number
            words[WRITE_POS] = end  # R1 publish
            sleepers = words[CONSUMERS_SLEEPING]  # P5 look
        finally:
            if not answer:
                leave(self._producers_mutex)  # X2
            elif answer == EOWNERDEAD:
                abandon(self._producers_section)
        if sleepers:
            self.wake_consumers(sleepers)  # P6 post, W3 call
        return DONE

    def get(self, deadline: Deadline = _FOR_EVER, pos: int = -1) -> bytes | Cell | int:
        """Take the oldest record.

        Args:
            deadline: When to stop waiting for the section.
            pos: A write_pos that was looked up just now, -1 = none.

        Returns:
            The record, or the block that carries it, which is the caller's to free.
            Else the write_pos up to which all was taken, what ``wait`` is to wait
            beyond; or NO_SLOT where this process has to claim one first.
        """
        words, halves = self._words, self._halves
        answer = EBUSY
        try:
            for answer in self._enter_consumers:  # X1  # noqa: B007
                break
            if answer:
                answers = [answer]
                try:
                    enter(self._consumers_section, deadline, answers)
                finally:
                    answer = answers[-1]
                if EOWNERDEAD in answers:
                    self._count_takeover(self._consumers_section)
            read_pos, seen = words[READ_POS], words[SEEN_WRITE_POS]
            if read_pos == seen:
                if pos <= seen:
                    return int(seen)
                self._note_records(pos)
                seen = words[SEEN_WRITE_POS]
            index = read_pos & self._mask
            length = halves[FIRST_LENGTH + (index >> 2)]
            after = read_pos + (length + 15 & -8)
            record: bytes | Cell | int
            if (
                halves[FIRST_NUMBER + (index >> 2)] & KIND_HALF
                or after > seen
                or seen - read_pos > self.capacity
            ):
                record, after = self._take_unusual(read_pos, seen)
            else:
                index += RECORDS + 8
                record = self._memory[index : index + length].tobytes()
            words[READ_POS] = after  # R2 consume
            sleepers = words[PRODUCERS_SLEEPING]  # P5 look
        finally:
            if not answer:
                leave(self._consumers_mutex)  # X2
            elif answer == EOWNERDEAD:
                abandon(self._consumers_section)
        if sleepers:
            taken = () if isinstance(record, int) else (record,)
            self.wake_producers(sleepers, taken)  # P6 post, W3 call
        return record

    def put_soon(self, data: bytes | memoryview) -> int:
        """Put after an attempt that found no room: with one look across, and no wait."""
        pos = self._inside(self._consumers_section, _FOR_EVER, self._words.__getitem__, READ_POS)
        return self.put(data, _FOR_EVER, pos)

    def get_soon(self, seen: int) -> bytes | Cell | int:
        """Get after an attempt that went by ``seen``: glance while records come, look across once."""
        words = self._words
        left, pos = _GLANCES, seen
        if words[WRITE_POS] == seen and not processors.may_spin():
            return seen
        while left and pos - seen < _ENOUGH:
            latest = words[WRITE_POS]
            left = left - 1 if latest == pos else _GLANCES_BETWEEN
            pos = latest
        if pos == seen:
            return seen
        pos = self._inside(self._producers_section, _FOR_EVER, words.__getitem__, WRITE_POS)
        return self.get(_FOR_EVER, pos)

    def close(self, deadline: Deadline) -> None:
        """End it: producers are refused from now on, consumers take what is left.

        Broken off, by Stalled or a signal handler, it is to be called again.
        """
        self.wake_consumers(self._inside(self._producers_section, deadline, self._close))
        self.wake_producers(self._inside(self._consumers_section, deadline, self._end))

    def _close(self) -> int:
        self._words[ROOM_END] = 0
        self._words[at.CLOSED] = 1  # E1 end
        return self._words[CONSUMERS_SLEEPING]

    def _end(self) -> int:
        self._words[at.ENDED] = 1  # E1 end
        return self._words[PRODUCERS_SLEEPING]

    def counts(self, deadline: Deadline) -> tuple[int, int]:
        """Return the records ever taken and ever put, in this order of looking."""
        number = self._inside(self._consumers_section, deadline, self._number_at, READ_POS)
        puts = self._inside(self._producers_section, deadline, self._puts)
        return puts - (puts - number & at.NUMBER_MASK), puts

    def _number_at(self, position: int) -> int:
        """Return the number of the record at one of the positions, from its header."""
        index = self._words[position] & self._mask
        return int(self._words[FIRST_RECORD + (index >> 3)] >> at.NUMBER_SHIFT)

    # Onlookers

    def is_closed(self) -> bool:
        """Return whether it was closed."""
        return bool(self._words[at.CLOSED])

    def consumed_at_a_glance(self) -> int:
        """Return up to where all was taken, or was a moment ago."""
        return int(self._words[READ_POS])

    def backlog(self) -> int:
        """Return how many bytes are in use, at a glance."""
        words = self._words
        return min(max(0, words[WRITE_POS] - words[READ_POS]), self.capacity)

    def glance(self) -> tuple[int, int, int, int]:
        """Return the backlog, the sleepers of both sides (producers first), and the takeovers."""
        words = self._words
        takeovers = words[at.PRODUCERS_TAKEOVERS] + words[at.CONSUMERS_TAKEOVERS]
        sleeping = words[CONSUMERS_SLEEPING] & at.SLEEPING
        return self.backlog(), words[PRODUCERS_SLEEPING] & at.SLEEPING, sleeping, takeovers
