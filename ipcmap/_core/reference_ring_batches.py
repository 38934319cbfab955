"""Many records at once through the reference engine's ring: one section and one commit for all.

The batch half of reference_ring, whose header names the fields and sync points. If a
producer dies before R1, none of the batch existed; a consumer that dies after R2 takes
its whole batch with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ipcmap._core import ring_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring import RingCore
from ipcmap._core.reference_ring_blocks import NO_SLOT
from ipcmap._core.reference_ring_waiting import CLOSED, DONE
from ipcmap._deadline import Deadline

__all__ = ["RingBatches"]

_FIRST_RUN = 16  # records that are tried as one run; doubles while the lengths stay alike


class RingBatches(RingCore):
    """A ring whose records also go in and come out by the batch."""

    def put_many(
        self, records: Sequence[bytes | memoryview], begin: int, deadline: Deadline
    ) -> tuple[int, int]:
        """Append records from ``begin`` on, as many as there is room for, in one commit.

        Args:
            records: Each of bytes, or a view of single bytes.
            begin: The first to put.
            deadline: When to stop waiting for the section.

        Returns:
            What came of it, as ``put`` says, and the index of the first that did not
            go in. Only with DONE did any.
        """
        batch = records[begin : begin + self.capacity // 8]
        outcome, done, sleepers = self._inside(
            self._producers_section, deadline, self._append, batch, list(map(len, batch))
        )
        if sleepers:
            self.wake_consumers(sleepers)  # P6 post, W3 call
        return outcome, begin + done

    def _append(
        self, batch: Sequence[bytes | memoryview], lengths: list[int]
    ) -> tuple[int, int, int]:
        """Append what there is room for, inside: the outcome, how many, and who sleeps."""
        words, done, run = self._words, 0, _FIRST_RUN
        write_pos, room_end = words[at.WRITE_POS], words[at.ROOM_END]
        index = write_pos & self._mask
        number = words[at.FIRST_RECORD + (index >> 3)] >> at.NUMBER_SHIFT
        room = min(room_end - write_pos, self.capacity - index)
        while done < len(batch):
            size = lengths[done] + 15 & -8
            most = room // size
            if most < 1:
                break
            count = self._write_run(batch, lengths, done, min(most, run), index, number)
            run = 2 * run if count == run else _FIRST_RUN
            room -= count * size
            index += count * size
            write_pos += count * size
            number = number + count & at.NUMBER_MASK
            done += count
        if not done:
            return (CLOSED if words[at.CLOSED] else int(words[at.SEEN_READ_POS])), 0, 0
        words[at.FIRST_RECORD + ((index & self._mask) >> 3)] = number << at.NUMBER_SHIFT
        words[at.WRITE_POS] = write_pos  # R1 publish
        return DONE, done, words[at.CONSUMERS_SLEEPING]  # P5 look

    def _write_run(
        self,
        records: Sequence[bytes | memoryview],
        lengths: list[int],
        done: int,
        most: int,
        index: int,
        number: int,
    ) -> int:
        """Write records of one length side by side, ``most`` at most; return how many.

        A join places their bytes and one strided store their headers, which costs far
        less than a loop over them.
        """
        length = lengths[done]
        most = min(most, len(lengths) - done, at.NUMBER_MASK + 1 - number)
        count = _leading(lengths[done : done + most], length)
        size = length + 15 & -8
        data = bytes(size - length).join(records[done : done + count])
        if len(data) != count * size - (size - length):
            raise ValueError("record is no view of single bytes; pass memoryview(...).cast('B')")
        begin = at.RECORDS + 8 + index
        self._memory[begin : begin + len(data)] = data
        first = at.FIRST_RECORD + (index >> 3)
        headers = _headers(number, length, count)
        self._words[first : first + count * (size >> 3) : size >> 3] = headers
        return count

    def get_many(self, most: int, deadline: Deadline) -> list[bytes | Cell] | int:
        """Take the oldest records, ``most`` at most, in one commit.

        Returns:
            What ``get`` would return for each, or for the first if there is none.
        """
        taken, outcome, sleepers = self._inside(self._consumers_section, deadline, self._take, most)
        if sleepers:
            self.wake_producers(sleepers, taken)  # P6 post, W3 call
        return taken or outcome

    def _take(self, most: int) -> tuple[list[bytes | Cell], int, int]:
        """Take records, inside: them, the outcome if there are none, and who sleeps."""
        words, run = self._words, _FIRST_RUN
        taken: list[bytes | Cell] = []
        begin, seen = words[at.READ_POS], words[at.SEEN_WRITE_POS]
        read_pos, outcome = begin, seen
        while read_pos != seen and len(taken) < most:
            index, header, after = self._next_record(read_pos, seen)
            if header == -1:
                read_pos = after
            elif header & at.KIND_BITS:
                owner = self._place.known()
                if not owner:
                    outcome = NO_SLOT
                    # A lease that was finished on the way has moved it on already.
                    read_pos = max(read_pos, words[at.READ_POS])
                    break
                taken.append(self._retag(index, header, owner, Kind.RECORD, 0))
                read_pos = after
            else:
                before = len(taken)
                count = self._read_run(index, header, seen - after, min(most - before, run), taken)
                run = 2 * run if count == run else _FIRST_RUN
                read_pos = after + (count - 1) * ((header & at.LENGTH_MASK) + 15 & -8)
        if read_pos == begin:
            return taken, int(outcome), 0
        words[at.READ_POS] = read_pos  # R2 consume
        return taken, int(outcome), words[at.PRODUCERS_SLEEPING]  # P5 look

    def _read_run(
        self, index: int, header: int, left: int, most: int, taken: list[bytes | Cell]
    ) -> int:
        """Add to ``taken`` records of one length that lie side by side; return how many."""
        length, number = header & at.LENGTH_MASK, header >> at.NUMBER_SHIFT
        size = length + 15 & -8
        most = min(most, (self.capacity - index) // size, left // size + 1)
        most = min(most, at.NUMBER_MASK + 1 - number)
        first = at.FIRST_RECORD + (index >> 3)
        headers = self._words[first : first + most * (size >> 3) : size >> 3].tolist()
        expected = _headers(number, length, most).tolist()
        count = most if headers == expected else _common(headers, expected)
        begin = at.RECORDS + at.HEADER + index
        data = bytes(self._memory[begin : begin + count * size - at.HEADER])
        taken += [data[offset : offset + length] for offset in range(0, count * size, size)]
        return count


def _headers(number: int, length: int, count: int) -> array[int]:
    """Return the headers of ``count`` records of one length, numbered from ``number``."""
    first = number << at.NUMBER_SHIFT | length
    return array("Q", range(first, first + (count << at.NUMBER_SHIFT), 1 << at.NUMBER_SHIFT))


def _leading(lengths: list[int], length: int) -> int:
    """Count how many of the lengths, from the first on, are ``length``."""
    if lengths.count(length) == len(lengths):
        return len(lengths)
    return next(number for number, other in enumerate(lengths) if other != length)


def _common(headers: list[int], expected: list[int]) -> int:
    """Count how many headers, from the first on, are as expected."""
    pairs = enumerate(zip(headers, expected, strict=True))
    return next(number for number, (header, other) in pairs if header != other)
