"""The lock for many readers or one writer, of the reference engine: an ordered queue.

Shared fields (places: room_layout.py; the others: reference_rooms.py)
  recovered  1 = a writer died with it    burier, writer    section; see below
  verdict    mode, 1 = to read, 2 = to write; with HELD it has it; count of a reader's takes
  ticket     since when it waits; once it has it, since when it has it, a hint

All members stand in the order of their tickets, those who have it and those who wait.
The oldest who waits gets it if it can have it beside those who have it; if not, nobody
behind it gets it either. So neither readers nor writers are passed over for ever. Each
grant is R2, one store, and follows from the members alone: whoever dies in the middle
of granting leaves nothing but a grant that is due, and each waiter grants what is due
at the end of its slice. To give back is R4.

``recovered`` is stored before the R4 of a dead writer, and cleared before that of a
living one: said once too often, if one dies between the two, and never once too few.

However a process ends, what it had is free: unlike a lock of multiprocessing, this one
has an owner, and nobody else could ever give it back.
"""

from __future__ import annotations

import contextlib
from threading import get_native_id
from time import monotonic_ns

from ipcmap._core import room_layout as at
from ipcmap._core.reference_monitor import Damaged
from ipcmap._core.reference_rooms import CELL, FULL, Member, Note, Room
from ipcmap._core.reference_sections import Reentered, Stalled, inside
from ipcmap._core.stall_log import Holding
from ipcmap._deadline import Deadline

__all__ = ["READ", "WRITE", "HasIt", "RWLockCore"]

READ, WRITE, HELD, ONE = 1, 2, 4, 8
_DEEPER = 1  # in a note: the cell in which this call has raised the count
_FOREVER = Deadline(None)
_AT_ONCE = Deadline(0)


class HasIt(Exception):
    """This thread has it already, and would wait for itself."""


class RWLockCore(Room):
    """A lock for readers and writers as one process has it."""

    def acquire(self, mode: int, deadline: Deadline) -> bool:
        """Take it to read or to write; ``False`` = not before the deadline."""
        note: Note = [0, 0]
        try:
            return bool(self.attend(deadline, note, self._arrive, mode))
        except BaseException:
            if note[CELL] or note[_DEEPER]:
                self._give_back(mode, [0])
            raise

    def release(self, mode: int) -> bool:
        """Give it back; ``False`` = this thread does not have it."""
        note: Note = [0]
        try:
            return self._give_back(mode, note)
        except (Reentered, Damaged):
            raise
        except BaseException:
            self._give_back(mode, note)
            raise

    def _give_back(self, mode: int, note: Note) -> bool:
        given, cells = inside(self._section, _FOREVER, self._give, mode, note)
        self._wake(cells)
        return given

    def holdings(self) -> list[Holding]:
        """Return who has it; stale as soon as it is read."""
        return [
            Holding(member.who, member.thread, member.ticket)
            for member in self._members()
            if member.verdict & HELD
        ]

    def held(self) -> tuple[int, int]:
        """Return how many readers have it, and how many writers."""
        modes = [member.verdict & WRITE for member in self._members() if member.verdict & HELD]
        return modes.count(0), modes.count(WRITE)

    def levels(self, mode: int) -> int:
        """Return how often this thread has it."""
        member = self._own(self._family.known_holder())
        return member.verdict // ONE if member and member.verdict & mode else 0

    def settle(self) -> None:
        """Forget the dead who have it; nobody where the section is not to be had."""
        with contextlib.suppress(Stalled):
            self.sweep(self._family.known_holder(), everyone=True, deadline=_AT_ONCE)

    def _arrive(self, me: int, note: Note, mode: int) -> int:
        own = self._own(me)
        if own:
            if not own.verdict & mode & READ:
                raise HasIt
            self._words[own.cell + at.VERDICT] = own.verdict + ONE  # R2 tell
            note[_DEEPER] = own.cell
            return HELD
        if not self._come(me, note, mode):
            return FULL
        self._grant()  # the dead one's who granted last and woke nobody, among others
        return self._verdict(note[CELL])

    def _give(self, mode: int, note: Note) -> tuple[bool, list[int]]:
        own = self._own(self._family.known_holder())
        if not own or not own.verdict & mode:
            return False, []
        if note[0] or own.verdict >= 2 * ONE:
            # Noted first: who was broken off stores the same again.
            note[0] = note[0] or own.verdict - ONE
            self._words[own.cell + at.VERDICT] = note[0]  # R2 tell
            return True, []
        if mode == WRITE:
            self._words[at.RECOVERED] = 0
        self._words[own.cell + at.WHO] = 0  # R4 leave
        return True, self._grant()

    def _own(self, me: int) -> Member | None:
        thread = get_native_id()
        for member in self._members():
            if (member.who, member.thread) == (me, thread) and member.verdict & HELD:
                return member
        return None

    def _grant(self) -> list[int]:
        """Give it to the oldest who wait, as far as they can have it together."""
        members = self._members()
        if any(not member.verdict & (READ | WRITE) for member in members):
            raise Damaged(f"modes={[member.verdict for member in members]}")
        readers, writers = self.held()
        cells: list[int] = []
        for member in members:
            if member.verdict & HELD:
                continue
            writes = member.verdict & WRITE
            if writers or (writes and (readers or cells)):
                break
            writers += writes
            cells += self._tell([member], member.verdict | HELD | ONE)
            self._words[member.cell + at.TICKET] = monotonic_ns()
        return cells

    def _verdict(self, cell: int) -> int:
        verdict: int = self._words[cell + at.VERDICT]
        return verdict if verdict & HELD else 0

    def _depends_on(self, members: list[Member]) -> list[Member]:
        return members

    def sweep(self, me: int, *, everyone: bool = False, deadline: Deadline = _FOREVER) -> None:
        """Bury the dead, and grant what is due."""
        super().sweep(me, everyone=everyone, deadline=deadline)
        self._wake(inside(self._section, deadline, self._grant))

    def _bury(self, member: Member) -> list[int]:
        if member.verdict & HELD and member.verdict & WRITE:
            self._words[at.RECOVERED] = 1
        return super()._bury(member) + self._grant()

    def _bury_own(self, cell: int) -> list[int]:
        self._words[cell + at.WHO] = 0  # R4 leave: an exception in acquire is no death
        return self._grant()

    def _leave(self, note: Note) -> tuple[int, list[int]]:
        verdict = self._leave_alone(note)
        return verdict, [] if verdict else self._grant()

    def _leave_alone(self, note: Note) -> int:
        return self._verdict(note[CELL]) or super()._leave_alone(note)
