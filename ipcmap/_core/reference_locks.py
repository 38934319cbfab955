"""The locks of the reference engine: one word says whether it is taken, and by whom.

Shared fields (places: monitor_layout.py)     written by              guard
  holder    process that has it, 0 = nobody   taker, giver, settler   section
  thread    which of its threads              taker                   section, before holder
  count     an RLock's: how often             taker, giver            section; 1 before holder
  recovered 1 = its holder was killed         settler, giver          section, before holder
  since     when it was taken                 taker                   section, before holder; a hint

Sync points: those of reference_monitor. M1 and M2 are one store of ``holder`` each, so
there is no journal: a process that dies before the store has changed nothing.
Of an RLock that its thread takes again, or gives back in part, M1 and M2 are the store
of ``count``; whoever dies at any count has lost all of it by the one store of M3.
M3 is a store of 0, or of the same with KEPT where the process ended by itself; a lock
that is kept so is not looked at again, and waits for a release by somebody else.

``recovered`` is stored before M3 and cleared before M2, so a death between the two says
once too often that somebody died, and never once too few: M3 is done over, by the next.

``levels`` reads without the section. A thread that has it finds what it stored itself.
One that has it not may find its process, by another thread; but that one stored its own
number before, and only this thread stores this thread's.

A Lock has no owner for ``give``: anyone may. Whoever gives it back for a process that was
killed may be too late: then it is another's, and is taken from that one. The lock
cannot tell the one from the other.
"""

from __future__ import annotations

from threading import get_native_id
from time import monotonic_ns

from ipcmap._core import monitor_layout as at
from ipcmap._core.reference_monitor import DONE, REFUSED, Damaged, Monitor, Note
from ipcmap._core.stall_log import Holding

__all__ = ["LockCore", "RLockCore"]


class LockCore(Monitor):
    """A lock as one process has it."""

    def _take(self, me: int, note: Note) -> bool:
        words = self._words
        if words[at.HOLDER]:
            return False
        thread = get_native_id()
        words[at.THREAD] = thread
        words[at.SINCE] = monotonic_ns()
        words[at.HOLDER] = me  # M1 take
        note[DONE] = 1
        return True

    def _give(self, note: Note) -> int:
        words = self._words
        if not words[at.HOLDER]:
            return REFUSED
        if words[at.RECOVERED]:
            words[at.RECOVERED] = 0
        words[at.HOLDER] = 0  # M2 give
        note[DONE] = 1
        return int(words[at.SLEEPERS])

    def _available(self) -> bool:
        return not self._words[at.HOLDER]

    def _holders(self) -> list[int]:
        holder = self._words[at.HOLDER]
        return [holder] if holder and not holder & at.KEPT else []

    def _settle(self, holder: int, keep: bool) -> bool:
        words = self._words
        if words[at.HOLDER] != holder:
            return False
        if not keep:
            words[at.RECOVERED] = 1
        words[at.HOLDER] = holder | at.KEPT if keep else 0  # M3 settle
        return not keep

    def holder(self) -> tuple[int, int]:
        """Return who has it and which thread of his, (0, 0) = nobody; stale at once."""
        holder: int = self._words[at.HOLDER]
        return (holder, self._words[at.THREAD]) if holder else (0, 0)

    def holdings(self) -> list[Holding]:
        """Return who has it, and since when."""
        words = self._words
        holder = words[at.HOLDER]
        return [Holding(holder & ~at.KEPT, words[at.THREAD], words[at.SINCE])] if holder else []

    def levels(self, *, any_thread: bool = False) -> int:
        """Return how often this thread has it, or any thread of this process."""
        words = self._words
        holder = words[at.HOLDER]
        if not holder or holder != self._family.known_holder():
            return 0
        if words[at.THREAD] != get_native_id() and not any_thread:
            return 0
        return self._depth()

    def _depth(self) -> int:
        return 1


class RLockCore(LockCore):
    """A lock that its thread may take again, as one process has it."""

    def _take(self, me: int, note: Note) -> bool:
        words = self._words
        if self.levels():
            words[at.COUNT] = self._depth() + 1  # M1 take
            note[DONE] = 1
            return True
        if words[at.HOLDER]:
            return False
        words[at.COUNT] = 1
        return super()._take(me, note)

    def _give(self, note: Note) -> int:
        words = self._words
        levels = self.levels()
        if not levels:
            return REFUSED
        if levels == 1:
            return super()._give(note)
        words[at.COUNT] = levels - 1  # M2 give
        note[DONE] = 1
        return 0

    def _depth(self) -> int:
        count: int = self._words[at.COUNT]
        if not 0 < count < at.MAX_VALUE:
            raise Damaged(f"count={count}")
        return count
