"""The log of deaths in the table of process slots: a ring of records, the newest ones kept.

Layout: slot_layout.py. Records are written and copied in the table's section (see
reference_slots.py, which also counts them: a record beyond the count does not exist,
and writing one over again does no harm). What was copied is checked outside.
"""

from __future__ import annotations

from typing import NamedTuple

from ipcmap._core import slot_layout as at
from ipcmap._core.liveness import Death, valid

__all__ = ["LoggedDeath", "cause_of", "check", "copy", "write"]


class LoggedDeath(NamedTuple):
    """One record, in the order of its words."""

    number: int
    pid: int
    slot: int
    generation: int
    cause: int
    status: int
    seen_at: int


def write(words: memoryview, max_processes: int, record: LoggedDeath) -> None:
    """Put a record where its number belongs, inside the section."""
    begin = at.log_begin(max_processes) + (record.number - 1) % at.LOG_RECORDS * at.RECORD
    words[begin + at.R_PID] = record.pid
    words[begin + at.R_SLOT] = record.slot
    words[begin + at.R_GENERATION] = record.generation
    words[begin + at.R_CAUSE] = record.cause
    words[begin + at.R_STATUS] = record.status
    words[begin + at.R_SEEN_AT] = record.seen_at
    words[begin + at.R_NUMBER] = record.number


def copy(words: memoryview, max_processes: int) -> bytes:
    """Return the whole log, inside the section."""
    begin = at.log_begin(max_processes)
    return words[begin : begin + at.LOG_RECORDS * at.RECORD].tobytes()


def cause_of(copied: bytes, slot: int, generation: int) -> int:
    """Return what one generation of a slot died of; UNKNOWN also where that has given way."""
    log = memoryview(copied).cast("Q")
    for begin in range(0, len(log), at.RECORD):
        if (log[begin + at.R_SLOT], log[begin + at.R_GENERATION]) == (slot, generation):
            return int(log[begin + at.R_CAUSE])
    return at.UNKNOWN


def check(copied: bytes, count: int, max_processes: int) -> tuple[list[LoggedDeath], str]:
    """Return the newest records of ``count``, oldest first, and what is wrong with them, if anything."""
    log = memoryview(copied).cast("Q")
    found = []
    for index in range(max(0, count - at.LOG_RECORDS), count):
        begin = index % at.LOG_RECORDS * at.RECORD
        record = LoggedDeath(*log[begin : begin + len(LoggedDeath._fields)].tolist())
        if not (
            record.number == index + 1
            and 0 < record.pid <= at.MAX_PID
            and 0 < record.slot <= max_processes
            and valid(Death(record.cause, record.status))
        ):
            return [], f"death {index + 1} in the log={tuple(record)}"
        found.append(record)
    return found, ""
