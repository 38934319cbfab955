"""The event of the reference engine: a flag, and those who wait for it.

Shared fields (places: room_layout.py; the others: reference_rooms.py)
  flag    1 = set    written by setter, clearer    one store, and no section
  mark, listeners, calls    reference_listeners, in the section

Sync points, besides those of reference_rooms
  E1 set    one store of 1, before the setter enters the section
            who waits: reads it in the section as it comes, and at the end of each slice

No section so that a signal handler can set what it interrupted, which is what
events are used for. Whoever waits then finds the flag: the interrupted thread as it
looks before its sleep, the others by the posts. R3 lets go who was there though the
flag is cleared at once.

Who listens (reference_listeners) is called as those who wait are woken. Where none is armed,
the set counts as a call all the same: who came, and has armed nothing yet or could not, is told
of it by the count, though the flag is clear again. A handler that sets an event whose section
it interrupted calls nobody: the timers of those who listen find the flag.

If a process dies after E1, before R3, who waits finds the flag a slice late at most;
if it is cleared before, never. A dead member concerns nobody: its cell is freed when
there is no other.
"""

from __future__ import annotations

from ipcmap._core import room_layout as at
from ipcmap._core.reference_listeners import Bell, Known, Listeners, Place
from ipcmap._core.reference_monitor import Damaged
from ipcmap._core.reference_rooms import FULL, THROUGH, Member, Note, Room
from ipcmap._core.reference_sections import Reentered, inside
from ipcmap._core.ring_layout import WORD_MASK
from ipcmap._deadline import Deadline

__all__ = ["EventCore"]

_FOREVER = Deadline(None)
_BELL = Bell(at.MARK, at.LISTENERS, at.CALLS)


class EventCore(Room):
    """A flag and its waiters, as one process has them."""

    _place: Place  # given by the handle
    _known: Known = (-1, ())

    def is_set(self) -> bool:
        """Return the flag; stale as soon as it is read."""
        flag = self._words[at.FLAG]  # E1 set
        if flag > 1:
            raise Damaged(f"flag={flag}")
        return bool(flag)

    def set(self) -> None:
        """Set the flag, and let all who wait go on."""
        self._words[at.FLAG] = 1  # E1 set
        try:
            cells, mark = inside(self._section, _FOREVER, self._let_go)
        except Reentered:
            cells, mark = [member.cell for member in self._members()], 0
        self._wake(cells)
        if mark:
            self._known = self.listeners().call(self._known)

    def _let_go(self) -> tuple[list[int], int]:
        words = self._words
        mark: int = words[at.MARK]  # P5 look
        if not mark:
            words[at.CALLS] = words[at.CALLS] + 1 & WORD_MASK
        return self._pass_all(), mark

    def listeners(self) -> Listeners:
        """Return those who listen."""
        return Listeners(self, _BELL, self._section, self._is_set_now)

    def _is_set_now(self, _: int) -> bool:
        return self.is_set()

    def clear(self) -> None:
        """Clear the flag."""
        self._words[at.FLAG] = 0

    def come(self, me: int, note: Note) -> int:
        """Go on at once or be one who waits, in the section."""
        if self.is_set():
            return THROUGH
        return 0 if self._come(me, note) else FULL

    def _verdict(self, cell: int) -> int:
        return super()._verdict(cell) or int(self.is_set())

    def _depends_on(self, members: list[Member]) -> list[Member]:
        return []
