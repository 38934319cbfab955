"""Where everything stands in an arena: the one place that computes an offset.

    bytes 0 +----------------------------------------------------+
            | header: 9 words, written once, by the creator      |
        128 | section of the allocator                           |
        192 | section of the slot table                          |
        256 | the allocator's journal, its bytes in use, when    |
            | the family was last swept, bytes of warm cells     |
        320 | class table: a line of 64 bytes for each class     |
            +----------------------------------------------------+ page
            | slot table and log of deaths (slot_layout.py)      |
            +----------------------------------------------------+ page
            | tags: a word for each cell, class after class      |
            | lengths: a word for each cell, class after class   |
            +----------------------------------------------------+ page
            | cells of class 0: 64 bytes each                    |
            | cells of class 1: 128 bytes each                   |
            | ...                                                |
   reserved +----------------------------------------------------+

A word is 8 bytes, in the machine's order. Python reads and writes one only as an
item of ``memoryview.cast("Q")``, which is never torn; so places of words are
given here as item numbers, and all others as offsets in bytes.

Each class has addresses of its own, so that no cell is ever moved, split or
joined. All classes up to a unit have a unit of addresses each. The four above,
of 2, 4, 8 and 16 units, have one cell each. The unit is the largest power of two
with which everything fits: 1/64 of a reserve that is a power of two, up to 16 TiB.

A tag, from its lowest bit on:

    20 bits  owner's slot number, 1 and up; 0 in a used cell = the whole family
     1 bit   used
     1 bit   retired: used, but no block: its memory is being given back
     1 bit   warm: free, and its memory was kept for the next block
     1 bit   zero
     8 bits  kind of object in the block
    32 bits  generation: grows with each use and survives free; a used cell has no 0
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from typing import NamedTuple

from ipcmap._core import slot_layout

__all__ = [
    "ALLOCATOR_SECTION",
    "BYTES_IN_USE",
    "ENGINES",
    "GENERATIONS",
    "GENERATION_SHIFT",
    "IDENTITY",
    "JOURNAL",
    "KINDS",
    "KIND_SHIFT",
    "MAGIC",
    "MAX_PROCESSES",
    "MIN_RESERVE",
    "OWNER",
    "RETIRED",
    "SLOTS_SECTION",
    "SMALLEST_CELL",
    "STATE",
    "SWEPT_AT",
    "USED",
    "VERSION",
    "WARM",
    "WARM_BYTES",
    "WORD",
    "HeaderWord",
    "Kind",
    "Layout",
    "SizeClass",
]

WORD = 8  # bytes
LINE = 64  # bytes: a cache line

MAGIC = int.from_bytes(b"ipcmap\0A", "little")
VERSION = 1
ENGINES = {"reference": 1, "native": 2}  # by the number in the header


class HeaderWord:
    """The words of the header."""

    MAGIC, VERSION, ENGINE, ARENA_ID, RESERVED, LIMIT, MAX_PROCESSES, PID_NAMESPACE, CREATOR = (
        range(9)
    )


class Kind:
    """What a block is for: the kinds in its tag, 0 to 255."""

    BYTES = 0  # the caller's own
    RECORD, LEASED, RETURNED = 1, 2, 3  # a record on its way through a ring
    PRODUCER, LEAVING = 4, 5  # a producer's word that it is attached to a ring
    LISTENER = 6  # where a process wants to be told of records in a ring
    RING, LOCK, SEMAPHORE, RLOCK = 16, 17, 18, 19
    CONDITION, EVENT, BARRIER, RWLOCK = 20, 21, 22, 23
    VALUE, COUNTER, CONNECTION = 24, 25, 26


ALLOCATOR_SECTION = 128  # bytes
SLOTS_SECTION = 192  # bytes
JOURNAL = 256 // WORD
BYTES_IN_USE = 264 // WORD
SWEPT_AT = 272 // WORD  # monotonic clock, nanoseconds; a hint
WARM_BYTES = 280 // WORD
_CLASS_TABLE = 320  # bytes

MAX_PROCESSES = 1 << 16  # the most that an arena can have
SMALLEST_CELL = 64  # bytes: a cache line, so that no two blocks share one
MIN_RESERVE = 64 << 20  # bytes

OWNER = (1 << 20) - 1
IDENTITY = ~OWNER  # all of a tag but whose block it is
USED, RETIRED, WARM, _ZERO = 1 << 20, 1 << 21, 1 << 22, 1 << 23
KIND_SHIFT, KINDS = 24, 1 << 8
GENERATION_SHIFT, GENERATIONS = 32, 1 << 32
STATE = (1 << GENERATION_SHIFT) - 1 & ~WARM  # of a tag; 0 = free, be it warm or cold

_SINGLES = 4  # classes above the unit


class SizeClass(NamedTuple):
    """Cells of one length, and where their bookkeeping stands."""

    number: int
    cell_nbytes: int
    capacity: int  # cells
    high_water: int  # word: no cell from this one on has ever been used
    cursor: int  # word: where to look for a free cell next
    used: int  # word: cells in use
    used_nbytes: int  # word: bytes in use
    warm: int  # word: cells that are warm, or retired and so not yet cold
    tags: int  # word: the first cell's
    lengths: int  # word: the first cell's
    first_cell: int  # offset in bytes

    def offset(self, index: int) -> int:
        """Return the offset of a cell."""
        return self.first_cell + index * self.cell_nbytes


class Layout:
    """The places of everything in an arena of this many bytes and processes.

    Raises:
        ValueError: So many bytes cannot hold the tables of so many processes.
    """

    def __init__(self, reserved: int, max_processes: int) -> None:
        self.reserved = reserved
        self.max_processes = max_processes
        self.slot_table = _page_end(_CLASS_TABLE)
        unit = 1 << reserved.bit_length() >> 5
        while unit >= mmap.PAGESIZE:
            self.classes, end = self._place(unit)
            if end <= reserved:
                break
            unit >>= 1
        else:
            raise ValueError(
                f"reserve is too small for the tables: reserve={reserved} bytes, "
                f"max_processes={max_processes}; reserve more"
            )
        self._starts = [size_class.first_cell for size_class in self.classes]

    def _place(self, unit: int) -> tuple[tuple[SizeClass, ...], int]:
        smallest, largest = SMALLEST_CELL.bit_length(), (unit << _SINGLES).bit_length()
        sizes = [1 << bits - 1 for bits in range(smallest, largest + 1)]
        counts = [max(1, unit // nbytes) for nbytes in sizes]
        tags = self.slot_table + slot_layout.nbytes(self.max_processes)
        classes = []
        lengths = _page_end(tags) + sum(_page_end(count * WORD) for count in counts)
        cells = lengths + lengths - _page_end(tags)
        for number, (cell_nbytes, count) in enumerate(zip(sizes, counts, strict=True)):
            tags = _page_end(tags)
            line = (_CLASS_TABLE + number * LINE) // WORD
            classes.append(
                SizeClass(
                    number,
                    cell_nbytes,
                    count,
                    line,
                    line + 1,
                    line + 2,
                    line + 3,
                    line + 4,
                    tags // WORD,
                    lengths // WORD,
                    cells,
                )
            )
            tags += count * WORD
            lengths += _page_end(count * WORD)
            cells += count * cell_nbytes
            cells = _page_end(cells)
        return tuple(classes), cells

    def class_number(self, nbytes: int) -> int:
        """Return the number of the first class whose cells hold so much; there may be none."""
        return (max(nbytes, SMALLEST_CELL) - 1).bit_length() - (SMALLEST_CELL - 1).bit_length()

    def is_damaged(self, tag: int) -> bool:
        """Return whether no allocator would store such a tag."""
        owned = tag & USED and not tag & (WARM | _ZERO) and tag >> GENERATION_SHIFT
        return bool(tag & STATE) and not (owned and tag & OWNER <= self.max_processes)

    def locate(self, offset: int) -> tuple[SizeClass, int] | None:
        """Return class and number of the cell that begins at ``offset``, if one does."""
        found = bisect_right(self._starts, offset) - 1
        if found < 0:
            return None
        size_class = self.classes[found]
        index, inside = divmod(offset - size_class.first_cell, size_class.cell_nbytes)
        return None if inside or index >= size_class.capacity else (size_class, index)


def _page_end(offset: int) -> int:
    return -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
