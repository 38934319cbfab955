"""Monitors of the reference engine: what a lock and a semaphore have in common.

A monitor is a section, a parking place, and words that say who has what. To take is
to find something there, and to note in the same section who took it. So those who
wait can tell whether the one they wait for is still alive.

Shared fields (places: monitor_layout.py; the others are the subclass's own)
  section    the C library alone
  sleepers   those who wait, in the section; see reference_parking. Its upper half is the
             mark of those who listen
  listeners, calls    reference_listeners, in the section

The wait: spin a little, then the loop of reference_parking. A waiter whose slice is
over without a token looks at the processes that hold what it wants, and only at
these. Whom a signal killed, or who is another program now, is struck out, and what
it held is there again. What a process held that ended by itself stays taken, as in
multiprocessing. Where its parent reaped it before anyone looked, the slot knows
whether it came to the end of its interpreter; if not (os._exit too), it counts as
killed: a wait that never ends is the worse mistake. (A kill after that word, while the
interpreter ends, is taken for an end by itself if it was reaped unseen.) The first slice is
FIRST_SLICE; each that was in vain doubles the next, up to LONGEST_SLICE: a thousand
waiters that look every 20 ms use most of a CPU.

A process that is stopped, or dumps core, is alive, and nothing is taken from it.

Who listens (reference_listeners) is called by whoever gives, and by who strikes out the
dead (M3): both read the word of the sleepers in any case, and where nobody listens and
nobody sleeps it is 0. A release calls all who are armed, and wakes one who sleeps; what they
find is for whoever comes first. Who was called and does not come to take is no loss: what
is there stays there, and nobody can arm a listener while it is.

Sync points, each at both of its ends; P1 to P6 are those of reference_parking
  M1 take    in the section, one store of the subclass: taken, and by whom
             the next to enter: what it reads there is the truth
  M2 give    in the section, one store of the subclass: given back
             the next to enter: the same
  M3 settle  in the section: what a dead process held is struck out, if it is its still
             another waiter that found the same death: finds it struck out

If a process dies
  before M1            it has taken nothing
  M1 to M2             whoever waits next takes it over, a slice late at most
  M2 to P6             a sleeper sleeps on to the end of its slice
  between P1 and P4    one sleeper too many is counted: a look and a token too many
  at P4                its token is gone: the next sleeper sleeps on to the end of its slice

An exception that a signal handler raises: an acquire gives back what it took, and a
release is finished, before it comes out. ``note`` is how they know: it is stored right
after M1 and M2, and between two stores the interpreter runs no handler. Not covered: a
second exception meanwhile, and a handler that raises in a release before its first line.
Then it is held still.

A handler that forks in a wait makes two callers of it. Each attempt looks, in the section,
whether its process is the one that began: the child begins anew, as itself, and the
sleeper that is counted is its parent.

Promised: exclusion, and that nobody sleeps through a slice while there is something
to take. Not promised: an order. Whoever comes first takes it, waiting or not. Strict
order was rejected: each hand-over would wait for a sleeper to wake up, and for a dead
one a whole slice.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Protocol

from ipcmap._core import monitor_layout as at
from ipcmap._core import processors
from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_sections as sections
from ipcmap._core.reference_listeners import Bell, Known, Listeners, Place
from ipcmap._core.reference_sections import Reentered, Stalled, inside
from ipcmap._core.ring_layout import SLEEPING
from ipcmap._core.slot_layout import EXITED, LEFT
from ipcmap._core.stall_log import Holding, Stall
from ipcmap._deadline import Deadline

__all__ = [
    "DONE",
    "FIRST_SLICE",
    "LONGEST_SLICE",
    "REFUSED",
    "Damaged",
    "Holders",
    "Monitor",
    "Note",
    "initialise",
]

FIRST_SLICE = 0.02  # seconds asleep before the first look at who holds it
LONGEST_SLICE = 1.0  # seconds
_SPIN = 50e-6  # seconds of looking before sleeping, where there is a second processor
_FOREVER = Deadline(None)
_BELL = Bell(at.SLEEPERS, at.LISTENERS, at.CALLS)

REFUSED = -1  # give(): nothing is to be given back

Note = list[int]  # of one call: whether M1 or M2 was stored, and as which process it is a sleeper
DONE, SLEEPS = 0, 1


class Damaged(Exception):
    """Shared bookkeeping is not what any process of the family can have left."""


class _Forked(Exception):
    """This process is the child of the one that began the call."""


class Holders(Protocol):
    """What a monitor asks of the family."""

    def holder(self) -> int:
        """Return this process as a holder."""

    def known_holder(self) -> int:
        """Return the same, 0 where it has not been one yet."""

    def cause_of_death(self, holder: int) -> int | None:
        """Return what a holder died of, ``None`` if it lives."""

    def pid_of(self, holder: int) -> int:
        """Return a holder's pid, 0 where it is not a member any more."""


