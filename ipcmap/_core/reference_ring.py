"""The ring of the reference engine: records through shared bytes, any number at both ends.

Two positions that only grow; an index is a position cut to the capacity. What decides
is read and written in the section that guards it, so nothing here rests on the order
in which a processor makes stores visible. (A glance from outside, to spin or to wake
one more sleeper, decides nothing.)

Shared fields (ring_layout has their places)
  in the producers' section, changed by producers alone:
    write_pos       end of the last record; its store is the commit
    puts            records committed
    next_write_pos  the journal: what the change under way will store in write_pos,
    next_puts       and in puts; stored in this order, before write_pos
    seen_read_pos   a read_pos of some time ago: room that is certainly free
    closed          1 once the ring is closed
    consumers' sleepers   changed by consumers (reference_parking)
  in the consumers' section, changed by consumers alone:
    read_pos, gets, next_read_pos, next_gets, seen_write_pos   the mirror images
    ended           1 once the ring is closed, for producers that wait for room
    producers' sleepers   changed by producers
  capacity          the creator's, before anyone else; a damaged one is never used
                    (each process keeps the figure with which it attached)

Sync points, each at both of its ends
  X1, X2    every section, entered and left (reference_sections)
  R1 publish   producer: write_pos, after the last byte and after the journal
               consumer: reads it into seen_write_pos, in the producers' section
  R2 consume   consumer: read_pos, after the bytes were copied and after the journal
               producer: reads it into seen_read_pos, in the consumers' section
  P1 to P6     parking (reference_parking)
  E1 end       closed, then ended, each in its section

If a process dies (or a signal handler raises)
  before R1    the record never existed; the next writes over it
  after R1     it is delivered; if puts was not stored, the next producer sees that
               write_pos equals next_write_pos and puts does not equal next_puts,
               and stores it
  before R2    the record is read again by the next consumer
  after R2     it was the one record of an unfinished get
  elsewhere    nothing of the ring has changed but a sleeper too many, or a wake-up
               that comes at the end of a slice

Invariants: 0 <= write_pos - read_pos <= capacity; a record never wraps; positions are
multiples of 8. What breaks them is Damaged, not a crash: every word is copied once,
checked, and then used.
"""

from __future__ import annotations

from errno import EBUSY, EOWNERDEAD

from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring_waiting import CLOSED, DONE, LARGEST, Damaged, RingWaiting
from ipcmap._core.reference_sections import abandon, enter, inside, trylock, unlock
from ipcmap._core.ring_layout import (
    CONSUMERS_SLEEPING,
    FIRST_RECORD,
    GETS,
    LENGTH_MASK,
    NEXT_GETS,
    NEXT_PUTS,
    NEXT_READ_POS,
    NEXT_WRITE_POS,
    NUMBER_MASK,
    NUMBER_SHIFT,
    PRODUCERS_SLEEPING,
    PUTS,
    READ_POS,
    RECORDS,
    SEEN_READ_POS,
    SEEN_WRITE_POS,
    WRITE_POS,
)
from ipcmap._deadline import Deadline

__all__ = ["PADDING_KIND", "RingCore", "initialise", "nbytes"]

PADDING_KIND = at.PADDING << at.KIND_SHIFT


def nbytes(capacity: int) -> int:
    """Return the length in bytes of a ring with ``capacity`` bytes for records."""
    return RECORDS + capacity


def initialise(memory: memoryview, address: int, capacity: int) -> None:
    """Make a ring of zeroed bytes, before anyone else sees them."""
    memory.cast("Q")[at.CAPACITY] = capacity
    sections.initialise(address + at.PRODUCERS_SECTION)
    sections.initialise(address + at.CONSUMERS_SECTION)
    parking.initialise(address + at.CONSUMERS_PARKING)
    parking.initialise(address + at.PRODUCERS_PARKING)


