"""The table of process slots, reference engine: who is of the family, and who died of what.

Layout and field names: slot_layout.py. How a death is noticed: liveness.py.

Shared fields                          written by              guard
  header: identity .. time_namespace     creator                 never after the first fork
  header: first_free, used, deaths       claimer, burier         the table's section
  header: journal_slot, journal_death    burier                  section
  slot: life                             claimer, sweeper        section
  slot: pid, started, claimed_at         claimer                 section, before F2
  slot: waits_for .. recoveries          the slot's process      none: hints for onlookers
  slot: cause, status, seen_at           sweeper                 section, before D1
  slot: leaving                          the slot's process      none: has the generation in it
  log: records                           burier                  section
Private words, one page a process (private_page.py): number, tried, generation.

Life of a slot: FREE -- F2 --> LIVE -- D1 --> DYING -- D4 --> FREE, generation + 1.

Invariants
  I1  a process has at most one slot that is LIVE, and no two processes have the same one
  I2  a generation of a slot is buried once: one record in the log
  I3  what is not LIVE belongs to nobody who lives; DYING keeps its number until the
      steps have run, so that no successor inherits what the dead one held

Sync points, each at both of its ends
  F1 try     claimer: private `tried`, before the slot changes
             claimer: looks there first, where a claim was broken off or a thread was faster
  F2 claim   claimer: life = LIVE, after the slot's other fields
             sweeper: reads life, then the others, in the section
  F3 know    claimer: private `number`, last
             any thread of it: reads `number`, without the section
  D1 mark    sweeper: life = DYING, after cause, status and seen_at
             burier: life is DYING and the generation the same, else somebody was faster
  D2 intend  burier: journal_slot, after journal_death
             next to enter: journal_slot is set, so the burial is done over
  D3 log     burier: deaths + 1, after the record
             reader: takes the newest `deaths` records, in the section
  D4 free    burier: life = FREE with the next generation, after D3
             claimer: takes only what is FREE

If a process dies, or a signal handler raises
  before F2        the slot is FREE still; scribbled fields are overwritten by its next owner
  F2 to F3         a death leaves a LIVE slot of a dead process, as any other; after an
                   exception the process finds the slot again by `tried`
  before D1        the next sweep finds the same death
  D1 to D2         the slot is DYING: the next sweep takes the steps again and buries it
  D2 to the end    whoever enters next finishes the burial from the journal; every store
                   of it says the same when it is repeated

The steps (release of the dead one's blocks, locks, waiters) run outside the section, at
least once a death, and maybe in two sweepers at a time: they must compare the generation
and be idempotent. One that raises Stalled puts the burial off. A step must not ask for a
slot of its own process. Rejected: an owner of
each burial. A sweeper that is stopped, or was broken off by an exception, would hold it up.

Not promised: a child forked by a signal handler that interrupts a claim, and returning
from that handler. The cause of a death where the parent was faster to reap it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ipcmap._core import death_log, liveness
from ipcmap._core import reference_sections as sections
from ipcmap._core import slot_layout as at
from ipcmap._core.death_log import LoggedDeath
from ipcmap._core.liveness import Death
from ipcmap._core.private_page import PrivatePage
from ipcmap._deadline import Deadline
from ipcmap.errors import BusyError, CorruptError, FamilyFull, ForeignNamespace

__all__ = ["Slot", "SlotTable", "Step"]

_NUMBER, _TRIED, _GENERATION = 0, 1, 2  # words of the private page
_FOREVER = Deadline(None)

Step = Callable[[int, int], object]
_Result = TypeVar("_Result")


class Slot(NamedTuple):
    """One slot, copied at a moment: stale as soon as it is read."""

    number: int
    generation: int
    state: int
    pid: int
    started: int
    claimed_at: int
    notes: tuple[int, ...]  # WAITS_FOR to RECOVERIES


class SlotTable:
    """The slots of a family, in a range of memory that it shares.

    Args:
        words: ``slot_layout.nbytes(max_processes)`` zeroed bytes, cast to ``"Q"``.
        address: Where they begin.
        section: Where an initialised section begins that guards the table alone.
        max_processes: How many processes can be of the family at a time.
        wipe: ``False`` goes without MADV_WIPEONFORK, as on kernels before 4.14.
    """

    def __init__(
        self,
        words: memoryview,
        address: int,
        section: int,
        max_processes: int,
        *,
        wipe: bool = True,
    ) -> None:
        self._words, self._section = words, section
        self._max_processes = max_processes
        self._page = PrivatePage(wipe=wipe)
        self._own = self._page.words
        self._wiped = self._page.ours
        identity = int.from_bytes(os.urandom(at.WORD), "little") or 1
        self._region = liveness.Region(address, identity, liveness.mapped_at("self", address))
        self.steps: tuple[Step, ...] = ()  # what a sweep does for each dead slot, in order
        words[at.H_MAX_PROCESSES] = max_processes
        words[at.H_PID_NAMESPACE] = liveness.namespace("pid")
        words[at.H_TIME_NAMESPACE] = liveness.namespace("time")
        words[at.H_IDENTITY] = identity

    # One's own slot

    def slot(self) -> int:
        """Return this process's slot number, claiming one if it has none.

        Raises:
            FamilyFull: All slots are taken by living processes.
            ForeignNamespace: This process counts pids or time differently.
            BusyError: A signal handler interrupted the claim that it asks for.
        """
        while True:
            number: int = self._own[_NUMBER]  # F3 know
            if number and (self._wiped or self._page.ours):
                return number
            self._claim()  # what it returns is the parent's where a handler forked in it

    def known(self) -> int:
        """Return this process's slot number, 0 where it has claimed none."""
        number: int = self._own[_NUMBER]  # F3 know
        return number if self._wiped or self._page.ours else 0

    def holder(self) -> int:
        """Return this process as the holder of something: generation and slot in one word."""
        return self.known_holder() or (self._claim() and self.known_holder())

    def known_holder(self) -> int:
        """Return the same, 0 where this process has claimed no slot."""
        own = self._own
        number: int = own[_NUMBER]  # F3 know
        if number and (self._wiped or self._page.ours):
            return int(own[_GENERATION]) << at.HOLDER_BITS | number
        return 0

    def own_page(self) -> memoryview | None:
        """Return the private words, where the kernel wipes them in a child by itself."""
        return self._own if self._wiped else None

    def leave(self) -> None:
        """Say that this process ends by itself, for those who find it reaped."""
        if number := self.known():
            self._words[number * at.SLOT + at.LEAVING] = self._own[_GENERATION] + 1

    def cause_of_death(self, holder: int) -> int | None:
        """Return what a holder died of, ``None`` if it lives; looks at its slot alone.

        Raises:
            CorruptError: No process can have been this holder.
        """
        number, generation = holder & at.HOLDER_SLOT, holder >> at.HOLDER_BITS
        if not 0 < number <= self._max_processes:
            raise self._damaged(f"slot of a holder={number}")
        slot = self._inside(self._copy, number)
        if slot.generation < generation or (slot.generation, slot.state) == (generation, at.FREE):
            raise self._damaged(
                f"generation of a holder={generation}, of slot {number}={slot[1:3]}"
            )
        if (slot.generation, slot.state) == (generation, at.LIVE) and not self._mark_if_dead(slot):
            return None
        return self._inside(self._cause, number, generation)

    def pid_of(self, holder: int) -> int:
        """Return a holder's pid, 0 where it is not a member any more."""
        number, generation = holder & at.HOLDER_SLOT, holder >> at.HOLDER_BITS
        if not 0 < number <= self._max_processes:
            return 0
        slot = self._inside(self._copy, number)
        return slot.pid if (slot.generation, slot.state) == (generation, at.LIVE) else 0

    def _cause(self, number: int, generation: int) -> int:
        base = number * at.SLOT
        if self.is_dying(number, generation):
            return int(self._words[base + at.CAUSE])
        # D4 free; of its record it is enough that it was written before.
        log = death_log.copy(self._words, self._max_processes)
        return death_log.cause_of(log, number, generation)

    def is_dying(self, number: int, generation: int) -> bool:
        """Return whether a slot still is that of one who died, whose steps are being taken."""
        dying: bool = self._words[number * at.SLOT] == generation << at.STATE_BITS | at.DYING
        return dying

    def generation(self) -> int:
        """Return the generation of this process's slot: how many others had it before."""
        self.slot()
        generation: int = self._own[_GENERATION]
        return generation

    def note(self, field: int, value: int) -> None:
        """Write one of ``slot_layout.NOTES`` into one's own slot, for onlookers."""
        self._words[self.slot() * at.SLOT + field] = value

    def _claim(self) -> int:
        self._check_header()
        pid = os.getpid()
        stat = liveness.read_stat("self")
        started = stat.started if stat else 0
        while True:
            number = self._inside(self._take, pid, started)
            if number:
                return number
            swept = self.sweep()
            # Again also where nothing was swept: another sweeper may have been faster.
            number = self._inside(self._take, pid, started)
            if number:
                return number
            if not swept:
                raise FamilyFull(
                    f"every slot is taken by a living process: max_processes={self._max_processes}, "
                    f"pid={pid}; end some processes, or create the family with a larger max_processes"
                )

    def _take(self, pid: int, started: int) -> int:
        """Claim a slot, inside the section; 0 = none is free."""
        words, own = self._words, self._own
        self._page.own()
        number = own[_TRIED]  # F1 try
        if not (number and self._is_live(number, pid, started)):
            number = self._first_free()
            if not number:
                return 0
            own[_TRIED] = number  # F1 try
            base = number * at.SLOT
            if number > self._used():
                words[at.H_USED] = number
            words[base + at.PID] = pid
            words[base + at.STARTED] = started
            words[base + at.CLAIMED_AT] = time.time_ns()
            for note in at.NOTES:
                words[base + note] = 0
            words[base + at.LIFE] |= at.LIVE  # F2 claim
            words[at.H_FIRST_FREE] = number + 1
        own[_GENERATION] = self._copy(number).generation
        own[_NUMBER] = number  # F3 know
        return int(number)

    def _is_live(self, number: int, pid: int, started: int) -> bool:
        slot = self._copy(number)
        return (slot.state, slot.pid, slot.started) == (at.LIVE, pid, started)

    def _first_free(self) -> int:
        hint = self._words[at.H_FIRST_FREE]
        if hint > self._max_processes + 1:
            raise self._damaged(f"first free slot={hint}")
        for number in range(hint or 1, self._max_processes + 1):
            if self._copy(number).state == at.FREE:  # D4 free
                return number
        self._words[at.H_FIRST_FREE] = self._max_processes + 1
        return 0

    # The dead

    def sweep(self) -> int:
        """Bury the dead: take :attr:`steps` for each of their slots, log it, free it.

        Returns:
            How many were buried by this call.

        Raises:
            ForeignNamespace: This process counts pids or time differently.
        """
        self._check_header()
        buried = 0
        for number in range(1, self._inside(self._used) + 1):
            if not self._words[number * at.SLOT] & at.STATE_MASK:
                continue
            slot = self._inside(self._copy, number)
            if slot.state == at.FREE or (slot.state == at.LIVE and not self._mark_if_dead(slot)):
                continue
            try:
                for step in self.steps:
                    step(number, slot.generation)
            except sections.Stalled:  # it stays DYING, for a later sweep
                continue
            buried += self._inside(self._bury, number, slot.generation)
        return buried

    def _mark_if_dead(self, slot: Slot) -> bool:
        death = liveness.examine(slot.pid, slot.started, self._region)
        return death is not None and self._inside(self._mark, slot, death)

    def _mark(self, seen: Slot, death: Death) -> bool:
        """Mark a slot as dying, inside; return whether it is of the same generation still."""
        now = self._copy(seen.number)
        if now.generation != seen.generation or now.state == at.FREE:
            return False
        if now.state == at.LIVE:
            base = seen.number * at.SLOT
            left = self._words[base + at.LEAVING] == seen.generation + 1
            unknown = death.cause == at.UNKNOWN
            self._words[base + at.CAUSE] = at.LEFT if left and unknown else death.cause
            self._words[base + at.STATUS] = death.status
            self._words[base + at.SEEN_AT] = time.time_ns()
            self._words[base + at.LIFE] = seen.generation << at.STATE_BITS | at.DYING  # D1 mark
        return True

    def _bury(self, number: int, generation: int) -> bool:
        """Log a dying slot and free it, inside; ``False`` = somebody was faster."""
        words = self._words
        if words[number * at.SLOT] != generation << at.STATE_BITS | at.DYING:  # D1 mark
            return False
        words[at.H_JOURNAL_DEATH] = self._deaths()
        words[at.H_JOURNAL_SLOT] = number  # D2 intend
        self._finish_burial()
        return True

    def _finish_burial(self) -> None:
        words = self._words
        number, index = words[at.H_JOURNAL_SLOT], words[at.H_JOURNAL_DEATH]  # D2 intend
        if number > self._max_processes:
            raise self._damaged(f"slot in the journal={number}")
        if index not in (self._deaths(), self._deaths() - 1):
            raise self._damaged(f"death in the journal={index}")
        slot = self._copy(number)
        if slot.state == at.LIVE:
            raise self._damaged(f"state of slot {number} in the journal={slot.state}")
        if slot.state == at.DYING:
            base = number * at.SLOT
            how = (words[base + field] for field in (at.CAUSE, at.STATUS, at.SEEN_AT))
            record = LoggedDeath(index + 1, slot.pid, number, slot.generation, *how)
            death_log.write(words, self._max_processes, record)
            words[at.H_DEATHS] = index + 1  # D3 log
            words[at.H_FIRST_FREE] = min(number, words[at.H_FIRST_FREE])
            words[base + at.LIFE] = slot.generation + 1 << at.STATE_BITS | at.FREE  # D4 free
        words[at.H_JOURNAL_SLOT] = 0

    # Onlookers

    def members(self) -> list[Slot]:
        """Return the slots that are taken; each is copied in one piece, one after the other."""
        used = self._inside(self._used)
        slots = (self._inside(self._copy, number) for number in range(1, used + 1))
        return [slot for slot in slots if slot.state != at.FREE]

    def deaths(self) -> list[LoggedDeath]:
        """Return the deaths that the log still has, oldest first."""
        count, copied = self._inside(self._copy_log)
        found, wrong = death_log.check(copied, count, self._max_processes)
        if wrong:
            raise self._damaged(wrong)
        return found

    def _copy_log(self) -> tuple[int, bytes]:
        return self._deaths(), death_log.copy(self._words, self._max_processes)

    # Inside

    def _inside(self, change: Callable[..., _Result], *arguments: object) -> _Result:
        """Call a function in the section, once a burial that was broken off is finished."""
        try:
            result: _Result = sections.inside(
                self._section, _FOREVER, self._change, change, *arguments
            )
        except sections.Reentered:
            raise BusyError(
                "a signal handler cannot use the slot table that it interrupted: "
                f"pid={os.getpid()}; return from the handler first"
            ) from None
        return result

    def _change(self, change: Callable[..., _Result], *arguments: object) -> _Result:
        if self._words[at.H_JOURNAL_SLOT]:
            self._finish_burial()
        return change(*arguments)

    def _copy(self, number: int) -> Slot:
        base = number * at.SLOT
        copied = self._words[base : base + at.RECOVERIES + 1].tolist()
        life, pid = copied[at.LIFE], copied[at.PID]
        state = life & at.STATE_MASK
        if state > at.DYING:
            raise self._damaged(f"state of slot {number}={state}")
        if state and not 0 < pid <= at.MAX_PID:
            raise self._damaged(f"pid in slot {number}={pid}")
        if life >= at.MAX_LIFE:
            raise self._damaged(f"generation of slot {number}={life >> at.STATE_BITS}")
        return Slot(
            number,
            life >> at.STATE_BITS,
            state,
            pid,
            copied[at.STARTED],
            copied[at.CLAIMED_AT],
            tuple(copied[at.WAITS_FOR :]),
        )

    def _used(self) -> int:
        used: int = self._words[at.H_USED]
        if used > self._max_processes:
            raise self._damaged(f"highest slot in use={used}")
        return used

    def _deaths(self) -> int:
        deaths: int = self._words[at.H_DEATHS]
        if deaths > at.MAX_DEATHS:
            raise self._damaged(f"number of deaths={deaths}")
        return deaths

    def _check_header(self) -> None:
        header = self._words[at.H_IDENTITY], self._words[at.H_MAX_PROCESSES]
        if header != (self._region.word, self._max_processes):
            raise self._damaged(f"header={header}")
        for kind, field in (("pid", at.H_PID_NAMESPACE), ("time", at.H_TIME_NAMESPACE)):
            family, ours = self._words[field], liveness.namespace(kind)
            if family and family != ours:
                raise ForeignNamespace(
                    f"a process of another {kind} namespace cannot tell who of the family lives: "
                    f"family's={family}, pid {os.getpid()}'s={ours or 'unknown'}; fork it without a new "
                    f"{kind} namespace, or give it a family of its own"
                )

    def _damaged(self, what: str) -> CorruptError:
        return CorruptError(
            f"the table of processes was overwritten: {what}, "
            f"max_processes={self._max_processes}, address={self._region.address:#x}; "
            "end the family and look for a write beyond the end of a view"
        )
