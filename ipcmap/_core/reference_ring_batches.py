"""Many records at once through the reference engine's ring: one section and one commit for all.

The batch half of reference_ring, whose header names the fields and sync points. If a
producer dies before R1, none of the batch existed; a consumer that dies after R2 takes
its whole batch with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ipcmap._core import reference_parking as parking
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring import PADDING_KIND, RingCore
from ipcmap._core.reference_ring_waiting import CLOSED, DONE, LARGEST, Damaged
from ipcmap._core.reference_sections import inside
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
        outcome, done, sleepers = inside(
            self._producers_section, deadline, self._append, batch, list(map(len, batch))
        )
        if sleepers:
            parking.wake(self._consumers_parking)  # P6 post
        return outcome, begin + done

    def _append(
        self, batch: Sequence[bytes | memoryview], lengths: list[int]
    ) -> tuple[int, int, int]:
        """Append what there is room for, inside: the outcome, how many, and who sleeps."""
        words, done, run = self._words, 0, _FIRST_RUN
        if words[at.CLOSED]:
            return CLOSED, 0, 0
        write_pos, puts = words[at.WRITE_POS], words[at.PUTS]
        if words[at.NEXT_PUTS] != puts:
            puts = self._settle(at.PUTS, at.NEXT_PUTS, at.WRITE_POS, at.NEXT_WRITE_POS)
        seen = words[at.SEEN_READ_POS]
        if (
            not 0 <= write_pos - seen <= self.capacity
            or write_pos & 7
            or (write_pos | puts) > LARGEST
        ):
            raise Damaged(f"write_pos={write_pos}, seen_read_pos={seen}, puts={puts}")
        full = seen + self.capacity
        while done < len(batch):
            size = 8 + (lengths[done] + 7 & ~7)
            index = write_pos & self._mask
            to_end = self.capacity - index
            if size > to_end:
                if write_pos + to_end + size > full:
                    break
                number = (puts & at.NUMBER_MASK) << at.NUMBER_SHIFT
                words[at.FIRST_RECORD + (index >> 3)] = number | PADDING_KIND | to_end - 8
                write_pos += to_end
                continue
            most = min(to_end, full - write_pos) // size
            if most < 1:
                break
            count = self._write_run(batch, lengths, done, min(most, run), index, puts)
            run = 2 * run if count == run else _FIRST_RUN
            write_pos += count * size
            puts += count
            done += count
        if not done:
            return int(seen), 0, 0
        words[at.NEXT_WRITE_POS] = write_pos
        words[at.NEXT_PUTS] = puts
        words[at.WRITE_POS] = write_pos  # R1 publish
        words[at.PUTS] = puts
        return DONE, done, words[at.CONSUMERS_SLEEPING]  # P5 look

    def _write_run(
        self,
        records: Sequence[bytes | memoryview],
        lengths: list[int],
        done: int,
        most: int,
        index: int,
        puts: int,
    ) -> int:
        """Write records of one length side by side, ``most`` at most; return how many.

        A join places their bytes and one strided store their headers, which costs far
        less than a loop over them.
        """
        length = lengths[done]
        number = puts & at.NUMBER_MASK
        most = min(most, len(lengths) - done, at.NUMBER_MASK + 1 - number)
        count = _leading(lengths[done : done + most], length)
        size = 8 + (length + 7 & ~7)
        data = bytes(size - length).join(records[done : done + count])
        if len(data) != count * size - (size - length):
            raise ValueError("record is no view of single bytes; pass memoryview(...).cast('B')")
        begin = at.RECORDS + 8 + index
        self._memory[begin : begin + len(data)] = data
        first = at.FIRST_RECORD + (index >> 3)
        headers = _headers(number, length, count)
        self._words[first : first + count * (size >> 3) : size >> 3] = headers
        return count

    def get_many(self, most: int, deadline: Deadline) -> list[bytes] | int:
        """Take the oldest records, ``most`` at most, in one commit.

        Returns:
            The records, or what ``get`` returns where there is none.
        """
        taken, seen, left_behind, sleepers = inside(
            self._consumers_section, deadline, self._take, most
        )
        if not taken:
            return seen
        if sleepers:
            parking.wake(self._producers_parking)  # P6 post
        if (left_behind or self._words[at.CLOSED]) and self._words[at.CONSUMERS_SLEEPING]:
            parking.wake(self._consumers_parking)  # what is left, or the end, is for the next
        return taken

    def _take(self, most: int) -> tuple[list[bytes], int, bool, int]:
        """Take records, inside: them, what was seen, whether any are left, and who sleeps."""
        words, run = self._words, _FIRST_RUN
        taken: list[bytes] = []
        read_pos, gets, seen = words[at.READ_POS], words[at.GETS], words[at.SEEN_WRITE_POS]
        if words[at.NEXT_GETS] != gets:
            gets = self._settle(at.GETS, at.NEXT_GETS, at.READ_POS, at.NEXT_READ_POS)
        if read_pos == seen:
            return taken, int(seen), False, 0
        while read_pos != seen and len(taken) < most:
            known = len(taken)
            read_pos = self._read_run(read_pos, seen, gets, min(most, known + run), taken)
            run = 2 * run if len(taken) == known + run else _FIRST_RUN
        words[at.NEXT_READ_POS] = read_pos
        words[at.NEXT_GETS] = gets = gets + len(taken)
        words[at.READ_POS] = read_pos  # R2 consume
        words[at.GETS] = gets
        return taken, int(seen), read_pos != seen, words[at.PRODUCERS_SLEEPING]  # P5 look

    def _read_run(self, read_pos: int, seen: int, gets: int, most: int, taken: list[bytes]) -> int:
        """Add to ``taken`` records of one length that lie side by side; return where they end."""
        gets += len(taken)
        begin, length, after = self._record(read_pos, seen, gets)
        size = 8 + (length + 7 & ~7)
        index, number = begin - 8 - at.RECORDS, gets & at.NUMBER_MASK
        to_end = self.capacity - index
        most = min(most - len(taken), to_end // size, (seen - after) // size + 1)
        most = min(most, at.NUMBER_MASK + 1 - number)
        first = at.FIRST_RECORD + (index >> 3)
        headers = self._words[first : first + most * (size >> 3) : size >> 3].tolist()
        expected = _headers(number, length, most).tolist()
        count = most if headers == expected else _common(headers, expected)
        data = bytes(self._memory[begin : begin + count * size - 8])
        taken += [data[offset : offset + length] for offset in range(0, count * size, size)]
        return after + (count - 1) * size


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
