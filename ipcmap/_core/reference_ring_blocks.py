"""Records that travel in blocks of the arena, and leases: who owns a block, whoever dies.

The ring carries the place of such a block; see ring_layout for its first words.

    RECORD     block of a record: filled by a producer, in the ring, or copied by a consumer
    LEASED     block of a record that a consumer has taken and not closed yet
    RETURNED   block of a record whose lease ended with its holder: to be delivered again

    the ring     owns it if read_pos <= its position < write_pos and the record there
                 names it, whatever its tag
    the family   owns it if it is RETURNED
    a process    owns it, else: the slot in its tag

Shared fields, all in the consumers' section
  returned   1 if there may be RETURNED blocks; a hint that is never too low
  lease_offset, lease_generation   the block into which a lease copies an inline record
  tag        of a block in the ring (reference_allocator), stored here without the
             allocator's section: nobody else may change it while the ring owns it
  again      of a block: 1 once its record came back from a dead holder; stored before L1
  call       of a block in hand: which call has it, as the threads of a process share
             its slot; a number that no other call of the process has, 0 = a get

Sync points, each at both of its ends
  B1 tag     producer: allocates the block (A1 of reference_allocator)
  B2 retag   consumer: its tag on a block that the ring still owns, before R2
             next consumer, sweep: the ring comes before the tag
  B3 free    consumer: after its copy, or after L3 (A2)
  L1 return  sweep: tag RETURNED of the family, after the hint
             consumer: looks for RETURNED blocks when the ring seems empty
  L2 pop     consumer: its own tag on a RETURNED block, one store
  L3 end     consumer: RECORD in its own tag on a LEASED block, one store, in no section:
             until its holder dies, nobody else changes the tag of a lease that was taken
             sweep: load of the tag; what is LEASED comes again
  J1 take    lease of an inline record: its kind in the ring is TAKEN, after the copy
             and `lease`; then the copy's tag is LEASED, then R2
             next to look at read_pos: finds TAKEN, so both are done, or done now

If a process dies (or a signal handler raises)
  before R1    the block is its own: the sweep of its slot frees it
  B2 to R2     the ring still owns the block: the next consumer retags it
  R2 to B3     it was the one record of an unfinished get, and the sweep frees it
  R2 to L3     it is LEASED, and the sweep returns it
  L3 to B3     the lease has ended, and the sweep frees it
  R2 to B3     for want of memory: it becomes LEASED, and is returned at once
  R2, then raised in the call of who listens for room: likewise, and an inline record
               is copied into a block for it
  before J1    the copy is its own, the record as it was
  J1 to R2     the next consumer, or the sweep, finishes the lease; then the sweep returns it
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ipcmap._core import ring_layout as at
from ipcmap._core.layout import WORD, Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_listeners import Place
from ipcmap._core.reference_ring_waiting import (
    CLOSED,
    DONE,
    NO_SLOT,
    Damaged,
    RingWaiting,
    Stalled,
)
from ipcmap._core.reference_sections import Reentered
from ipcmap._deadline import Deadline
from ipcmap.errors import ArenaFull, BusyError

__all__ = ["NO_SLOT", "Hand", "RingBlocks", "TooSmall"]

_calls = itertools.count(1)


class Hand(NamedTuple):
    """What one call has in hand, or may have: to be given back if it is broken off."""

    call: int
    cells: list[Cell]

    @classmethod
    def empty(cls) -> Hand:
        """Return that of a call which has nothing yet."""
        return cls(next(_calls), [])


class TooSmall(NamedTuple):
    """The block that was to take the copy of a record needs so many bytes."""

    nbytes: int


class RingBlocks(RingWaiting):
    """A ring whose records can be blocks, and can be leased."""

    def __init__(self, place: Place, address: int) -> None:
        """Attach to the ring of a block; ``address`` is where that begins."""
        begin = place.cell.offset
        super().__init__(place.memory[begin : begin + place.cell.nbytes], address)
        self._place = place

    need_of_block = at.HEADER + 2 * WORD  # bytes of the record that names a block

    # Producers

    def put_block(self, cell: Cell, deadline: Deadline) -> int:
        """Append the record in a block of one's own, which is addressed; outcomes as of ``put``."""
        outcome, sleepers = self._inside(
            self._producers_section, deadline, self._append_block, cell
        )
        if sleepers:
            self.wake_consumers(sleepers)  # P6 post, W3 call
        return outcome

    def _append_block(self, cell: Cell) -> tuple[int, int]:
        words = self._words
        write_pos = words[at.WRITE_POS]
        end = write_pos + self.need_of_block
        index = write_pos & self._mask
        if end > words[at.ROOM_END] or index + self.need_of_block > self.capacity:
            return (CLOSED if words[at.CLOSED] else words[at.SEEN_READ_POS]), 0
        first = at.FIRST_RECORD + (index >> 3)
        stub = words[first] & at.NUMBER_BITS
        self._block(cell)[at.B_POS] = write_pos
        words[first + 1], words[first + 2] = cell.offset, cell.generation
        words[first] = stub | at.BLOCK | 2 * WORD
        following = at.FIRST_RECORD + ((end & self._mask) >> 3)
        words[following] = stub + at.NUMBER_ONE & at.WORD_MASK
        words[at.WRITE_POS] = end  # R1 publish
        return DONE, words[at.CONSUMERS_SLEEPING]  # P5 look

    # Consumers, inside

    def _next_record(self, read_pos: int, seen: int) -> tuple[int, int, int]:
        """Return index, header and end of the record at ``read_pos`` or behind its padding.

        Where there is none after all, the header is -1 and the end where padding ends.
        A lease that was broken off is finished, and its record passed over.
        """
        words = self._words
        while read_pos != seen:
            index = read_pos & self._mask
            header = words[at.FIRST_RECORD + (index >> 3)]
            after = read_pos + ((header & at.LENGTH_MASK) + 15 & -8)
            if not 0 < seen - read_pos < self.capacity or read_pos & 7 or after > seen:
                raise Damaged(f"read_pos={read_pos}, write_pos={seen}, header={header:#x}")
            if index + after - read_pos > self.capacity:
                raise Damaged(f"record crosses the end: index={index}, header={header:#x}")
            kind = header & at.KIND_BITS
            if kind == at.TAKEN:
                self._finish_lease(after)
            elif kind != at.PADDING:
                return index, header, after
            elif after & self._mask:
                raise Damaged(f"padding ends early: index={index}, header={header:#x}")
            read_pos = after
        return 0, -1, read_pos

    def _take_unusual(self, read_pos: int, seen: int) -> tuple[bytes | Cell | int, int]:
        """Take what is no plain record: it, or the outcome, and what to store in read_pos."""
        index, header, after = self._next_record(read_pos, seen)
        if header == -1:
            return seen, after
        if header & at.KIND_BITS == at.BLOCK:
            owner = self._place.known()
            if not owner:
                return NO_SLOT, self._words[at.READ_POS]
            return self._retag(index, header, owner, Kind.RECORD, 0), after
        begin = at.RECORDS + at.HEADER + index
        return self._memory[begin : begin + (header & at.LENGTH_MASK)].tobytes(), after

    def _retag(self, index: int, header: int, owner: int, kind: int, call: int) -> Cell:
        """Put one's own tag on the block that a record names."""
        cell = self._named(index, header)
        if cell:
            cell = self._place.allocator.pass_on(cell, owner, kind)  # B2 retag
        if not cell:
            raise Damaged(f"record names no block: index={index}, header={header:#x}")
        self._block(cell)[at.B_CALL] = call
        return cell

    def _named(self, index: int, header: int) -> Cell | None:
        """Return the handle in a record, if that is what it is."""
        if header & (at.KIND_BITS | at.LENGTH_MASK) != at.BLOCK | 2 * WORD:
            return None
        if index + self.need_of_block > self.capacity:
            return None
        first = at.FIRST_RECORD + (index >> 3)
        return Cell(self._words[first + 1], 0, self._words[first + 2], Kind.RECORD)

    def _finish_lease(self, after: int) -> None:
        """Do what is left of a lease after J1: tag its copy, and pass over its record."""
        words, allocator = self._words, self._place.allocator
        copy = Cell(words[at.LEASE_OFFSET], 0, words[at.LEASE_GENERATION], Kind.RECORD)
        owner, kind = allocator.tag(copy)
        if kind == Kind.RECORD and owner:
            allocator.pass_on(copy, owner, Kind.LEASED)
        words[at.READ_POS] = after  # R2 consume

    # Leases

    def lease(self, copy: Cell | None, hand: Hand, deadline: Deadline) -> Cell | TooSmall | int:
        """Take the oldest record as a block of one's own.

        Args:
            copy: A block of one's own into which an inline record is copied.
            hand: Gets the block that the record names, before anything is changed.
            deadline: When to stop waiting for the section.

        Returns:
            The block, LEASED: ``copy``, or the record's own; or what ``get`` returns.
        """
        self._place.slot()
        leased, sleepers = self._inside(self._consumers_section, deadline, self._lease, copy, hand)
        if sleepers:
            self.wake_producers(sleepers)  # P6 post, W3 call
        return leased

    def _lease(self, copy: Cell | None, hand: Hand) -> tuple[Cell | TooSmall | int, int]:
        words, owner = self._words, self._place.known()
        read_pos, seen = words[at.READ_POS], words[at.SEEN_WRITE_POS]
        index, header, after = self._next_record(read_pos, seen)
        length = header & at.LENGTH_MASK
        leased: Cell | None
        if header == -1:
            words[at.READ_POS] = after  # R2 consume
            return seen, words[at.PRODUCERS_SLEEPING]
        if header & at.KIND_BITS == at.BLOCK:
            hand.cells.extend(filter(None, [self._named(index, header)]))
            leased = self._retag(index, header, owner, Kind.LEASED, hand.call)
        elif copy is None or copy.nbytes < at.BLOCK_HEADER + length:
            return TooSmall(at.BLOCK_HEADER + length), 0
        else:
            self.address_block(copy, after, length, hand.call)
            begin, target = at.RECORDS + at.HEADER + index, copy.offset + at.BLOCK_HEADER
            self._place.memory[target : target + length] = self._memory[begin : begin + length]
            words[at.LEASE_OFFSET], words[at.LEASE_GENERATION] = copy.offset, copy.generation
            words[at.FIRST_RECORD + (index >> 3)] = header | at.TAKEN  # J1 take
            leased = self._place.allocator.pass_on(copy, owner, Kind.LEASED)
            if leased is None:
                raise Damaged(f"the block for a lease is gone: offset={copy.offset}")
        words[at.READ_POS] = after  # R2 consume
        return leased, words[at.PRODUCERS_SLEEPING]  # P5 look

    def take_returned(self, kind: int, hand: Hand | None, deadline: Deadline) -> Cell | None:
        """Take the oldest record that a dead holder had leased, as a block of this kind."""
        if not self._words[at.RETURNED]:
            return None
        self._place.slot()
        found = self._returned()
        return self._inside(self._consumers_section, deadline, self._pop, found, kind, hand)

    def _returned(self) -> list[Cell]:
        """Find the RETURNED blocks of this ring, oldest first."""
        allocator = self._place.allocator
        cells = [
            cell
            for cell in allocator.of_kind(Kind.RETURNED)
            if self.is_ours(cell) and allocator.tag(cell) == (0, Kind.RETURNED)
        ]
        return sorted(cells, key=lambda cell: self._block(cell)[at.B_POS])

    def _pop(self, found: list[Cell], kind: int, hand: Hand | None) -> Cell | None:
        allocator = self._place.allocator
        for cell in found or self._returned():
            if allocator.tag(cell) == (0, Kind.RETURNED):
                self._block(cell)[at.B_CALL] = hand.call if hand else 0
                if hand:
                    hand.cells.append(cell)
                popped = allocator.pass_on(cell, self._place.known(), kind)  # L2 pop
                if popped is None:
                    raise Damaged(f"a returned record is no block: offset={cell.offset}")
                return popped
        if not self._returned():
            self._words[at.RETURNED] = 0
        return None

    # Blocks whose owner cannot go on

    def keeps(self, cell: Cell, owner: int, dead: Callable[[], bool], deadline: Deadline) -> bool:
        """Settle whose a RECORD or LEASED block is; ``False`` = its owner's, who is to free it.

        For the sweep of a dead slot, and for a call of our own that was broken off.

        Args:
            cell: The block.
            owner: The slot in its tag, as it was seen.
            dead: Whether the slot, or the call, is still the one that cannot go on.
            deadline: When to stop waiting for the section.
        """
        kept, sleepers = self._inside(
            self._consumers_section, deadline, self._judge, cell, owner, dead
        )
        if sleepers:
            self.wake_consumers(sleepers)  # P6 post, W3 call
        return kept

    def _judge(self, cell: Cell, owner: int, dead: Callable[[], bool]) -> tuple[bool, int]:
        words, allocator = self._words, self._place.allocator
        if allocator.tag(cell)[0] != owner:  # nor is it, where a damaged record named it
            return True, 0
        read_pos, seen = words[at.READ_POS], words[at.SEEN_WRITE_POS]
        self._next_record(read_pos, seen)  # finishes the lease of who died in one
        # Loaded before the record: what is published later was not seen as named.
        write_pos, read_pos = words[at.WRITE_POS], words[at.READ_POS]
        pos = self._block(cell)[at.B_POS]
        if read_pos <= pos < write_pos and not pos & 7:
            index = pos & self._mask
            named = self._named(index, words[at.FIRST_RECORD + (index >> 3)])
            if named and (named.offset, named.generation) == (cell.offset, cell.generation):
                return True, 0
        tag = allocator.tag(cell)
        if tag[0] != owner or not dead():
            return True, 0
        if tag[1] != Kind.LEASED:
            return False, 0
        self._block(cell)[at.B_AGAIN] = 1
        words[at.RETURNED] = 1
        allocator.pass_on(cell, 0, Kind.RETURNED)  # L1 return
        words[at.SEEN_WRITE_POS] = read_pos  # the next get is to look
        return True, words[at.CONSUMERS_SLEEPING]

    def end_lease(self, cell: Cell) -> Cell:
        """End the lease of a block, which is one's own to free from here on; return it so.

        However long somebody holds up the freeing, the record does not come again. It is not to
        be called again once the block was given to be freed: its tag may be another's then.
        """
        self._place.allocator.pass_on(cell, self._place.known(), Kind.RECORD)  # L3 end
        return cell._replace(kind=Kind.RECORD)

    def give_back(self, hand: Hand) -> bool:
        """Free the blocks of a call that was broken off, or return what it leased.

        What is the ring's, or another call's by now, stays. Return whether there is nothing
        more to do: ``False`` where a section was not to be had, and the hand has the rest.
        """
        try:
            while hand.cells:
                self._give_back(hand.cells[-1], hand.call)
                hand.cells.pop()
        except (Stalled, Reentered, BusyError):
            return False
        except Damaged:  # they stay until this process ends
            pass
        return True

    def _give_back(self, cell: Cell, call: int) -> None:
        def ours() -> bool:
            return bool(self._block(cell)[at.B_CALL] == call)

        allocator, ring = self._place.allocator, self._place.cell
        if allocator.tag(ring)[1] != ring.kind:  # destroyed: there is nothing to ask
            free = allocator.tag(cell)[0] == self._place.slot() and ours()
        else:
            free = not self.keeps(cell, self._place.slot(), ours, Deadline(0))
        if free:
            allocator.free(cell._replace(kind=allocator.tag(cell)[1]), Deadline(0))

    def return_taken(self, cell: Cell) -> None:
        """Have a record that was taken, and that cannot be delivered, come again."""
        hand = Hand.empty()
        with contextlib.suppress(BusyError):  # this process has it then until it ends
            self._block(cell)[at.B_CALL] = hand.call
            hand.cells.append(self._place.allocator.retag(cell, self._place.slot(), Kind.LEASED))
            self.give_back(hand)  # L1 return

    def return_all(self, taken: Sequence[bytes | Cell]) -> None:
        """Have the records of a get that is broken off come again, in their order.

        Where the arena has no block for one that was inline, this is lost with the call.
        """
        # Behind whatever came back of earlier ones; each of these took eight bytes at least.
        pos = self._words[at.READ_POS] - len(taken)
        with contextlib.suppress(ArenaFull, BusyError):
            for number, record in enumerate(taken, max(0, pos)):
                if isinstance(record, Cell):
                    self._block(record)[at.B_POS] = number
                    self.return_taken(record)
                else:
                    cell = self._place.allocator.allocate(
                        at.BLOCK_HEADER + len(record), Kind.RECORD
                    )
                    self.address_block(cell, number, len(record), 0)
                    self.record_in(cell)[:] = record
                    self.return_taken(cell)

    def contents(self) -> list[Cell]:
        """Take over the blocks of all records, from a ring that nobody uses any more."""
        words, owner = self._words, self._place.slot()
        cells = self._returned() if words[at.RETURNED] else []
        read_pos, write_pos = words[at.READ_POS], words[at.WRITE_POS]
        with contextlib.suppress(Damaged):
            while True:
                index, header, read_pos = self._next_record(read_pos, write_pos)
                if header == -1:
                    break
                if header & at.KIND_BITS == at.BLOCK:
                    cells.append(self._retag(index, header, owner, Kind.RECORD, 0))
        words[at.READ_POS] = words[at.SEEN_WRITE_POS] = write_pos
        return cells

    def claim_slot(self) -> None:
        """Make this process a member of the family, which can own a block."""
        self._place.slot()

    def count_returned(self) -> int:
        """Count the records that dead holders had leased, and that are to come again."""
        return len(self._returned()) if self._words[at.RETURNED] else 0

    @property
    def largest_record(self) -> int:
        """The most bytes that a block of this arena can carry."""
        return self._place.allocator.layout.classes[-1].cell_nbytes - at.BLOCK_HEADER

    # The first words of a block

    def address_block(self, cell: Cell, pos: int, length: int, call: int) -> None:
        """Say in a block which ring it has to do with, and in whose hand it is."""
        block, ring = self._block(cell), self._place.cell
        block[at.B_RING], block[at.B_RING_GENERATION] = ring.offset, ring.generation
        block[at.B_POS], block[at.B_NBYTES], block[at.B_CALL] = pos, length, call
        block[at.B_AGAIN] = 0

    def is_ours(self, cell: Cell) -> bool:
        """Return whether a block says that it has to do with this ring."""
        block, ring = self._block(cell), self._place.cell
        here = block[at.B_RING], block[at.B_RING_GENERATION]
        return here == (ring.offset, ring.generation)

    def came_back(self, cell: Cell) -> bool:
        """Return whether a consumer died that had leased the record of a block before."""
        return bool(self._block(cell)[at.B_AGAIN])

    def record_in(self, cell: Cell) -> memoryview:
        """Return the bytes of the record that a block carries."""
        nbytes = self._block(cell)[at.B_NBYTES]
        if nbytes > cell.nbytes - at.BLOCK_HEADER:
            raise Damaged(f"length of a record={nbytes}, block={cell.nbytes}")
        begin = cell.offset + at.BLOCK_HEADER
        return self._place.memory[begin : begin + nbytes]

    def _block(self, cell: Cell) -> memoryview:
        return self._place.memory[cell.offset : cell.offset + at.BLOCK_HEADER].cast("Q")
