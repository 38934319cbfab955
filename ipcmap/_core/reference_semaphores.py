"""The semaphore of the reference engine: a count, and a ledger of who took how many.

Shared fields (places: monitor_layout.py)           written by            guard
  initial, entries    first value, ledger's length  creator               never after the birth
  maximum             the most that value can be    creator               never after the birth
  value               tokens there                  taker, giver, settler section, journal
  travels             1 = the ledger is void        giver                 section; never 0 again
  returned, left      see below                     settler, giver        section, journal
  entry: who, count   tokens that a process has     taker, giver, settler section, journal
  journal, next_*     the change under way          whoever changes       section

Whose tokens come back. A semaphore has no owner, and there are two ways to use one.
As a pool, a process gives back what it took: the tokens of a killed one have to come
back, or the rest waits for them for ever. As a signal (free and filled places of a
buffer), one process takes and another gives: what a killed taker took was passed on,
and whoever has it will give it back. A second time would be one too many, and two
would write to one place.
So: each token is entered for the process that takes it, and a release takes one from the
entry of its own process. The first release by a process that has none shows that
tokens travel. From then on nobody's come back, as in multiprocessing. A semaphore that
begins with 0 has no token that was not released by somebody first, so it travels from
birth. What was taken before the first such release did come back; so each of those
swallows one later release by a process that has none: it was for a token that is there
already. Whoever gives back for the dead by hand gives nothing twice that way.
Rejected: to enter a token for whoever releases it; a release for the oldest
entry; no entries but those of ``with``. The first two hand back what a buffer holds,
the last loses what most programs take.

Invariants, while ``travels`` is 0 and ``journal`` is 0
  I1  value + all counts + left == initial
  I2  no more entries are in use than ``entries`` = min(initial, most processes): by I1 there
      are not more tokens than ``initial``, and where processes are fewer, one entry is
      of a process that is dead, and striking that out makes room

Sync points, besides those of reference_monitor
  S1 intend  journal = 1 (add up value from I1), or 2 + n (strike entry n out), before the rest
             next to enter: finishes what the journal says, first of all
  M1 take    one store: the count of the entry; of ``value`` where tokens travel
  M2 give    the same; the first release that shows that they travel: the store of ``travels``
  M3 settle  S1 itself: the journal has all that is to be stored

If a process dies, or is broken off
  S1 to M1, S1 to M2     value is added up again: nothing happened
  after M1, after M2     value is added up again: taken by a dead process; given back
  after M3               the next to enter strikes the entry out, once

The ledger is bounded and is not moved when processes come and go: an entry with 0
tokens is free for the next. Reading is checked: a sum that exceeds ``initial`` is damage.
"""

from __future__ import annotations

from ipcmap._core import monitor_layout as at
from ipcmap._core.reference_monitor import REFUSED, Damaged, Holders, Monitor, Note, initialise
from ipcmap._core.stall_log import Holding

__all__ = ["SemaphoreCore", "make"]


def make(memory: memoryview, address: int, value: int, entries: int, maximum: int) -> None:
    """Make a semaphore in zeroed bytes, before anyone else sees them."""
    initialise(address)
    words = memory.cast("Q")
    words[at.INITIAL] = words[at.VALUE] = value
    words[at.ENTRIES] = entries
    words[at.MAXIMUM] = maximum
    words[at.TRAVELS] = not value


