"""What a sweep does with the blocks of the dead that have to do with a ring.

The allocator asks of each block of a dead slot whether to keep it. Those that are in a
ring are; a record whose lease was open goes back; a producer's word is taken back.
"""

from __future__ import annotations

from collections.abc import Callable

from ipcmap._core.layout import Kind
from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_listeners import Place
from ipcmap._core.reference_ring_producers import PRODUCERS, RingProducers
from ipcmap._core.reference_ring_waiting import Damaged
from ipcmap._core.reference_sections import Reentered
from ipcmap._core.ring_layout import B_RING, B_RING_GENERATION, BLOCK_HEADER
from ipcmap._deadline import Deadline
from ipcmap.errors import BusyError, CorruptError, StaleHandle

__all__ = ["keeps"]

_NOW = Deadline(0)  # who is stopped in a ring's section must not hold up all burials
_RECORDS = (Kind.RECORD, Kind.LEASED)


def keeps(
    memory: memoryview,
    address: int,
    allocator: Allocator,
    known: Callable[[], int],
    slot: int,
    dead: Callable[[], bool],
) -> Callable[[Cell], bool]:
    """Return what decides whether a block of a dead slot stays as it is.

    It raises Stalled where somebody is stopped in a section of the ring: the burial is then
    for a later sweep.

    Args:
        memory: The arena.
        address: Where it begins.
        allocator: Its allocator.
        known: The sweeper's own slot, 0 = none.
        slot: That of the dead.
        dead: Whether it still is theirs.
    """

    def keep(cell: Cell) -> bool:
        if cell.kind not in _RECORDS + PRODUCERS or cell.nbytes < BLOCK_HEADER:
            return False
        block = memory[cell.offset : cell.offset + BLOCK_HEADER].cast("Q")
        try:
            ring_cell = allocator.find(block[B_RING], block[B_RING_GENERATION], Kind.RING)
            place = Place(memory, allocator, known, known, ring_cell)
            ring = RingProducers(place, address + ring_cell.offset)
            if not ring.is_ours(cell) or allocator.tag(ring_cell)[0] == slot:
                return False  # a ring of the dead one's own goes with it
            if cell.kind in _RECORDS:
                return ring.keeps(cell, slot, dead, _NOW)
            ring.leave(cell, slot, dead, _NOW)
        except (StaleHandle, CorruptError, Damaged):
            return False  # nothing that could be asked: no such ring
        except Reentered:
            raise BusyError(
                "a signal handler cannot sweep while it interrupts a change of a ring; "
                "return from the handler first"
            ) from None
        return False

    return keep
