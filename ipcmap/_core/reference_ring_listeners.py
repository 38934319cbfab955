"""Who listens to a ring: for its records, and for its room.

What a listener is, and its sync points, are in reference_listeners.

    for      waited for in             mark and words                     called by
    records  the producers' section    CONSUMERS_SLEEPING, LISTENERS,     who puts, or closes, or
                                       CALLS                              returns a lease
    room     the consumers' section    PRODUCERS_SLEEPING,                who takes, or closes
                                       ROOM_LISTENERS, ROOM_CALLS

The mark is the upper half of the word of the sleepers, which each put and each take read in
the section in which they commit. So they cost nothing while nobody listens.
"""

from __future__ import annotations

from ipcmap._core.reference_listeners import Bell, Known, Listeners
from ipcmap._core.reference_ring_batches import RingBatches
from ipcmap._core.ring_layout import (
    CALLS,
    CLOSED,
    CONSUMERS_SLEEPING,
    ENDED,
    LISTENERS,
    PRODUCERS_SLEEPING,
    READ_POS,
    RETURNED,
    ROOM_CALLS,
    ROOM_LISTENERS,
    WRITE_POS,
)
from ipcmap._deadline import Deadline

__all__ = ["RingListeners"]

_FOR_EVER = Deadline(None)
_RECORDS = Bell(CONSUMERS_SLEEPING, LISTENERS, CALLS)
_ROOM = Bell(PRODUCERS_SLEEPING, ROOM_LISTENERS, ROOM_CALLS)


def _unknown(_: Deadline) -> int:
    """Return what no attempt goes by: whoever has just begun to listen for room looks again."""
    return -1


class RingListeners(RingBatches):
    """A ring that tells others of its records, and of its room, by their descriptors."""

    _known_for_records: Known = (-1, ())
    _known_for_room: Known = (-1, ())

    def for_records(self) -> Listeners:
        """Return those who listen for records."""
        return Listeners(
            self, _RECORDS, self._producers_section, self._has_records, self.consumed, self._inside,
            self._are_there,
        )  # fmt: skip

    def for_room(self) -> Listeners:
        """Return those who listen for room."""
        return Listeners(
            self, _ROOM, self._consumers_section, self._has_room, _unknown, self._inside
        )

    def _has_records(self, seen: int) -> bool:
        words = self._words
        return bool(words[WRITE_POS] != seen or words[CLOSED] or words[RETURNED])

    def _are_there(self) -> bool:
        words = self._words
        some = self._number_at(READ_POS) != self._number_at(WRITE_POS)
        return bool(some or words[CLOSED] or words[RETURNED])

    def _has_room(self, seen: int) -> bool:
        words = self._words
        return bool(words[READ_POS] != seen or words[ENDED])

    def consumed(self, deadline: Deadline = _FOR_EVER) -> int:
        """Return up to where all was taken."""
        section = self._consumers_section
        return int(self._inside(section, deadline, self._words.__getitem__, READ_POS))

    def call_listeners(self) -> None:
        """Call those who listen for records."""
        self._known_for_records = self.for_records().call(self._known_for_records)

    def call_room_listeners(self) -> None:
        """Call those who listen for room."""
        self._known_for_room = self.for_room().call(self._known_for_room)
