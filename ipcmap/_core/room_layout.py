"""Where everything stands in a room, in which threads wait: the one place that computes an offset.

    bytes 0 +------------------------------------------------+
            | section: guards all that follows               |
         64 | 8 words: how many cells, last ticket, and such |
        128 | the object's own words                         |
        256 | cells: 4 words and a semaphore each            |
            +------------------------------------------------+

A word is 8 bytes and is given by its item number in ``memoryview.cast("Q")``; the
section and the semaphores by their offset in bytes.
"""

from __future__ import annotations

__all__ = ["nbytes"]

WORD = 8  # bytes

SECTION = 0  # bytes
ENTRIES = 64 // WORD  # how many cells there are
USED = 72 // WORD  # how many of them were ever used; the others are no memory yet
LAST = 80 // WORD  # the last ticket
PASSED = 88 // WORD  # tickets up to this one may go on
LOOKED_AT = 96 // WORD  # when one looked for the dead: monotonic clock, nanoseconds; a hint
MARK, LISTENERS, CALLS = 104 // WORD, 112 // WORD, 120 // WORD  # of those who listen

# The object's own
FLAG = 128 // WORD  # an event's: 1 = set
PARTIES, BROKEN, ACTING = 128 // WORD, 136 // WORD, 144 // WORD  # a barrier's
LOCK, LOCK_GENERATION, LOCK_IS_OWN = 128 // WORD, 136 // WORD, 144 // WORD  # a condition's
RECOVERED = 128 // WORD  # an RWLock's: 1 = a writer died with it

FIRST_CELL = 256 // WORD
CELL = 8  # words
WHO = 0  # whose (slot_layout: HOLDER_BITS), 0 = the cell is free
THREAD = 1
TICKET = 2  # since when, in nanoseconds of the monotonic clock; no two have the same one
VERDICT = 3  # what it was told, 0 = nothing yet; what that is, the object says
SEMAPHORE = 32  # bytes from the cell's beginning

MAX_TICKET = 1 << 62  # a century; what exceeds it is no time
MAX_ENTRIES = 1 << 16


def nbytes(entries: int) -> int:
    """Return how long a room of so many cells is, in bytes."""
    return (FIRST_CELL + CELL * entries) * WORD