class RingCore(RingWaiting):
    """A ring as one process holds it. Its methods make one attempt each; ``wait`` waits."""

    def put(self, data: bytes | memoryview, deadline: Deadline) -> int:
        """Append one record if there is room.

        Returns:
            DONE, CLOSED, or the read_pos that left no room: what ``wait`` is to wait
            beyond. A record longer than ``longest`` may never find room.
        """
        words, length = self._words, len(data)
        need = 8 + (length + 7 & ~7)
        answer, section = EBUSY, self._producers_section
        try:
            (answer,) = map(trylock, (section,))  # X1
            if answer:
                answers = [answer]
                try:
                    enter(section, deadline, answers)
                finally:
                    answer = answers[-1]
            if words[at.CLOSED]:
                return CLOSED
            write_pos, puts, seen = words[WRITE_POS], words[PUTS], words[SEEN_READ_POS]
            if words[NEXT_PUTS] != puts:
                puts = self._settle(PUTS, NEXT_PUTS, WRITE_POS, NEXT_WRITE_POS)
            index = write_pos & self._mask
            to_end = self.capacity - index
            total = need if need <= to_end else need + to_end
            backlog = write_pos - seen
            if not 0 <= backlog <= self.capacity or write_pos & 7 or (write_pos | puts) > LARGEST:
                raise Damaged(f"write_pos={write_pos}, backlog={backlog}, puts={puts}")
            if backlog + total > self.capacity:
                return int(seen)
            number = (puts & NUMBER_MASK) << NUMBER_SHIFT
            if total != need:
                words[FIRST_RECORD + (index >> 3)] = number | PADDING_KIND | to_end - 8
                index = 0
            words[FIRST_RECORD + (index >> 3)] = number | length
            begin = RECORDS + 8 + index
            self._memory[begin : begin + length] = data
            words[NEXT_WRITE_POS] = write_pos = write_pos + total
            words[NEXT_PUTS] = puts = puts + 1
            words[WRITE_POS] = write_pos  # R1 publish
            words[PUTS] = puts
            sleepers = words[CONSUMERS_SLEEPING]  # P5 look
        finally:
            if not answer:
                unlock(section)  # X2
            elif answer == EOWNERDEAD:
                abandon(section)
        if sleepers:
            parking.wake(self._consumers_parking)  # P6 post
        return DONE

    def get(self, deadline: Deadline) -> bytes | int:
        """Take the oldest record.

        Returns:
            The record, or the write_pos up to which all was taken: what ``wait`` is
            to wait beyond.
        """
        words = self._words
        answer, section = EBUSY, self._consumers_section
        try:
            (answer,) = map(trylock, (section,))  # X1
            if answer:
                answers = [answer]
                try:
                    enter(section, deadline, answers)
                finally:
                    answer = answers[-1]
            read_pos, gets, seen = words[READ_POS], words[GETS], words[SEEN_WRITE_POS]
            if words[NEXT_GETS] != gets:
                gets = self._settle(GETS, NEXT_GETS, READ_POS, NEXT_READ_POS)
            if read_pos == seen:
                return int(seen)
            begin, length, after = self._record(read_pos, seen, gets)
            record = self._memory[begin : begin + length].tobytes()
            words[NEXT_READ_POS] = after
            words[NEXT_GETS] = gets = gets + 1
            words[READ_POS] = after  # R2 consume
            words[GETS] = gets
            sleepers = words[PRODUCERS_SLEEPING]  # P5 look
        finally:
            if not answer:
                unlock(section)  # X2
            elif answer == EOWNERDEAD:
                abandon(section)
        if sleepers:
            parking.wake(self._producers_parking)  # P6 post
        if (after != seen or words[at.CLOSED]) and words[CONSUMERS_SLEEPING]:
            parking.wake(
                self._consumers_parking
            )  # what is left behind, or the end, is for the next
        return record

    def _record(self, read_pos: int, seen: int, gets: int) -> tuple[int, int, int]:
        """Return where the record at ``read_pos`` begins, its length, and where the next is."""
        left, index = seen - read_pos, read_pos & self._mask
        if not 8 <= left <= self.capacity or read_pos & 7 or (read_pos | gets) > LARGEST:
            raise Damaged(f"read_pos={read_pos}, seen_write_pos={seen}, gets={gets}")
        header = self._words[FIRST_RECORD + (index >> 3)]
        # The usual record: the next number, no padding, all of it there.
        length = header & LENGTH_MASK
        size = 8 + (length + 7 & ~7)
        usual = (gets & NUMBER_MASK) << NUMBER_SHIFT | length
        if header == usual and size <= left and index + size <= self.capacity:
            return RECORDS + 8 + index, length, read_pos + size
        if header >> at.KIND_SHIFT & at.KIND_MASK == at.PADDING:
            read_pos += self.capacity - index
            left -= self.capacity - index
            index = 0
            header = self._words[FIRST_RECORD]
        length = header & LENGTH_MASK
        size = 8 + (length + 7 & ~7)
        number = header >> NUMBER_SHIFT
        kind = header >> at.KIND_SHIFT & at.KIND_MASK
        if kind or size > left or index + size > self.capacity or number != gets & NUMBER_MASK:
            raise Damaged(
                f"record at {read_pos}: header={header:#x}, number={number}, "
                f"expected={gets & NUMBER_MASK}, length={length}, left={left}"
            )
        return RECORDS + 8 + index, length, read_pos + size

    def close(self, deadline: Deadline) -> None:
        """End it: producers are refused from now on, consumers take what is left.

        Broken off, by Stalled or a signal handler, it is to be called again.
        """

        def close() -> int:
            self._words[at.CLOSED] = 1  # E1 end
            return self._words[CONSUMERS_SLEEPING]

        def end() -> int:
            self._words[at.ENDED] = 1  # E1 end
            return self._words[PRODUCERS_SLEEPING]

        if inside(self._producers_section, deadline, close):
            parking.wake(self._consumers_parking)
        if inside(self._consumers_section, deadline, end):
            parking.wake(self._producers_parking)

    def counts(self, deadline: Deadline) -> tuple[int, int]:
        """Return the records ever taken and ever put, in this order of looking."""
        consumed = GETS, NEXT_GETS, READ_POS, NEXT_READ_POS
        produced = PUTS, NEXT_PUTS, WRITE_POS, NEXT_WRITE_POS
        gets = inside(self._consumers_section, deadline, self._settle, *consumed)
        puts = inside(self._producers_section, deadline, self._settle, *produced)
        return gets, puts
