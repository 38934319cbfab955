"""Layout of the table of process slots: the one file of its offsets.

All offsets count u64 words. One slot is 256 bytes; slot 0 is the header, so that
slot n begins at n * SLOT and the number 0 means "no slot"::

    0        1        2                max_processes
    +--------+--------+--------+- ... -+--------+---------------------------+
    | header | slot   | slot   |       | slot   | log: LOG_RECORDS records  |
    +--------+--------+--------+- ... -+--------+---------------------------+

Zeroed memory is a table of free slots with an empty log; only the header is
written when a table is made, so that a slot costs no memory before its first use.
"""

from __future__ import annotations

__all__ = ["nbytes"]

WORD = 8  # bytes
SLOT = 32  # words
RECORD = 8  # words
LOG_RECORDS = 1024  # deaths that are remembered; older ones give way
MAX_PID = 1 << 22  # the kernel's own limit
MAX_PROCESSES = MAX_PID
MAX_DEATHS = 1 << 63  # far beyond what any family lives to see

# Header
H_IDENTITY = 0  # random, by which a process is seen to have the table mapped
H_MAX_PROCESSES = 1
H_PID_NAMESPACE = 2  # inode; 0 = /proc did not say
H_TIME_NAMESPACE = 3  # inode; 0 = /proc did not say
H_FIRST_FREE = 4  # no slot below it is free; 0 is as good as 1
H_USED = 5  # no slot above it was ever claimed
H_DEATHS = 6  # how many records the log ever took
H_JOURNAL_SLOT = 7  # slot whose burial is under way, 0 = none
H_JOURNAL_DEATH = 8  # number that its record has in the log

# Slot
LIFE = 0  # generation << 2 | state, one word, so that both change at once
PID = 1
STARTED = 2  # field 22 of /proc/PID/stat, in clock ticks; 0 = unknown
CLAIMED_AT = 3  # wall clock, nanoseconds
WAITS_FOR = 4  # what the object says of itself; hints for whoever looks on
HOLDS = 5
TASK = 6
PUTS = 7
GETS = 8
WAITS = 9
RECOVERIES = 10
CAUSE = 11  # how it died, one of the causes below
STATUS = 12  # exit code or signal, as CAUSE has it
SEEN_AT = 13  # when it was found dead: wall clock, nanoseconds
LEAVING = 14  # generation + 1 of the process that said it ends by itself

NOTES = range(WAITS_FOR, RECOVERIES + 1)  # the process's own to write

# States
FREE, LIVE, DYING = 0, 1, 2
STATE_BITS = 2
STATE_MASK = 3

# Causes of death. LEFT = reaped before anyone looked, but it had said that it ends by itself
UNKNOWN, EXITED, KILLED, EXECED, LEFT = 0, 1, 2, 3, 4

# A process as the holder of something, in one word: generation << HOLDER_BITS | slot
HOLDER_BITS = 22
HOLDER_SLOT = (1 << HOLDER_BITS) - 1
# LIFE stays below: a holder's highest bit is the lock's own (KEPT)
MAX_LIFE = 1 << 63 - HOLDER_BITS + STATE_BITS

# Record of the log
R_NUMBER = 0  # 1 + how many deaths came before
R_PID = 1
R_SLOT = 2
R_GENERATION = 3
R_CAUSE = 4
R_STATUS = 5
R_SEEN_AT = 6


def log_begin(max_processes: int) -> int:
    """Return the word at which the log begins."""
    return (max_processes + 1) * SLOT


def nbytes(max_processes: int) -> int:
    """Return how long a table is, in bytes."""
    return (log_begin(max_processes) + LOG_RECORDS * RECORD) * WORD
