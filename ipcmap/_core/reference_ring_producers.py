"""Producers that are attached to a ring, which ends when the last of them has left or died.

Each is a small block of its process: the sweep of a dead one finds it there.

    PRODUCER   attached
    LEAVING    about to leave: no longer counted, not yet gone

Sync points, in the producers' section
  N1 attach  producer: its block is a PRODUCER; then it looks whether the ring is closed
             who leaves: counts the PRODUCERs that are left
  N2 leave   producer, sweep: its block is LEAVING, then it counts; where none is left the
             ring is closed (E1), in the same section, so that nobody attaches in between;
             then the block is freed

If a process dies before N2, the sweep of its slot leaves in its place; between N2 and the
end, the sweep finds it LEAVING and counts once more. Two who leave at a time do it one
after the other, so that the second finds none. An attach that is broken off leaves again.
"""

from __future__ import annotations

from collections.abc import Callable

from ipcmap._core.layout import Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_listeners import RingListeners
from ipcmap._core.ring_layout import BLOCK_HEADER, CLOSED
from ipcmap._deadline import Deadline

__all__ = ["PRODUCERS", "RingProducers"]

PRODUCERS = (Kind.PRODUCER, Kind.LEAVING)


class RingProducers(RingListeners):
    """A ring that knows who promised to put something into it."""

    def attach(self, deadline: Deadline) -> Cell | None:
        """Be one of its producers, until ``leave``; ``None`` where it is closed."""
        allocator = self._place.allocator
        cell = allocator.allocate(BLOCK_HEADER)
        try:
            self.address_block(cell, 0, 0, 0)
            attached = allocator.retag(cell, self._place.slot(), Kind.PRODUCER)  # N1 attach
            if self._inside(self._producers_section, deadline, lambda: self._words[CLOSED]):
                allocator.free(attached)
                return None
            return attached
        except BaseException:
            if allocator.tag(cell)[1] == Kind.BYTES:
                allocator.free(cell)
            else:
                self.detach(cell, deadline)
            raise

    def leave(self, cell: Cell, owner: int, dead: Callable[[], bool], deadline: Deadline) -> None:
        """Be none any more, for oneself or for one who died; the block is then to be freed.

        Args:
            cell: The block of the one who leaves.
            owner: The slot in its tag, as it was seen.
            dead: Whether the slot is still that of the dead.
            deadline: When to stop waiting for the section.
        """
        if self._inside(self._producers_section, deadline, self._leave_last, cell, owner, dead):
            self.close(deadline)

    def _leave_last(self, cell: Cell, owner: int, dead: Callable[[], bool]) -> bool:
        allocator = self._place.allocator
        now, kind = allocator.tag(cell)
        if now != owner or kind not in PRODUCERS or not dead():
            return False
        # Once it is LEAVING, a faster sweep may free it at any moment, section or not:
        # a second store could bring a freed block back to life.
        if kind == Kind.PRODUCER:
            allocator.pass_on(cell, owner, Kind.LEAVING)  # N2 leave
        last = not any(self.is_ours(other) for other in allocator.of_kind(Kind.PRODUCER))
        if last:
            self._close()
        return last

    def detach(self, cell: Cell, deadline: Deadline) -> None:
        """Be no producer any more, with the block that ``attach`` returned; twice is once."""
        self.leave(cell, self._place.slot(), lambda: True, deadline)
        self.forget(cell)

    def forget(self, cell: Cell) -> None:
        """Free the block of a producer that has left, or whose ring is gone."""
        owner, kind = self._place.allocator.tag(cell)
        if owner == self._place.slot() and kind in PRODUCERS:
            self._place.allocator.free(cell._replace(kind=kind))