class Monitor:
    """What is taken and given, as one process has it; what that is, a subclass says."""

    def __init__(self, memory: memoryview, address: int, family: Holders) -> None:
        """Attach to the monitor in ``memory``, which begins at ``address``."""
        if memory.nbytes < at.LOCK_NBYTES or memory.nbytes % at.WORD:
            raise Damaged(f"nbytes={memory.nbytes}")
        self._words = memory.cast("Q")
        self._section = address + at.SECTION
        self._parking = address + at.PARKING
        self._family = family

    name = "a monitor"  # as the log calls it
    _place: Place  # given by the handle
    _known: Known = (-1, ())

    # What a subclass says; all but available() is called in the section

    def _take(self, me: int, note: Note) -> bool:
        """Take it for a process, if it is there: M1."""
        raise NotImplementedError

    def _give(self, note: Note) -> int:
        """Give it back: M2. Return how many sleep, or REFUSED."""
        raise NotImplementedError

    def _available(self) -> bool:
        """Return whether it looked as if there were something to take."""
        raise NotImplementedError

    def _holders(self) -> list[int]:
        """Return the processes that have something, as far as it is theirs to give back."""
        raise NotImplementedError

    def holdings(self) -> list[Holding]:
        """Return who has something, as far as that is known; not in the section."""
        return []

    def _settle(self, holder: int, keep: bool) -> bool:
        """Strike out a dead holder; unless ``keep``, what it had is there again: M3."""
        raise NotImplementedError

    # What is made of it

    def acquire(self, deadline: Deadline) -> bool:
        """Take it, waiting until it is there; ``False`` = not before the deadline."""
        while True:
            me = self._family.holder()
            note = [0, 0]
            try:
                taken = self._acquire(me, note, deadline)
                if self._is_still(me):
                    return taken
            except _Forked:
                pass
            except Stalled:
                return False
            except BaseException:
                if note[DONE] and self._is_still(me):
                    self._finish_giving([0, 0])
                raise

    def _acquire(self, me: int, note: Note, deadline: Deadline) -> bool:
        if inside(self._section, deadline, self._attempt, me, note):
            return True
        if deadline.remaining():
            return self._wait(me, note, deadline)
        return self.settle(deadline, me) and inside(
            self._section, deadline, self._attempt, me, note
        )

    def release(self) -> bool:
        """Give it back, and wake who waits for it; ``False`` = there is nothing to give back."""
        note = [0, 0]
        try:
            sleepers = inside(self._section, _FOREVER, self._give, note)  # P5 look
            if sleepers > 0:
                self._tell(sleepers)
            return sleepers != REFUSED
        except (Reentered, Damaged):
            raise
        except BaseException:
            self._finish_giving(note)
            raise

    def settle(self, deadline: Deadline, me: int = 0) -> bool:
        """Strike out the holders that are dead; return whether there were any.

        Raises:
            CorruptError: No process can have been one of the holders.
            Stalled: The section was not to be had before the deadline.
        """
        me = me or self._family.known_holder()
        settled = False
        for holder in inside(self._section, deadline, self._holders):
            cause = None if holder == me else self._family.cause_of_death(holder)
            if cause is not None:
                keep = cause in (EXITED, LEFT)
                settled |= inside(self._section, deadline, self._settle, holder, keep)
        if settled:
            self._tell(self._words[at.SLEEPERS])
        return settled

    def listeners(self) -> Listeners:
        """Return those who listen for something to take."""
        return Listeners(self, _BELL, self._section, self._is_there)

    def _is_there(self, _: int) -> bool:
        return self._available()

    def call_listeners(self) -> None:
        """Call those who listen."""
        self._known = self.listeners().call(self._known)

    def _tell(self, sleepers: int) -> None:
        """Wake one who sleeps and call all who listen, as the word of the sleepers said."""
        if sleepers & SLEEPING:
            parking.wake(self._parking)  # P6 post
        if sleepers > SLEEPING:
            self.call_listeners()

    def _is_still(self, me: int) -> bool:
        return self._family.known_holder() == me

    def _attempt(self, me: int, note: Note) -> bool:
        """Take it, in the section, if this is still the process that began."""
        if not self._is_still(me):
            raise _Forked
        return self._take(me, note)

    def _finish_giving(self, note: Note) -> None:
        """Give it back if that is not done, and wake somebody in any case."""
        if not note[DONE]:
            inside(self._section, _FOREVER, self._give, note)
        self._wake_next()

    def _wake_next(self) -> None:
        sleepers = self._words[at.SLEEPERS]
        if sleepers and self._available():
            self._tell(sleepers)

    # The wait

    def _wait(self, me: int, note: Note, deadline: Deadline) -> bool:
        if self._spin(deadline) and inside(self._section, deadline, self._attempt, me, note):
            return True
        try:
            return self._sleep(me, note, deadline)
        finally:
            if note[SLEEPS]:
                self._leave(note)
            self._wake_next()  # the token may have been ours, and there may be more to take

    def _sleep(self, me: int, note: Note, deadline: Deadline) -> bool:
        longest, stall = FIRST_SLICE, Stall()
        # P1 announce and P2 re-check, the first time; P4 woken, from then on
        while not inside(self._section, deadline, self._visit, me, note):
            seconds = deadline.slice(longest)
            if seconds and parking.sleep(self._parking, seconds):  # P3 sleep
                longest = FIRST_SLICE
                continue
            longest = min(2 * longest, LONGEST_SLICE)
            settled = self.settle(deadline, me)
            if not settled and stall.is_due():
                stall.report(self.name, self.holdings(), self._family)
            if not settled and not deadline.remaining():
                return False
        return True

    def _visit(self, me: int, note: Note) -> bool:
        """Take it or be a sleeper, in the section."""
        words = self._words
        if self._attempt(me, note):
            return True
        if not note[SLEEPS]:
            sleepers = words[at.SLEEPERS]
            words[at.SLEEPERS] = sleepers + (sleepers & SLEEPING < SLEEPING)
            note[SLEEPS] = me
        return False

    def _leave(self, note: Note) -> None:
        """Be no sleeper any more; one too many is counted if the section is not to be had."""
        with contextlib.suppress(Stalled):
            inside(self._section, Deadline(0), self._unannounce, note)

    def _unannounce(self, note: Note) -> None:
        if self._is_still(note[SLEEPS]):
            sleepers = self._words[at.SLEEPERS]
            self._words[at.SLEEPERS] = sleepers - (sleepers & SLEEPING > 0)
        note[SLEEPS] = 0

    def _spin(self, deadline: Deadline) -> bool:
        """Look for a moment whether there is something; what is seen is looked at again inside."""
        if not processors.may_spin():
            return False
        until = time.perf_counter() + deadline.slice(_SPIN)
        while not self._available():
            if time.perf_counter() >= until:
                return False
            os.sched_yield()
        return True


def initialise(address: int) -> None:
    """Make section and parking place of a monitor, in zeroed bytes."""
    sections.initialise(address + at.SECTION)
    parking.initialise(address + at.PARKING)
