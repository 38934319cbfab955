"""What stands between a ring's interface and its engine: waiting, blocks, and errors.

The engine makes one attempt at a time and returns codes; here they become waiting, and
exceptions. A large record travels in a block of the arena, written and read outside of
any section, so that it never holds up a small one.
"""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ipcmap._core import ring_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_blocks import NO_SLOT, Hand, TooSmall
from ipcmap._core.reference_ring_tally import RingTally
from ipcmap._core.reference_ring_waiting import (
    CLOSED,
    DONE,
    LARGEST,
    Damaged,
    Side,
    Stalled,
)
from ipcmap._core.reference_sections import Reentered
from ipcmap._core.stall_log import blame
from ipcmap._deadline import Deadline
from ipcmap.errors import ArenaFull, BusyError, ClosedError, CorruptError, RecordTooLarge
from ipcmap.listener import Key, Listener, rearm
from ipcmap.structure import Structure, free_left_behind, free_quietly, leave_behind

__all__ = ["RingHandle", "bytes_of"]

_FOR_EVER = Deadline(None)
_INLINE = 1 << 16  # bytes; longer records travel in blocks

Result = TypeVar("Result")


class Hands(Protocol):
    """What keeps the blocks that were taken and not done with."""

    def add(self, cell: Cell, again: bool) -> None:
        """Keep one; ``again`` = it was taken before."""

    def drop(self, cell: Cell) -> None:
        """Keep it no more, if it is kept."""


