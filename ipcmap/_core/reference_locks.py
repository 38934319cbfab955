"""The lock of the reference engine: one word says whether it is taken, and by whom.

Shared fields (places: monitor_layout.py)     written by              guard
  holder    process that has it, 0 = nobody   taker, giver, settler   section
  thread    which of its threads              taker                   section, before holder; a hint

Sync points: those of reference_monitor. M1 and M2 are one store of ``holder`` each, so
there is no journal: a process that dies before the store has changed nothing.
M3 is a store of 0, or of the same with KEPT where the process ended by itself; a lock
that is kept so is not looked at again, and waits for a release by somebody else.

It has no owner for ``give``: anyone may. Whoever gives it back for a process that was
killed may be too late: then it is another's, and is taken from that one. The lock
cannot tell the one from the other.
"""

from __future__ import annotations

from threading import get_native_id

from ipcmap._core import monitor_layout as at
from ipcmap._core.reference_monitor import REFUSED, Monitor, Note

__all__ = ["LockCore"]


class LockCore(Monitor):
    """A lock as one process has it."""

    def _take(self, me: int, note: Note) -> bool:
        words = self._words
        if words[at.HOLDER]:
            return False
        thread = get_native_id()
        words[at.THREAD] = thread
        words[at.HOLDER] = me  # M1 take
        note[0] = 1
        return True

    def _give(self, note: Note) -> int:
        words = self._words
        if not words[at.HOLDER]:
            return REFUSED
        words[at.HOLDER] = 0  # M2 give
        note[0] = 1
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
        words[at.HOLDER] = holder | at.KEPT if keep else 0  # M3 settle
        return not keep

    def holder(self) -> tuple[int, int]:
        """Return who has it and which thread of his, (0, 0) = nobody; stale at once."""
        holder: int = self._words[at.HOLDER]
        return (holder, self._words[at.THREAD]) if holder else (0, 0)
