"""The barrier of the reference engine: nobody goes on before all have come.

Shared fields (places: room_layout.py; the others: reference_rooms.py)
  parties   how many make a round        creator                  never after the birth
  broken    1 = broken                   breaker, resetter        section; see B2
  acting    ticket of who runs the       who completes a round    section; over as soon as
            action of the round                                   passed has reached it

A round is those who wait, and live: who is about to complete it looks at each first. Who completes it lets them go by R3, one store for all. With
an action to run it comes in first, as a member, and stores ``acting``; who comes now is
too LATE for this round, waits for its end, and comes again.

Verdicts: THROUGH, by ``passed``. BROKEN. LATE, a cell's from its beginning.

Sync points, besides those of reference_rooms
  B1 act    in the section, one store of ``acting``: the round is complete, and closed
            who comes: is late where acting > passed
  B2 break  one store of ``broken``, before those who wait are told
            who waits: reads it behind the verdict and ``passed``; a breaker may be dead

If a process dies
  waiting, or acting    whoever looks breaks the barrier
  before R3             the round is not through, and the dead one was of it: broken
  after R3              the round is through; whoever has not left yet is not missed
  after B2              who waits finds it a slice late at most
"""

from __future__ import annotations

from collections.abc import Callable

from ipcmap._core import room_layout as at
from ipcmap._core.reference_monitor import Damaged
from ipcmap._core.reference_rooms import CELL, FULL, THROUGH, Member, Note, Room
from ipcmap._core.reference_sections import Stalled, inside
from ipcmap._deadline import Deadline

__all__ = ["BarrierCore"]

BROKEN, LATE, AGAIN, UNSEEN = 2, 3, 4, 5
INDEX, LAST = 1, 2  # in a note: how many were here before; whether it completes the round
_FOREVER = Deadline(None)


class BarrierCore(Room):
    """A barrier as one process has it."""

    def wait(self, deadline: Deadline, action: Callable[[], object] | None) -> int | None:
        """Come, and wait for the others; return how many were here before, ``None`` = broken."""
        alive: set[int] = set()  # tickets of those that were looked at
        while True:
            note: Note = [0, 0, 0]

            def act(note: Note = note) -> int:
                if action and note[LAST]:
                    action()
                    self._wake(inside(self._section, _FOREVER, self._finish, note[CELL]))
                return self._verdict(note[CELL])

            acts = action is not None
            verdict = self.attend(deadline, note, self._arrive, acts, alive, then=act)
            self._wake(note[LAST + 1 :])
            if verdict == THROUGH:
                return note[INDEX]
            if verdict == UNSEEN:
                verdict = self._look_at_all(alive, deadline)
            if not verdict:
                self._words[at.BROKEN] = 1  # B2 break: the section was not to be had in time
            if verdict != AGAIN:
                return None

    def _look_at_all(self, alive: set[int], deadline: Deadline) -> int:
        """Bury the dead of the round, and note who is not; 0 = not before the deadline."""
        try:
            here = inside(self._section, deadline, self._waiting)
            self.bury_dead(self._family.known_holder(), {m.who for m in here}, deadline)
        except Stalled:
            return 0
        alive.update(member.ticket for member in here)
        return AGAIN

    def _arrive(self, me: int, note: Note, acts: bool, alive: set[int]) -> int:
        """Go on with all, or be one who waits; ``acts`` = there is an action."""
        words = self._words
        if words[at.BROKEN]:  # B2 break
            return BROKEN
        if self._is_acting():  # B1 act
            return 0 if self._come(me, note, LATE) else FULL
        waiting = self._waiting()
        last = len(waiting) + 1 >= self.parties
        if last and not alive.issuperset(member.ticket for member in waiting):
            return UNSEEN
        note[1:] = [len(waiting), last]
        if last and not acts:
            note += self._pass_all()
            return THROUGH
        if not self._come(me, note):
            return FULL
        if last:
            words[at.ACTING] = words[note[CELL] + at.TICKET]  # B1 act
        return 0

    def _finish(self, cell: int) -> list[int]:
        """Let the round go whose action is done, if it is whole still."""
        words = self._words
        if not self._verdict(cell):
            words[at.PASSED] = words[cell + at.TICKET]  # R3 pass
        return [member.cell for member in self._members()]

    def abort(self) -> None:
        """Break it, and tell those who wait."""
        self._wake(inside(self._section, _FOREVER, self._break))

    def reset(self) -> None:
        """Tell those who wait that it is broken, and make it whole."""
        self._wake(inside(self._section, _FOREVER, self._reset))

    @property
    def parties(self) -> int:
        """How many make a round."""
        parties: int = self._words[at.PARTIES]
        if not 0 < parties <= at.MAX_ENTRIES:
            raise Damaged(f"parties={parties}")
        return parties

    def broken(self) -> bool:
        """Return whether it is broken; stale as soon as it is read."""
        return bool(self._words[at.BROKEN])

    def _is_acting(self) -> bool:
        return bool(self._words[at.ACTING] > self._words[at.PASSED])

    def _break(self) -> list[int]:
        self._words[at.BROKEN] = 1  # B2 break
        return self._tell(self._here(), BROKEN)

    def _reset(self) -> list[int]:
        words = self._words
        cells = self._tell(self._here(), BROKEN)
        words[at.ACTING] = 0
        words[at.BROKEN] = 0
        return cells

    def _here(self) -> list[Member]:
        """Return those who wait, for this round or the next."""
        passed = self._words[at.PASSED]
        return [m for m in self._members() if m.verdict in (0, LATE) and m.ticket > passed]

    def _verdict(self, cell: int) -> int:
        words = self._words
        verdict: int = words[cell + at.VERDICT]
        if verdict == LATE:
            verdict = 0 if self._is_acting() else AGAIN
        elif not verdict and words[cell + at.TICKET] <= words[at.PASSED]:
            return THROUGH
        return verdict or (BROKEN if words[at.BROKEN] else 0)

    def _depends_on(self, members: list[Member]) -> list[Member]:
        passed = self._words[at.PASSED]
        return [m for m in members if not m.verdict and m.ticket > passed]

    def _bury(self, member: Member) -> list[int]:
        missed = not member.verdict and member.ticket > self._words[at.PASSED]
        cells = self._break() if missed else []
        return cells + super()._bury(member)

    def _bury_own(self, cell: int) -> list[int]:
        # An exception in who waits is no death: as in threading, it is not there any more.
        acting = self._words[cell + at.TICKET] == self._words[at.ACTING]
        cells = self._break() if acting and self._is_acting() else []
        self._words[cell + at.WHO] = 0  # R4 leave
        return cells

    def _leave(self, note: Note) -> tuple[int, list[int]]:
        wakes = [] if self._verdict(note[CELL]) else self._break()
        return self._leave_alone(note), wakes