class RingHandle(Structure):
    """A ring as one process has it: the half of :class:`ipcmap.Ring` that nobody calls."""

    _kind = Kind.RING

    __slots__ = ("_core", "_inline", "_try_get", "_try_put")

    def _attach(self) -> None:
        with self._telling():
            self._core = RingTally(self._place_of_listened(), self._address)
        self._inline = min(self._core.longest, _INLINE)
        self._try_put, self._try_get = self._core.put, self._core.get

    @property
    def _key(self) -> Key:
        """What those listen to who wait for records."""
        return self._arena._id, self._cell.offset, self._cell.generation, at.CONSUMERS_SLEEPING

    def _listen_for_room(self) -> Listener:
        """Return a descriptor that is readable when there may be room, or the end.

        What is room for one record may be none for another, so only its owner knows what to
        arm it with: a read_pos from before a put of its own that found none.
        """
        self._check()
        with self._telling():
            return Listener(self, self._arena._id, self._core.for_room())

    # Waiting

    def _put(self, data: bytes | memoryview, deadline: Deadline) -> None:
        self._check()  # before a block is taken, perhaps where the ring was
        if len(data) > self._inline:
            self._put_large(data, deadline)
        else:
            self._offer(lambda: self._core.put(data, deadline), len(data) + 15 & -8, deadline)

    def _put_run(
        self, batch: list[bytes | memoryview], begin: int, end: int, deadline: Deadline
    ) -> int:
        """Put the records of a batch from ``begin`` on, none of which needs a block."""
        self._check()
        records, done = batch[begin:end], 0
        try:
            with self._telling(queue.Full):
                while done < len(records):
                    outcome, done = self._core.put_many(records, done, deadline)
                    if outcome != DONE:
                        need = len(records[done]) + 15 & -8
                        self._wait(self._core.producers, outcome, deadline, need)
        except Exception as error:
            error.put = begin + done  # type: ignore[attr-defined]
            raise
        return end

    def _put_large(self, data: bytes | memoryview, deadline: Deadline) -> None:
        hand = Hand.empty()
        try:
            cell = self._take_block(len(data), hand, deadline)
            self._core.record_in(cell)[:] = data
            self._put_block(cell, deadline)
        except BaseException:
            self._give_back(hand)
            raise

    def _put_block(self, cell: Cell, deadline: Deadline) -> None:
        core = self._core
        self._offer(lambda: core.put_block(cell, deadline), core.need_of_block, deadline)

    def _offer(self, attempt: Callable[[], int], need: int, deadline: Deadline) -> None:
        with self._telling(queue.Full):
            while (outcome := attempt()) != DONE:
                self._wait(self._core.producers, outcome, deadline, need)

    def _wait_for(
        self,
        attempt: Callable[[Deadline], Result | int],
        deadline: Deadline,
        hand: Hand | None = None,
    ) -> Result | Cell:
        """Return what an attempt takes, or a record that a dead holder had leased."""
        self._check()
        core, waited = self._core, False
        taken: Result | Cell | int
        seen: int | None = None  # what an attempt went by that found nothing
        kind = Kind.LEASED if hand else Kind.RECORD
        with self._telling(queue.Empty):
            try:
                while isinstance(taken := attempt(deadline), int):
                    if taken == NO_SLOT:
                        core.claim_slot()
                        continue
                    returned = core.take_returned(kind, hand, deadline)
                    if returned:
                        taken = returned
                        break
                    seen = taken
                    self._wait(core.consumers, seen, deadline)
                    seen, waited = None, True
            except Stalled:
                rearm(self._key, seen)
                raise
            if waited:
                core.pass_on()
            return taken

    def _wait(self, side: Side, outcome: int, deadline: Deadline, need: int = 0) -> None:
        """Wait after an attempt that did not come off; raise where there is no use in it."""
        core = self._core
        if outcome >= 0:
            outcome = core.wait(side, outcome, deadline, need)
        if outcome == DONE:
            return
        self._check()
        if outcome == CLOSED:
            # The end for a consumer, unless somebody died with a record in hand.
            if side is core.consumers:
                self._arena.sweep()
                if core.count_returned():
                    return
            raise self._closed()
        returned = core.count_returned()
        self._look_after_others()
        if side is core.consumers and core.count_returned() > returned:
            return  # a record for another attempt, also at the end of the time
        if not deadline.remaining():
            raise Stalled

    def _look_after_others(self) -> None:
        """Sweep, and free what could not be freed before: for whoever waits in vain."""
        self._arena._sweep_if_due()
        free_left_behind()

    def _lease(self, hand: Hand, deadline: Deadline) -> Cell:
        """Take a record as a block of one's own; whatever is raised, ``hand`` is to be given back."""
        copy: Cell | None = None

        def attempt(deadline: Deadline) -> Cell | TooSmall | int:
            return self._core.lease(copy, hand, deadline)

        while True:
            taken: Cell | TooSmall = self._wait_for(attempt, deadline, hand)
            if copy and taken != copy._replace(kind=Kind.LEASED):
                free_quietly(self._allocator, copy)  # B3 free
            if isinstance(taken, Cell):
                return taken
            try:
                copy = self._take_block(taken.nbytes - at.BLOCK_HEADER, hand, deadline, queue.Empty)
            except queue.Empty:
                rearm(self._key, None)
                raise

    def _end_lease(self, cell: Cell) -> None:
        """End a lease, and free its block."""
        ended: Cell | None = None
        try:
            ended = self._core.end_lease(cell)
            free_quietly(self._allocator, ended)  # B3 free
        except BaseException:
            # By a signal handler. What is done with must not come again; and its tag is not ours
            # to store any more once somebody may have freed it.
            free_quietly(self._allocator, ended or self._core.end_lease(cell))
            raise

    def _give_back(self, hand: Hand) -> None:
        """Give back what a call that is broken off has in hand, later where that is not possible now."""
        core = self._core
        if not core.give_back(hand):
            leave_behind(lambda: core.give_back(hand))

    # For queues

    def _put_within(self, most: int, data: bytes, deadline: Deadline) -> None:
        """Put a record when there are fewer than ``most``."""
        self._check()
        core = self._core
        if len(data) <= self._inline:
            self._offer_within(most, data, len(data) + 15 & -8, deadline)
            return
        hand = Hand.empty()
        try:
            cell = self._take_block(len(data), hand, deadline)
            core.record_in(cell)[:] = data
            self._offer_within(most, cell, core.need_of_block, deadline)
        except BaseException:
            self._give_back(hand)
            raise

    def _offer_within(self, most: int, record: bytes | Cell, need: int, deadline: Deadline) -> None:
        core = self._core
        with self._telling(queue.Full):
            while True:
                outcome, bound = core.put_within(most, record, deadline)
                if outcome == DONE:
                    return
                # Where the bound is in the way, room is not: wait until something is taken.
                self._wait(core.producers, outcome, deadline, LARGEST if bound else need)

    def _take_on_loan(self, deadline: Deadline, hands: Hands) -> bytes:
        """Take a record that stays leased, in these hands; broken off, it is given back."""
        hand = Hand.empty()
        cell: Cell | None = None
        try:
            cell = self._lease(hand, deadline)
            with self._telling():
                record = self._core.record_in(cell).tobytes()
            hands.add(cell, self._core.came_back(cell))
            return record
        except BaseException as error:
            if cell is not None:
                hands.drop(cell)
                if isinstance(error, CorruptError):  # nobody can have it
                    self._end_lease(cell)
                    raise
            self._give_back(hand)
            raise

    def _unfinished(self, arriving: int = 0) -> int:
        """Count the records that are in the ring, or on loan."""
        self._check()
        with self._telling():
            return self._core.unfinished(_FOR_EVER, arriving)

    # Blocks

    def _contents(self) -> list[Cell]:
        return self._core.contents() if hasattr(self, "_core") else []

    def _take_block(
        self,
        nbytes: int,
        hand: Hand,
        deadline: Deadline,
        stalled: type[Exception] = queue.Full,
    ) -> Cell:
        """Allocate a block for a record, and say in it whose it will be."""
        try:
            with self._telling(stalled):
                cell = self._arena._allocate(at.BLOCK_HEADER + nbytes, Kind.RECORD, deadline)
        except ArenaFull as error:
            largest = self._core.largest_record
            if nbytes <= min(largest, self._arena.limit - at.BLOCK_HEADER):
                raise
            raise RecordTooLarge(
                f"record can never fit the arena: nbytes={nbytes}, largest block={largest}, "
                f"limit={self._arena.limit}; make the ring in a larger one "
                "(Ring(arena=Arena(limit, reserve=...))), or send the record in parts"
            ) from error
        self._core.address_block(cell, 0, nbytes, hand.call)
        hand.cells.append(cell)
        return cell

    def _unloaded(self, record: bytes | Cell) -> bytes:
        """Return the bytes of a record, and free the block that it came in.

        Where there is no memory for them, the record comes again, as that of a dead holder.
        """
        if isinstance(record, bytes):
            return record
        done = True
        try:
            with self._telling():
                return self._core.record_in(record).tobytes()
        except MemoryError:
            done = False
            self._core.return_taken(record)
            raise
        finally:
            if done:  # whatever keeps the block from being freed now, the record is not lost
                free_quietly(self._allocator, record)  # B3 free

    def _unloaded_all(self, taken: list[bytes | Cell]) -> list[bytes]:
        """Return the bytes of records; those for which there is no memory come again."""
        records, failed = list[bytes](), None
        for record in taken:
            try:
                records.append(self._unloaded(record))
            except MemoryError as error:
                failed = error
        if failed and not records:
            raise failed
        return records

    def _view_of(self, cell: Cell) -> memoryview:
        """Return the record of a block, in a window of its own."""
        with self._telling():
            length = self._core.record_in(cell).nbytes
        begin = cell.offset + at.BLOCK_HEADER
        return self._arena._open().pages.window()[begin : begin + length]

    # Errors

    def _telling(self, stalled: type[Exception] = BusyError) -> _Telling:
        """Turn what the engine says into what a caller can understand."""
        return _Telling(self, stalled)

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, Reentered):
            return BusyError(
                "ring is in use by the code that this signal handler or finalizer interrupted: "
                f"pid={os.getpid()}; leave the handler first"
            )
        return CorruptError(f"ring is damaged: {error}; make another")

    def _closed(self) -> ClosedError:
        return ClosedError(
            f"ring is closed: {self._core.backlog()} of {self._core.capacity} bytes in use; make another"
        )


