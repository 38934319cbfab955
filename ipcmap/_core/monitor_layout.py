"""Where everything stands in a lock and in a semaphore: the one place that computes an offset.

    bytes 0 +---------------------------------------------+
            | section: guards all that follows            |
         64 | parking place of those who wait; behind     |
            | its sleepers, 2 words of those who listen   |
        128 | lock: 5 words       semaphore: 10 words     |
            +---------------------------------------------+
        256 | semaphore alone: ledger, 2 words an entry   |
            +---------------------------------------------+

A word is 8 bytes and is given by its item number in ``memoryview.cast("Q")``; the
section and the parking place by their offset in bytes.
"""

from __future__ import annotations

from ipcmap._core.reference_parking import SLEEPERS as _SLEEPERS

__all__ = ["semaphore_nbytes"]

WORD = 8  # bytes

SECTION = 0  # bytes
PARKING = 64  # bytes
SLEEPERS = (PARKING + _SLEEPERS) // WORD  # their count, and above it the mark of those who listen
LISTENERS, CALLS = SLEEPERS + 1, SLEEPERS + 2  # of those who listen

# A lock
HOLDER = 128 // WORD  # who has it (slot_layout: HOLDER_BITS), 0 = nobody
THREAD = 136 // WORD  # which of its threads: a hint for onlookers
COUNT = 144 // WORD  # how often its thread has taken it; an RLock's alone
RECOVERED = 152 // WORD  # 1 = taken over from one who was killed, and not released since
SINCE = 160 // WORD  # when it was taken: monotonic clock, nanoseconds; a hint
LOCK_NBYTES = 168
KEPT = 1 << 63  # in HOLDER: its process has ended by itself, and it stays taken

# A semaphore
INITIAL = 128 // WORD  # first value
ENTRIES = 136 // WORD  # length of the ledger
VALUE = 144 // WORD
TRAVELS = 152 // WORD  # 1 = tokens are released by others than took them; the ledger is void
RETURNED = 160 // WORD  # tokens of the dead that came back, and that nobody released for them
LEFT = 168 // WORD  # tokens that went with processes that ended by themselves
JOURNAL = 176 // WORD  # 0 = none, 1 = value is to be added up, 2 + n = entry n is to be struck out
NEXT_RETURNED = 184 // WORD  # what the journal is about to make of RETURNED ...
NEXT_LEFT = 192 // WORD  # ... and of LEFT
MAXIMUM = 200 // WORD  # value never exceeds it
FIRST_ENTRY = 256 // WORD
ENTRY = 2  # words: who, and how many tokens; 0 of them = the entry is free

MAX_VALUE = (1 << 31) - 1  # as sem_t's


def semaphore_nbytes(entries: int) -> int:
    """Return how long a semaphore is, in bytes."""
    return (FIRST_ENTRY + ENTRY * entries) * WORD