class SemaphoreCore(Monitor):
    """A semaphore as one process has it."""

    def __init__(self, memory: memoryview, address: int, family: Holders) -> None:
        """Attach to the semaphore in ``memory``, which begins at ``address``."""
        super().__init__(memory, address, family)
        self._initial, entries = self._words[at.INITIAL], self._words[at.ENTRIES]
        if self._initial > at.MAX_VALUE or at.semaphore_nbytes(entries) > memory.nbytes:
            raise Damaged(f"first value={self._initial}, entries={entries}, nbytes={memory.nbytes}")
        self.maximum = self._words[at.MAXIMUM]
        if not self._initial <= self.maximum <= at.MAX_VALUE:
            raise Damaged(f"first value={self._initial}, maximum={self.maximum}")
        self._end = at.FIRST_ENTRY + at.ENTRY * entries
        self._own = at.FIRST_ENTRY  # where our entry was last: a hint

    def _take(self, me: int, note: Note) -> bool:
        words = self._words
        if words[at.JOURNAL]:
            self._repair()
        value = words[at.VALUE]
        if not value:
            return False
        if value > at.MAX_VALUE:
            raise Damaged(f"value={value}")
        if words[at.TRAVELS]:
            words[at.VALUE] = value - 1  # M1 take
            note[0] = 1
            return True
        entry = self._entry(me)
        if not entry:
            return False
        count = words[entry + 1]
        if count > self._initial:
            raise Damaged(f"tokens of one process={count}, first value={self._initial}")
        words[at.JOURNAL] = 1  # S1 intend
        words[entry] = me
        words[entry + 1] = count + 1  # M1 take
        note[0] = 1
        words[at.VALUE] = value - 1
        words[at.JOURNAL] = 0
        return True

    def _give(self, note: Note) -> int:
        words = self._words
        if words[at.JOURNAL]:
            self._repair()
        value = words[at.VALUE]
        if value > at.MAX_VALUE:
            raise Damaged(f"value={value}")
        if words[at.TRAVELS]:
            if value >= self.maximum:
                return REFUSED
            words[at.VALUE] = value + 1  # M2 give
            note[0] = 1
            return int(words[at.SLEEPERS])
        me = self._family.known_holder()
        entry = self._entry(me)
        count = words[entry + 1] if entry and words[entry] == me else 0
        returned = words[at.RETURNED]
        if count:
            words[at.JOURNAL] = 1  # S1 intend
            words[entry + 1] = count - 1  # M2 give
            note[0] = 1
            words[at.VALUE] = value + 1
            words[at.JOURNAL] = 0
        elif returned:
            words[at.RETURNED] = returned - 1  # M2 give
            note[0] = 1
        elif value >= self.maximum:
            return REFUSED
        else:
            words[at.JOURNAL] = 1  # S1 intend
            words[at.VALUE] = value + 1
            words[at.TRAVELS] = 1  # M2 give
            note[0] = 1
            words[at.JOURNAL] = 0
        return int(words[at.SLEEPERS])

    def _available(self) -> bool:
        return bool(self._words[at.VALUE])

    def _entry(self, me: int) -> int:
        """Return where a process's entry is, or a free one; 0 = all are in use."""
        words = self._words
        entry = self._own
        if entry < self._end and words[entry] == me:
            return entry
        who, counts = self._ledger()
        for index in (who.index(me) if me in who else -1, counts.index(0) if 0 in counts else -1):
            if index >= 0:
                self._own = at.FIRST_ENTRY + at.ENTRY * index
                return self._own
        return 0

    def _ledger(self) -> tuple[list[int], list[int]]:
        words = self._words[at.FIRST_ENTRY : self._end].tolist()
        return words[:: at.ENTRY], words[1 :: at.ENTRY]

    def _repair(self) -> None:
        """Finish what the journal says."""
        words = self._words
        intent = words[at.JOURNAL]  # S1 intend
        if intent > 1:
            entry = at.FIRST_ENTRY + at.ENTRY * (intent - 2)
            if entry >= self._end:
                raise Damaged(f"journal={intent}")
            words[entry + 1] = 0
            words[at.RETURNED] = words[at.NEXT_RETURNED]
            words[at.LEFT] = words[at.NEXT_LEFT]
        if not words[at.TRAVELS]:
            taken = sum(self._ledger()[1]) + words[at.LEFT]
            if taken > self._initial:
                raise Damaged(f"first value={self._initial}, taken={taken}")
            words[at.VALUE] = self._initial - taken
        words[at.JOURNAL] = 0

    def _holders(self) -> list[int]:
        words = self._words
        if words[at.JOURNAL]:
            self._repair()
        if words[at.TRAVELS]:
            return []
        who, counts = self._ledger()
        taken = sum(counts) + words[at.LEFT]
        if taken + words[at.VALUE] != self._initial:
            raise Damaged(f"first value={self._initial}, taken={taken}, value={words[at.VALUE]}")
        return [holder for holder, count in zip(who, counts, strict=True) if count]

    def holdings(self) -> list[Holding]:
        """Return who has tokens; nobody where these travel."""
        if self._words[at.TRAVELS]:
            return []
        who, counts = self._ledger()
        still, _ = self._ledger()  # an entry may be another's by the time its count is read
        ledger = zip(who, counts, still, strict=True)
        return [Holding(holder, 0, 0) for holder, count, now in ledger if count and holder == now]

    def _settle(self, holder: int, keep: bool) -> bool:
        words = self._words
        if words[at.JOURNAL]:
            self._repair()
        who, counts = self._ledger()
        if words[at.TRAVELS] or holder not in who:
            return False
        index = who.index(holder)
        count, left = counts[index], words[at.LEFT]
        if not count:
            return False
        if count + left > self._initial:
            raise Damaged(f"first value={self._initial}, taken={count + left}")
        words[at.NEXT_RETURNED] = min(words[at.RETURNED], at.MAX_VALUE) + (0 if keep else count)
        words[at.NEXT_LEFT] = left + (count if keep else 0)
        words[at.JOURNAL] = 2 + index  # S1 intend, M3 settle
        self._repair()
        return True

    def figures(self) -> tuple[int, int, int]:
        """Return the first value, the length of the ledger, and the maximum: what never changes."""
        return self._initial, (self._end - at.FIRST_ENTRY) // at.ENTRY, self.maximum

    @property
    def value(self) -> int:
        """The count now; stale as soon as it is read."""
        value: int = self._words[at.VALUE]
        if value > at.MAX_VALUE:
            raise Damaged(f"value={value}")
        return value
