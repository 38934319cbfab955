"""What a queue asks of its ring besides records: a bound on their number, and which are unfinished.

Nothing is counted that a kill could leave wrong: both answers come from the numbers in
the headers at the two positions, and from the tags of blocks.

A bound is kept by the producers, in their section, against a number of gets that was
read just before in the consumers' section. It only grows, so there are never more
records than the bound; and who found none free waits for read_pos to move from where
it was then, so no room is missed.

A record is unfinished while it is in the ring, LEASED or RETURNED. It comes out of the
ring, and comes back, in the consumers' section alone; so what is counted there, and the
puts after that, is never too low.

Shared field: joiners, how many wait until none is unfinished, or more; in the consumers'
section. Sync point T1 await: the joiner is counted before it counts records; who ends a
lease looks for joiners after that (B3), so one of the two sees the other. A joiner that
dies stays counted, which costs a look at each end of a lease.
"""

from __future__ import annotations

from ipcmap._core import ring_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_producers import RingProducers
from ipcmap._core.reference_ring_waiting import LARGEST
from ipcmap._deadline import Deadline

__all__ = ["RingTally"]


class RingTally(RingProducers):
    """A ring that can bound its records, and count those that nobody has done with."""

    def put_within(
        self, most: int, record: bytes | memoryview | Cell, deadline: Deadline
    ) -> tuple[int, bool]:
        """Append a record, or the one in a block, if there are fewer than ``most``.

        Returns:
            DONE, CLOSED, or the read_pos beyond which to wait, as ``put`` does; and
            whether it was the bound, so that there is nothing else to wait for.
        """
        gets, read_pos = self._inside(self._consumers_section, deadline, self._gets)
        outcome, sleepers, bound = self._inside(
            self._producers_section, deadline, self._append_within, most, record, gets, read_pos
        )
        self.wake_consumers(sleepers)
        return outcome, bound

    def _gets(self) -> tuple[int, int]:
        return self._number_at(at.READ_POS), self._words[at.READ_POS]

    def _append_within(
        self, most: int, record: bytes | memoryview | Cell, gets: int, read_pos: int
    ) -> tuple[int, int, bool]:
        backlog = self._number_at(at.WRITE_POS) - gets & at.NUMBER_MASK
        if backlog >= most and not self._words[at.CLOSED]:
            return read_pos, 0, True
        if isinstance(record, Cell):
            return *self._append_block(record), False
        outcome, _, sleepers = self._append([record], [len(record)])
        return outcome, sleepers, False

    def unfinished(self, deadline: Deadline, arriving: int = 0) -> int:
        """Count the records that were put, and that no lease of has ended yet.

        Args:
            deadline: When to stop waiting for a section.
            arriving: 1 = be a joiner from here on, -1 = be none any more.
        """
        gets, out = self._inside(self._consumers_section, deadline, self._taken_out, arriving)
        puts = self._inside(self._producers_section, deadline, self._puts)
        return min((puts - gets & at.NUMBER_MASK) + out, LARGEST)

    def empty_until(self, deadline: Deadline) -> int:
        """Return the write_pos up to which there is no record, or a lower one if there are some."""
        gets, read_pos = self._inside(self._consumers_section, deadline, self._gets)
        number, write_pos = self._inside(self._producers_section, deadline, self._next)
        return write_pos if number == gets else read_pos

    def _next(self) -> tuple[int, int]:
        return self._number_at(at.WRITE_POS), self._words[at.WRITE_POS]

    def backlog_records(self) -> int:
        """Return how many records are in it, at a glance: no section is waited for."""
        gets = self._number_at(at.READ_POS)
        return self._number_at(at.WRITE_POS) - gets & at.NUMBER_MASK

    def are_awaited(self) -> bool:
        """Return whether anyone may wait until there is no unfinished record."""
        return bool(self._words[at.JOINERS])

    def _taken_out(self, arriving: int) -> tuple[int, int]:
        self._words[at.JOINERS] = min(
            max(0, self._words[at.JOINERS] + arriving), LARGEST
        )  # T1 await
        allocator = self._place.allocator
        out = sum(
            self.is_ours(cell)
            for kind in (Kind.LEASED, Kind.RETURNED)
            for cell in allocator.of_kind(kind)
        )
        return self._number_at(at.READ_POS), out
