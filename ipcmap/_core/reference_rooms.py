"""Rooms of the reference engine: where threads wait, each in a cell of its own.

A monitor wakes somebody. A room wakes whom it means: a condition notifies the oldest,
a barrier lets a whole round go, a lock for readers and writers keeps an order. So each
who waits has a cell: who it is, since when, what it was told, and a semaphore. A
semaphore never carries the truth (reference_parking): what counts is what the cell says.

Shared fields (places: room_layout.py)     written by              guard
  section                                  the C library alone
  entries                                  creator                 never after the birth
  used                                     who comes               section; grows
  last           last ticket               who comes               section; grows
  passed         see R3                    teller                  section; grows
  looked_at      when one looked           who looks               section; a hint
  cell: thread, ticket                     who comes               section, before R1
  cell: verdict                            who comes, teller       section
  cell: who                                its own thread, burier  section; see R4
  the object's own words                   see its file

Sync points, each at both of its ends
  R1 come    in the section, one store of ``who``, after the rest of the cell
             all others: a cell with a ``who`` is a member, of the age of its ticket
  R2 tell    in the section, one store of ``verdict``: this one may go on
             its thread: reads it before each sleep and behind it, without the section
  R3 pass    in the section, one store of ``passed``: all who are here may go on, at once
             their threads: as R2
  R4 leave   one store of 0 in ``who``, in the section
             the next to come: the cell is free

The wait: look at one's own cell, sleep in slices, look. A teller posts to the
semaphores of those it told, after it has left the section. A token that is left in a
cell wakes its next thread once for nothing.

If a process dies
  before R1           the cell is free
  R1 to R4            a member is dead. Whoever looks buries it: what that means for the
                      others, the object says, and then R4 is done for it
  R2 or R3 to a post  those who were told find it at the end of their slice
  in a burial         the member is there still: the next who looks buries it again

Who looks. A waiter whose slice was in vain looks at the members on whom it depends,
but one looks for all: ``looked_at`` keeps the others from it for a while, the longer
the more members there are. Who was killed or stopped while it looked holds nobody up.

How a wait ends early. By an exception of a signal handler: in the section as if it had
died, so what it was told is passed on. By its timeout: with what it was told, if that
came meanwhile. If the section is not to be had then, since its owner is stopped, R4 is
done without it: only the thread itself does that to a living one's cell. What the
stopped one is about to tell it is told to nobody then.

The cells are bounded: who finds none free, the dead buried, is turned away (FULL).
Rejected: cells in blocks of their own, linked up; each link would be a journal.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_native_id
from time import monotonic_ns
from typing import NamedTuple

from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_sections as sections
from ipcmap._core import room_layout as at
from ipcmap._core.reference_monitor import FIRST_SLICE, LONGEST_SLICE, Damaged, Holders
from ipcmap._core.reference_sections import Stalled, inside
from ipcmap._core.stall_log import Holding, Stall
from ipcmap._deadline import Deadline

__all__ = ["CELL", "FULL", "THROUGH", "Full", "Member", "Note", "Room", "make"]

FULL, THROUGH = -1, 1  # verdicts: no cell is free; R3 has let it go
CELL = 0  # in a note: which cell this call has, 0 = none
_FOREVER = Deadline(None)
_AT_ONCE = Deadline(0)

Note = list[int]


class Full(Exception):
    """As many wait as there are cells."""


class Member(NamedTuple):
    """One cell that is in use, copied at a moment."""

    cell: int
    who: int
    thread: int
    ticket: int
    verdict: int


class Room:
    """A room as one process has it; what is told in it, a subclass says."""

    name = "a room"  # as the log calls it

    def __init__(self, memory: memoryview, address: int, family: Holders) -> None:
        """Attach to the room in ``memory``, which begins at ``address``."""
        self._words = memory.cast("Q")
        self._section = address + at.SECTION
        self._address = address
        self._family = family
        self.entries = self._words[at.ENTRIES]
        if not 0 < self.entries <= at.MAX_ENTRIES or at.nbytes(self.entries) > memory.nbytes:
            raise Damaged(f"cells={self.entries}, nbytes={memory.nbytes}")

    # What a subclass says; all in the section, and returning the cells that are to be woken

    def _verdict(self, cell: int) -> int:
        """Return what a cell was told, 0 = nothing yet; also without the section."""
        words = self._words
        verdict: int = words[cell + at.VERDICT]
        return verdict or (THROUGH if words[cell + at.TICKET] <= words[at.PASSED] else 0)

    def _depends_on(self, members: list[Member]) -> list[Member]:
        """Return those whose death concerns the others."""
        raise NotImplementedError

    def _bury(self, member: Member) -> list[int]:
        """Let a dead member go, or one that an exception carries away: up to R4."""
        self._words[member.cell + at.WHO] = 0  # R4 leave
        return []

    def _leave(self, note: Note) -> tuple[int, list[int]]:
        """Let this thread go, told or not; return what it was told."""
        return self._leave_alone(note), []

    def _leave_alone(self, note: Note) -> int:
        """Do the same without the section, whose owner is stopped."""
        verdict = self._verdict(note[CELL])
        self._words[note[CELL] + at.WHO] = 0  # R4 leave
        note[CELL] = 0
        return verdict

    # The wait

    def attend(
        self,
        deadline: Deadline,
        note: Note,
        come: Callable[..., int],
        *arguments: object,
        then: Callable[[], int] | None = None,
    ) -> int:
        """Come in, wait until told, leave; return the verdict, 0 = none before the deadline.

        ``come(me, note, *arguments)`` is called in the section; it returns the verdict if
        it is known at once, else it takes a cell. ``then()`` is called before the sleep.

        Raises:
            Full: There is no free cell.
        """
        me = self._family.holder()
        verdict = 0
        try:
            verdict = inside(self._section, deadline, come, me, note, *arguments)
            if verdict == FULL:
                self.sweep(me, everyone=True, deadline=deadline)
                verdict = inside(self._section, deadline, come, me, note, *arguments)
                if verdict == FULL:
                    raise Full
            if note[CELL] and not verdict:
                verdict = then() if then else 0
                if not verdict:
                    self._sleep(me, note[CELL], deadline)
            return self._go(note) if note[CELL] else verdict
        except Stalled:
            return self._leave_alone(note) if note[CELL] else 0
        except BaseException:
            if note[CELL]:
                self._wake(inside(self._section, _FOREVER, self._bury_own, note[CELL]))
                note[CELL] = 0
            raise

    def _sleep(self, me: int, cell: int, deadline: Deadline) -> None:
        semaphore = self._semaphore(cell)
        longest = FIRST_SLICE
        stall = Stall()
        while not self._verdict(cell):
            seconds = deadline.slice(longest)
            if seconds and parking.sleep(semaphore, seconds):
                longest = FIRST_SLICE
                continue
            longest = min(2 * longest, LONGEST_SLICE)
            self.sweep(me, deadline=deadline)
            if stall.is_due():
                stall.report(self.name, self.holdings(), self._family)
            if not deadline.remaining():
                return

    def holdings(self) -> list[Holding]:
        """Return who has what those inside wait for, as far as one can tell."""
        return []

    def _go(self, note: Note) -> int:
        verdict, wakes = inside(self._section, _AT_ONCE, self._leave, note)
        self._wake(wakes)
        return verdict

    def _bury_own(self, cell: int) -> list[int]:
        return self._bury(self._member(cell))

    def _come(self, me: int, note: Note, verdict: int = 0) -> bool:
        """Take a cell; return whether one was free."""
        words, cell = self._words, self._free_cell()
        if not cell:
            return False
        ticket = max(words[at.LAST] + 1, monotonic_ns())
        if ticket > at.MAX_TICKET:
            raise Damaged(f"last ticket={ticket}")
        thread = get_native_id()
        words[at.LAST] = ticket
        words[cell + at.THREAD] = thread
        words[cell + at.TICKET] = ticket
        words[cell + at.VERDICT] = verdict
        words[cell + at.WHO] = me  # R1 come
        note[CELL] = cell
        return True

    def _free_cell(self) -> int:
        words, used = self._words, self._used()
        owners = words[at.FIRST_CELL : at.FIRST_CELL + used * at.CELL : at.CELL].tolist()
        if 0 in owners:
            return at.FIRST_CELL + owners.index(0) * at.CELL
        if used == self.entries:
            return 0
        cell = at.FIRST_CELL + used * at.CELL
        words[cell + at.WHO] = 0
        parking.initialise(self._semaphore(cell))
        words[at.USED] = used + 1
        return cell

    # The members

    def _used(self) -> int:
        used: int = self._words[at.USED]
        if used > self.entries:
            raise Damaged(f"cells={self.entries}, used={used}")
        return used

    def _members(self) -> list[Member]:
        """Return all members, the oldest first."""
        end = at.FIRST_CELL + self._used() * at.CELL
        words = self._words[at.FIRST_CELL : end].tolist()
        found = [
            Member(at.FIRST_CELL + cell, *words[cell : cell + at.VERDICT + 1])
            for cell in range(0, len(words), at.CELL)
            if words[cell + at.WHO]
        ]
        found.sort(key=lambda member: member.ticket)
        return found

    def _member(self, cell: int) -> Member:
        return Member(cell, *self._words[cell : cell + at.VERDICT + 1].tolist())

    def _waiting(self) -> list[Member]:
        """Return those who were told nothing yet, the oldest first."""
        passed = self._words[at.PASSED]
        return [m for m in self._members() if not m.verdict and m.ticket > passed]

    def count_waiting(self) -> int:
        """Return how many wait, the dead among them; stale as soon as it is read."""
        return len(self._waiting())

    def _tell(self, members: list[Member], verdict: int) -> list[int]:
        for member in members:
            self._words[member.cell + at.VERDICT] = verdict  # R2 tell
        return [member.cell for member in members]

    def _pass_all(self) -> list[int]:
        """Let all who wait go on."""
        cells = [member.cell for member in self._waiting()]
        self._words[at.PASSED] = self._words[at.LAST]  # R3 pass
        return cells

    def _wake(self, cells: list[int]) -> None:
        for cell in cells:
            parking.wake(self._semaphore(cell))

    def _semaphore(self, cell: int) -> int:
        return self._address + cell * at.WORD + at.SEMAPHORE

    # The dead

    def sweep(self, me: int, *, everyone: bool = False, deadline: Deadline = _FOREVER) -> None:
        """Bury the dead on whom the others depend, or ``everyone``; once in a while, for all."""
        members = inside(self._section, deadline, self._to_look_at, everyone)
        self.bury_dead(me, {member.who for member in members}, deadline)

    def bury_dead(self, me: int, whos: set[int], deadline: Deadline = _FOREVER) -> bool:
        """Bury those of these processes that are dead; return whether there were any."""
        dead = {who for who in whos - {me} if self._family.cause_of_death(who) is not None}
        if dead:
            self._wake(inside(self._section, deadline, self._bury_all, dead))
        return bool(dead)

    def _bury_all(self, dead: set[int]) -> list[int]:
        wakes = []
        for member in self._members():
            if member.who in dead:
                wakes += self._bury(self._member(member.cell))
        return wakes

    def _to_look_at(self, everyone: bool) -> list[Member]:
        members = self._members()
        if everyone:
            return members
        members = self._depends_on(members)
        now, looked_at = monotonic_ns(), self._words[at.LOOKED_AT]
        pause = FIRST_SLICE * (1 + len(members) // 16) * 1e9
        if looked_at <= now < looked_at + pause:
            return []
        self._words[at.LOOKED_AT] = now
        return members


def make(memory: memoryview, address: int, entries: int) -> None:
    """Make a room, in bytes of which those before the cells are zeroed."""
    sections.initialise(address + at.SECTION)
    memory.cast("Q")[at.ENTRIES] = entries