class _Telling:
    # No generator: its frame and contextlib's would keep each other, and all that called.

    __slots__ = ("_ring", "_stalled")

    def __init__(self, ring: RingHandle, stalled: type[Exception]) -> None:
        self._ring, self._stalled = ring, stalled

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, (Damaged, Reentered)):
            raise self._ring._told(error) from None
        if isinstance(error, Stalled):
            core = self._ring._core
            raise self._stalled(
                f"ring was not ready in time: {core.backlog()} of {core.capacity} bytes "
                f"in use{blame(error)}; wait longer, or see who is stopped or slow"
            ) from (error if error.section else None)


def bytes_of(data: Any) -> bytes | memoryview:
    """Return a record as single bytes, without a copy where that is possible."""
    try:
        view: memoryview = memoryview(data)
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(
            f"record must be bytes or have a buffer: type={type(data).__name__}; encode it "
            "(str.encode, pickle.dumps, ndarray.view('u1'))"
        ) from error
    if not view.c_contiguous:
        raise TypeError(
            f"record must be contiguous: shape={view.shape}, strides={view.strides}; pass a copy "
            "(numpy.ascontiguousarray(data), bytes(data))"
        )
    if "O" in view.format and "O" in re.sub(":.*?:", "", view.format):  # not in a field's name
        raise TypeError(
            f"record must hold no Python objects: format={view.format!r}; encode it (pickle.dumps)"
        )
    if not view.nbytes:
        return b""
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # items that memoryview cannot name
        return view.tobytes()
