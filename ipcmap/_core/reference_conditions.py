"""The condition of the reference engine: who waits is told, the oldest first.

No shared fields but those of reference_rooms. A verdict is the last ticket at the time
of the notify: who came later must not have it. To notify all is R3, to notify some R2.

If a process dies
  asleep                  notify looks before it tells: a dead one is told nothing
  told, before it left    the next who looks tells the oldest of those who were there at
                          that notify, and then R4. A death between the two tells one more
  in a notify of some     those before it in age were told, the others were not
"""

from __future__ import annotations

from ipcmap._core import room_layout as at
from ipcmap._core.reference_rooms import FULL, Member, Note, Room
from ipcmap._core.reference_sections import inside
from ipcmap._deadline import Deadline

__all__ = ["ConditionCore"]

_FOREVER = Deadline(None)


class ConditionCore(Room):
    """The waiters of a condition, as one process has them."""

    def come(self, me: int, note: Note) -> int:
        """Be one who waits, in the section."""
        return 0 if self._come(me, note) else FULL

    def notify(self, number: int) -> None:
        """Tell so many of those who wait and live."""
        me = self._family.known_holder()
        while self.bury_dead(me, inside(self._section, _FOREVER, self._next, number)):
            pass
        self._wake(inside(self._section, _FOREVER, self._tell_some, number))

    def _next(self, number: int) -> set[int]:
        """Return whose death would matter; of none where all are told."""
        waiting = self._waiting()
        return {member.who for member in waiting[:number]} if number < len(waiting) else set()

    def _tell_some(self, number: int) -> list[int]:
        waiting = self._waiting()
        if number >= len(waiting):
            return self._pass_all()
        return self._tell(waiting[:number], self._words[at.LAST])

    def _depends_on(self, members: list[Member]) -> list[Member]:
        return [member for member in members if member.verdict]

    def _bury(self, member: Member) -> list[int]:
        heirs = [m for m in self._waiting() if m.ticket <= member.verdict]
        cells = self._tell(heirs[:1], member.verdict)
        return cells + super()._bury(member)
