"""Allocator of the reference engine: one block is one cell, and one tag word owns it.

Shared fields (places: layout.py)           written by            guard
  tag      word of each cell                whoever changes it    the section
  length   word of each cell: bytes         who takes the cell    the section, before its tag
  high_water   no cell from here on was used    allocate          the section; only grows
  cursor   where to look next               allocate and free     the section; a hint
  used, used_nbytes, warm   of a class      whoever changes a tag the section, under the journal
  bytes in use, warm bytes  of all classes  whoever changes a tag the section, under the journal
  journal  class being changed + 1, classes + 1 = all, 0 = none   the section

A tag is the whole truth about its cell: used or free, owner (0 = the family, which no
sweep buries), kind, generation; of a free one, whether it is warm. A retired one is owned
but is no block: its memory is being given back.

Invariants
  I1  a cell whose tag is used lies below its class's high-water mark
  I2  with the journal at 0 the five counts are what the tags and lengths say
  I3  the cursor promises nothing: every cell is looked at before it is taken

Sync points, each at both of its ends
  A1 take    allocate: one store of the tag, after its length and the high-water mark
             reader: load of the tag, before the length
  A2 free    free, sweep: one store of the tag, after the last use of the bytes
             allocate: load of the tag, before it takes the cell
  A3 retire  trim of a warm cell, sweep of a retired one: one store of the tag
             allocate, sweep: load of the tag; who stored it alone gives the memory back
  A4 retag   one store of the tag with another owner; sweep: load of the tag

If a process dies, or is broken off by an exception
  before A1            the cell is free
  between A1 and A2    its owner's slot has the block: the sweep of that slot frees it
  between A2 and A3    more is kept than the bound, until the next call that trims
  between A3 and A2    its owner's slot has the cell: the sweep gives the memory back; who
                       lives on and could not enter for A2 does so when it trims next
  between A3 and A2, a child that a handler forked   the cell is its parent's alone
  before the journal is cleared   the next to enter counts that class anew from its tags

Cells of GIVE_BACK bytes and more are warm when they are freed: their pages stay for the
next block, since to fault them in again costs many times a copy. How much that may be
is bounded (see ``_excess``); what is beyond is given back by whoever brought it about.
MADV_REMOVE zeroes a cell for everyone, so it must be over before the cell can be taken,
and it takes too long for a section: hence A3. Smaller cells keep theirs, uncounted.

No free list: a list that a kill can break needs a repair of its own. A search looks
at SEARCH cells from the cursor on, then takes a fresh one, so that its time is
bounded and 1 cell in SEARCH or so is wasted at worst. A class without a fresh cell
is searched as a whole, and after that the next larger class is asked. A class that
has warm cells is searched for one first, but for no more than WARM_SEARCH cells.

Reading shared words is reading input: each is copied once and checked (reference_cells). What makes no
sense is CorruptError where a handle names it, and is skipped (never handed out, never
swept) where a search meets it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from ipcmap._core import libc
from ipcmap._core.layout import (
    ALLOCATOR_SECTION,
    BYTES_IN_USE,
    GENERATION_SHIFT,
    GENERATIONS,
    JOURNAL,
    KIND_SHIFT,
    KINDS,
    OWNER,
    RETIRED,
    SMALLEST_CELL,
    STATE,
    USED,
    WARM,
    WARM_BYTES,
    Layout,
    SizeClass,
)
from ipcmap._core.reference_cells import Cell, Cells
from ipcmap._core.reference_sections import Reentered, Stalled, initialise, inside
from ipcmap._deadline import Deadline
from ipcmap.errors import ArenaFull, BusyError, CorruptError

__all__ = ["GIVE_BACK", "KEEP", "Allocator"]

GIVE_BACK = 1 << 20  # bytes of a cell from which on a free one is counted as warm
KEEP = 64 << 20  # bytes of warm cells, at most: several records in flight, and no burden when idle
SEARCH = 64  # cells that are looked at before a fresh one is taken
WARM_SEARCH = 1024  # cells that are looked at for a warm one: in time much less than its faults

_REMOVE = 9  # MADV_REMOVE
_FOR_EVER = Deadline(None)
_SOON = Deadline(0)  # for what can be done later: it waits a little for the section

Result = TypeVar("Result")


class Allocator(Cells):
    """Takes and frees the cells of an arena.

    Args:
        words: The arena as words, from its first byte.
        address: Where it begins in this process.
        layout: Its places.
        limit: The most bytes in use.
        owner: Returns the slot number of this process, 1 and up; asked outside the section.
    """

    def __init__(
        self,
        words: memoryview,
        address: int,
        layout: Layout,
        limit: int,
        owner: Callable[[], int],
    ) -> None:
        super().__init__(words, layout)
        self._address, self._limit, self._owner = address, limit, owner
        self._keep = min(KEEP, limit // 4)
        self._section = address + ALLOCATOR_SECTION
        # By maker, what is to be stored where somebody was in the section for too long.
        self._unfinished: list[tuple[int, SizeClass, int, int, int]] = []

    def initialise(self) -> None:
        """Make the section of a fresh arena; all else begins as zeros."""
        initialise(self._section)

    # Blocks

    def allocate(self, nbytes: int, kind: int = 0, deadline: Deadline = _FOR_EVER) -> Cell:
        """Take a cell for ``nbytes`` bytes of any content and a ``kind`` of 0 to 255.

        Raises:
            Stalled: Another was in the section until the deadline.
            ArenaFull: Beyond the limit, or no cell of such a length is free.
            BusyError: A signal handler interrupted a change of the allocator.
            CorruptError: A high-water mark makes no sense.
        """
        number = self.layout.class_number(nbytes)
        if number >= len(self.layout.classes):
            raise ArenaFull(
                f"block can never fit this arena: nbytes={nbytes}, "
                f"largest={self.layout.classes[-1].cell_nbytes} bytes, "
                f"reserve={self.layout.reserved} bytes; reserve more (Arena(reserve=...))"
            )
        owner = self._owner()
        cell = self._inside(self._allocate, number, nbytes, kind, owner, deadline=deadline)
        if self._excess():
            self._trim(owner)
        return cell

    def free(self, cell: Cell, deadline: Deadline = _FOR_EVER) -> None:
        """Give a block back; errors as ``check``, and :class:`BusyError` and Stalled as ``allocate``."""
        # Again where another owner was stored between the look and the change.
        while not self._release(*self._tag_of(cell), deadline):
            pass
        if self._excess():
            self._trim(self._owner())

    def retag(self, cell: Cell, owner: int, kind: int | None = None) -> Cell:
        """Hand a block to another slot, 0 = the family, perhaps as another kind; return it so.

        Errors as ``free``.
        """
        kind = cell.kind if kind is None else kind
        while True:
            size_class, index, tag = self._tag_of(cell)
            new = tag & ~(OWNER | (KINDS - 1) << KIND_SHIFT) | kind << KIND_SHIFT | owner
            if self._inside(self._exchange, size_class, index, tag, new):  # A4 retag
                return cell._replace(kind=kind)

    def sweep(
        self,
        slot: int,
        keep: Callable[[Cell], bool] = lambda cell: False,
        *,
        dead: Callable[[], bool] = lambda: True,
        owner: int = 0,
    ) -> int:
        """Free what the slot of a dead process owns; return how many blocks that were.

        A block for which ``keep`` says true stays as it is. A sweep that is
        broken off is finished by the next, and one too many does nothing. Nobody who
        sweeps waits for long: Stalled, where another is in the section.

        Args:
            slot: The slot of the dead.
            keep: Which blocks stay as they are.
            dead: Whether the slot is still that of the dead. Asked after a tag was
                read: where it says true, the tag was the dead one's.
            owner: The sweeper's own slot, 0 = it has none, and leaves to others what is
                to be given back.
        """
        freed = 0
        for size_class, index, tag in self._tags_of(slot):
            if not dead():
                break
            if tag & RETIRED:
                self._give_back(size_class, index, tag, owner, _SOON)
                continue
            if keep(self._cell(size_class, index, tag)):
                continue
            now = self._words[size_class.tags + index]
            if (now ^ tag) & ~((KINDS - 1) << KIND_SHIFT):
                continue
            # To ask can change the kind.
            freed += self._release(size_class, index, now, _SOON)
        self._inside(self._recount, deadline=_SOON)
        if owner and self._excess():
            self._trim(owner)
        return freed

    # Changes, each from outside the section

    def _release(self, size_class: SizeClass, index: int, tag: int, deadline: Deadline) -> bool:
        """Free a cell unless its tag is another by now; return whether it was this one."""
        free = tag & ~STATE | (WARM if size_class.cell_nbytes >= GIVE_BACK else 0)
        return self._inside(
            self._exchange, size_class, index, tag, free, deadline=deadline
        )  # A2 free

    def _excess(self) -> bool:
        """Return whether more is warm than may be: a part of the limit, and what it leaves over."""
        words = self._words
        warm = words[WARM_BYTES]
        return bool(warm and warm > min(self._keep, max(0, self._limit - words[BYTES_IN_USE])))

    def _trim(self, owner: int) -> None:
        """Give the memory of warm cells back, the longest ones first, while there is an excess.

        As long as nobody is in the way: the next call that trims goes on.
        """
        with contextlib.suppress(Stalled):
            self._finish_giving_back()
            self._trim_classes(owner, _SOON)

    def _finish_giving_back(self) -> None:
        """Make the cells cold that this process had given back when somebody was in the way."""
        for unfinished in tuple(self._unfinished):
            maker, *change = unfinished
            if maker == os.getpid():
                self._inside(self._exchange, *change, deadline=_SOON)  # A2 free
            with contextlib.suppress(ValueError):  # another thread was faster
                self._unfinished.remove(unfinished)

    def _trim_classes(self, owner: int, deadline: Deadline) -> None:
        for size_class in reversed(self.layout.classes):
            if not self._words[size_class.warm]:
                continue
            with contextlib.suppress(CorruptError):  # a damaged mark: for who allocates there
                for start, tags in self._chunks(size_class):
                    for index, tag in enumerate(tags, start):
                        if tag & (STATE | WARM) == WARM:
                            if not self._excess():
                                return
                            self._give_back(size_class, index, tag, owner, deadline)

    def _give_back(
        self, size_class: SizeClass, index: int, tag: int, owner: int, deadline: Deadline
    ) -> None:
        """Give back the memory of a cell, warm or retired, unless its tag is another by now."""
        cold = tag & ~(STATE | WARM)
        large = size_class.cell_nbytes >= GIVE_BACK
        if not owner or not large:
            new = cold | WARM * large
            self._inside(self._exchange, size_class, index, tag, new, deadline=deadline)
            return
        maker = os.getpid()
        # A warm cell that was scribbled may have generation 0, which no used one has.
        retired = (cold or 1 << GENERATION_SHIFT) | USED | RETIRED | owner
        change = (self._exchange, size_class, index, tag, retired)
        if not self._inside(*change, deadline=deadline):  # A3 retire
            return
        cold |= WARM
        nbytes, address = size_class.cell_nbytes, self._address + size_class.offset(index)
        try:
            # Locked pages cannot be given back; they are the cell's next user's.
            with contextlib.suppress(OSError):
                # The iterator asks and stores in one step, and no handler runs between that
                # and the call: the child of one that forked in here never gets to it.
                for pid in iter(os.getpid, 0):
                    if pid == maker:
                        libc.madvise(address, nbytes, _REMOVE)
                    break
            cold &= ~WARM
        finally:
            if os.getpid() == maker:  # the cell is not the child's, whose parent is at it
                change = (self._exchange, size_class, index, retired, cold)
                try:
                    self._inside(*change, deadline=deadline)  # A2 free
                except Stalled:
                    self._unfinished.append((maker, *change[1:]))
                    raise

    def _inside(
        self, change: Callable[..., Result], *arguments: object, deadline: Deadline = _FOR_EVER
    ) -> Result:
        """Call ``change`` in the section, whose counts are right then."""
        try:
            result: Result = inside(self._section, deadline, self._change, change, *arguments)
        except Reentered:
            raise BusyError(
                "arena is being changed by the code that this signal handler or finalizer "
                "interrupted; leave the handler first"
            ) from None
        return result

    def _change(self, change: Callable[..., Result], *arguments: object) -> Result:
        if self._words[JOURNAL]:
            self._recount()
        return change(*arguments)

    # Inside the section

    def _allocate(self, number: int, nbytes: int, kind: int, owner: int) -> Cell:
        words = self._words
        charge, in_use = max(nbytes, SMALLEST_CELL), words[BYTES_IN_USE]
        if in_use + charge > self._limit:
            raise ArenaFull(
                f"arena is at its limit: nbytes={nbytes}, in use={in_use}, limit={self._limit}; "
                "free blocks, or make the arena with a larger limit (Arena(limit=...))"
            )
        for size_class in self.layout.classes[number:]:
            index = self._free_cell(size_class)
            if index is not None:
                break
        else:
            raise ArenaFull(
                f"arena has no free cell of this length: nbytes={nbytes}, in use={in_use}, "
                f"limit={self._limit}, reserve={self.layout.reserved}; "
                "free blocks, or reserve more (Arena(reserve=...))"
            )
        at = size_class.tags + index
        tag = words[at]
        generation = ((tag >> GENERATION_SHIFT) + 1) % GENERATIONS or 1
        words[size_class.lengths + index] = nbytes
        words[JOURNAL] = size_class.number + 1
        words[at] = generation << GENERATION_SHIFT | kind << KIND_SHIFT | USED | owner  # A1 take
        words[size_class.cursor] = index + 1
        self._book(size_class, 1, charge, -bool(tag & WARM))
        return Cell(size_class.offset(index), nbytes, generation, kind)

    def _free_cell(self, size_class: SizeClass) -> int | None:
        words, tags = self._words, size_class.tags
        high = self._high_water(size_class)
        if words[size_class.used] < high:
            start = words[size_class.cursor]
            start = start if start < high else 0
            if words[size_class.warm]:
                for step in range(min(high, WARM_SEARCH)):
                    index = (start + step) % high
                    if words[tags + index] & (STATE | WARM) == WARM:  # A2 free
                        return index
            stop = min(start + SEARCH, high)
            for index in range(start, stop):
                if not words[tags + index] & STATE:  # A2 free
                    return index
            words[size_class.cursor] = stop
            if high == size_class.capacity:
                for index in range(high):
                    if not words[tags + index] & STATE:  # A2 free
                        return index
        while high < size_class.capacity:
            high += 1
            words[size_class.high_water] = high
            # Used only where the mark was damaged.
            if not words[tags + high - 1] & STATE:
                return high - 1
        return None

    def _exchange(self, size_class: SizeClass, index: int, tag: int, new: int) -> bool:
        """Store a tag where the old one still stands; count the cell where it is free now."""
        words, at = self._words, size_class.tags + index
        if words[at] != tag:
            return False
        blocks = -(not new & STATE and not tag & (RETIRED | WARM))
        warm = bool(new & (RETIRED | WARM)) - bool(tag & (RETIRED | WARM))
        if not blocks and not warm:
            words[at] = new  # A3 retire, A4 retag
            return True
        nbytes = max(min(words[size_class.lengths + index], size_class.cell_nbytes), SMALLEST_CELL)
        words[JOURNAL] = size_class.number + 1
        words[at] = new  # A2 free
        words[size_class.cursor] = index
        self._book(size_class, blocks, blocks * nbytes, warm)
        return True

    def _book(self, size_class: SizeClass, blocks: int, nbytes: int, warm: int) -> None:
        """Change the counts, and clear the journal."""
        words = self._words
        used = words[size_class.used] + blocks
        used_nbytes = words[size_class.used_nbytes] + nbytes
        in_use = words[BYTES_IN_USE] + nbytes
        cells = words[size_class.warm] + warm
        warm_bytes = words[WARM_BYTES] + warm * size_class.cell_nbytes
        if (
            0 <= used <= size_class.capacity
            and 0 <= used_nbytes <= in_use <= sys.maxsize
            and 0 <= cells <= size_class.capacity
            and 0 <= warm_bytes <= sys.maxsize
        ):
            words[size_class.used] = used
            words[size_class.used_nbytes] = used_nbytes
            words[BYTES_IN_USE] = in_use
            if warm:
                words[size_class.warm] = cells
                words[WARM_BYTES] = warm_bytes
            words[JOURNAL] = 0
        else:
            self._recount()

    def _recount(self) -> None:
        """Make the counts what the tags say, of the class in the journal or else of all."""
        words, classes = self._words, self.layout.classes
        number = words[JOURNAL]
        if not 0 < number <= len(classes):
            words[JOURNAL] = number = len(classes) + 1
        for size_class in classes[number - 1 : number] or classes:
            census = self._count(size_class)
            words[size_class.used] = census.blocks
            words[size_class.used_nbytes] = census.nbytes
            words[size_class.warm] = census.warm
        in_use = sum(words[size_class.used_nbytes] for size_class in classes)
        warm = sum(words[size_class.warm] * size_class.cell_nbytes for size_class in classes)
        words[BYTES_IN_USE] = min(in_use, sys.maxsize)
        words[WARM_BYTES] = min(warm, sys.maxsize)
        words[JOURNAL] = 0
