"""The ring: records of bytes from any number of producers to any number of consumers."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from ipcmap._core import reference_ring as engine
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_blocks import Hand
from ipcmap._core.reference_ring_waiting import DONE, Damaged
from ipcmap._core.reference_sections import Reentered
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.errors import CorruptError, StaleHandle
from ipcmap.listener import Listener
from ipcmap.loans import Attachment, Claim, Lease
from ipcmap.pages import byte_count
from ipcmap.ring_handle import RingHandle, bytes_of

__all__ = ["Ring", "RingStatistics"]

_FOR_EVER = Deadline(None)


@dataclass(frozen=True)
class RingStatistics:
    """A ring as it was: a snapshot, stale as soon as it is taken.

    Attributes:
        capacity: Bytes for records.
        backlog_bytes: Of these, in use: records, their headers, padding.
        backlog_records: Records to come: what ``len(ring)`` says.
        puts: Records ever put.
        gets: Records ever taken, leased ones included.
        waiting_producers: Threads that sleep until there is room; after a kill perhaps more.
        waiting_consumers: Threads that sleep until there is a record; likewise.
        recoveries: How often a section was inherited from a process that died in it.
    """

    capacity: int
    backlog_bytes: int
    backlog_records: int
    puts: int
    gets: int
    waiting_producers: int
    waiting_consumers: int
    recoveries: int


class Ring(RingHandle):
    """A bounded queue of bytes in shared memory, with many producers and many consumers.

    Made before a fork or sent by pickle, it is used by every process of the family and by
    all of their threads. Each record goes to one consumer, and those of one producer
    come in the order in which it put them. What :meth:`put` has returned from is delivered,
    whoever is killed; a call during which its own process is killed is in doubt.

    Args:
        capacity: Bytes for records, rounded up to a power of two from 64 on. A record
            takes its length, rounded up to 8, and 8 more; one of more than 64 KiB,
            or half of the capacity, takes 24, and its bytes a block of the arena.
        arena: Where its bytes are; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        ValueError: ``capacity`` is not 1 to 4 GiB.

    Example:
        >>> import os
        >>> ring = Ring()
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     ring.put(b"hello from the child")
        ...     os._exit(0)
        >>> ring.get()
        b'hello from the child'
        >>> _ = os.waitpid(pid, 0)
    """

    __slots__ = ()

    def __init__(self, capacity: SupportsIndex = 1 << 20, *, arena: Arena | None = None) -> None:
        asked = byte_count("capacity", capacity)
        if not 1 <= asked <= at.MAX_CAPACITY:
            raise ValueError(f"capacity must be 1 to {at.MAX_CAPACITY} bytes: capacity={asked}")
        rounded = max(at.MIN_CAPACITY, 1 << (asked - 1).bit_length())
        self._make(arena, engine.nbytes(rounded), at.RECORDS + at.HEADER)
        engine.initialise(self._memory, self._address, rounded)
        self._attach()

    # Producers

    def put(self, data: Any, timeout: float | None = None) -> None:
        """Append a record: a copy of the bytes of ``data``, none or many.

        Args:
            data: Any object with a contiguous buffer: bytes, bytearray, memoryview,
                array, ndarray.
            timeout: Seconds to wait for room; ``None`` = for ever, 0 = do not wait.

        Raises:
            ArenaFull: The record needs a block, and the arena is full.
            BusyError: Called from a signal handler that interrupted such a call.
            ClosedError: The ring is closed.
            CorruptError: Its bookkeeping is damaged.
            queue.Full: There was no room for it in time.
            RecordTooLarge: The arena can never have a block for it.
            StaleHandle: The ring was destroyed.
            TypeError: ``data`` has no buffer, or not a contiguous one.
        """
        if type(data) is not bytes:
            data = bytes_of(data)
        if timeout is None and len(data) <= self._inline:
            if self._words[self._tag_at] != self._tag:
                self._check()
            try:
                if self._try_put(data) == DONE or self._core.put_soon(data) == DONE:
                    return
            except (Damaged, Reentered) as error:
                raise self._told(error) from None
        self._put(data, Deadline(timeout))

    def put_many(self, records: Iterable[Any], timeout: float | None = None) -> None:
        """Append records in their order, many at a time; another's may come between them.

        If the process is killed meanwhile, the first of them are delivered: none, some or all.

        Raises:
            queue.Full: There was no room for all in time; its attribute ``put``, as that
                of every error raised here, says how many went in.
            TypeError: As :meth:`put`, and the rest as there; nothing was put then.
        """
        batch = [data if type(data) is bytes else bytes_of(data) for data in records]
        deadline, done = Deadline(timeout), 0
        large = [index for index, data in enumerate(batch) if len(data) > self._inline]
        try:
            for index in large:
                done = self._put_run(batch, done, index, deadline)
                self._put_large(batch[index], deadline)
                done += 1
            done = self._put_run(batch, done, len(batch), deadline)
        except Exception as error:
            error.put = getattr(error, "put", done)  # type: ignore[attr-defined]
            raise

    def claim(self, nbytes: SupportsIndex, timeout: float | None = None) -> Claim:
        """Return room for one record of ``nbytes`` bytes, to be filled in place.

        Its ``with`` block gives a writable memoryview. At the end of the block the
        record is put, which may wait for room as :meth:`put` does, with the same
        errors; an exception in the block aborts it. The ring is not held meanwhile.
        To enter the block may wait as well, where another changes the arena for so long.
        A claim that was opened before a fork belongs to the parent alone.

        Raises:
            BusyError: At the end: slices of the view, or arrays over it, are alive.
            RecordTooLarge: On entry: the arena can never have a block for it.
            ValueError: ``nbytes`` is negative.

        Example:
            >>> ring = Ring()
            >>> with ring.claim(5) as view:
            ...     view[:] = b"hello"
            >>> ring.get()
            b'hello'
        """
        length = byte_count("nbytes", nbytes)
        if length < 0:
            raise ValueError(f"length must not be negative: nbytes={length}")
        Deadline(timeout)  # refuses what is none now, and not when the record is full
        hand = Hand.empty()
        scratch: list[bytearray] = []

        def take() -> memoryview:
            if length <= self._inline:
                scratch.append(bytearray(length))
                return memoryview((ctypes.c_ubyte * length).from_buffer(scratch[0])).cast("B")
            return self._view_of(self._take_block(length, hand, Deadline(timeout)))

        def commit() -> None:
            if scratch:
                self._put(memoryview(scratch.pop()), Deadline(timeout))
            else:
                self._put_block(hand.cells[0], Deadline(timeout))

        def abort() -> None:
            scratch.clear()
            self._give_back(hand)

        return Claim(take, commit, abort)

    def attach_producer(self) -> Attachment:
        """Promise that this process will put something; the ring ends with the last promise.

        The ring is closed when the last of the attached producers has detached, left its
        ``with`` block, or died. To be used before the others could all be gone: a ring
        that has ended does not begin again.

        Raises:
            ClosedError: The ring is closed.

        Example:
            >>> ring = Ring()
            >>> with ring.attach_producer():
            ...     ring.put(b"all there is")
            >>> ring.get()
            b'all there is'
            >>> ring.get()  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ipcmap.errors.ClosedError: ...
        """
        self._check()
        with self._telling():
            cell = self._core.attach(_FOR_EVER)
        if cell is None:
            raise self._closed()

        def leave() -> None:
            try:
                self._check()
            except StaleHandle:
                self._core.forget(cell)
                return
            with self._telling():
                self._core.detach(cell, _FOR_EVER)

        return Attachment(leave)

    # Consumers

    def get(self, timeout: float | None = None) -> bytes:
        """Take the oldest record.

        Args:
            timeout: Seconds to wait for one; ``None`` = for ever, 0 = do not wait.

        Raises:
            BusyError: Called from a signal handler that interrupted such a call.
            ClosedError: The ring is closed, and empty.
            CorruptError: Its bookkeeping is damaged.
            queue.Empty: There was none in time.
            StaleHandle: The ring was destroyed.
        """
        if timeout is None:
            if self._words[self._tag_at] != self._tag:
                self._check()
            try:
                record = self._try_get()
                if type(record) is int:
                    record = self._core.get_soon(record)
            except (Damaged, Reentered) as error:
                raise self._told(error) from None
            if type(record) is bytes:
                return record
            if isinstance(record, Cell):
                return self._unloaded(record)
        return self._unloaded(self._wait_for(self._core.get, Deadline(timeout)))

    def get_many(
        self, max_records: SupportsIndex | None = None, timeout: float | None = None
    ) -> list[bytes]:
        """Take what is there, in one step: waits for the first record only.

        If the process is killed meanwhile, all of the batch is in doubt.

        Args:
            max_records: The most to take, ``None`` = all.
            timeout: Seconds to wait for the first; ``None`` = for ever, 0 = do not wait.

        Raises:
            ValueError: ``max_records`` is less than 1.
            queue.Empty: There was none in time; and the rest as :meth:`get`.
        """
        most = sys.maxsize if max_records is None else byte_count("max_records", max_records)
        if most < 1:
            raise ValueError(f"number of records must be 1 or more: max_records={most}")

        def attempt(deadline: Deadline) -> list[bytes | Cell] | int:
            return self._core.get_many(most, deadline)

        taken = self._wait_for(attempt, Deadline(timeout))
        if isinstance(taken, list):
            return self._unloaded_all(taken)
        return [self._unloaded(taken)]

    def lease(self, timeout: float | None = None) -> Lease:
        """Return the oldest record where it lies, for the time of a ``with`` block.

        On entry the record is taken out of the ring, which may wait and fail as :meth:`get`
        does; the block gives a read-only memoryview, and at its end the bytes are freed.
        If the process is killed inside the block, another consumer gets the record; where
        the ring was closed meanwhile, whoever asks once more. A lease that was opened
        before a fork belongs to the parent alone.

        Raises:
            BusyError: At the end: slices of the view, or arrays over it, are alive.

        Example:
            >>> ring = Ring()
            >>> ring.put(b"a large frame")
            >>> with ring.lease() as view:
            ...     bytes(view[8:])
            b'frame'
        """
        hand = Hand.empty()
        leased: list[Cell] = []

        def take() -> memoryview:
            leased.append(self._lease(hand, Deadline(timeout)))
            try:
                return self._view_of(leased[0]).toreadonly()
            except CorruptError:  # nobody can have it
                free()
                raise

        def free() -> None:
            self._end_lease(leased.pop())

        def give_back() -> None:
            leased.clear()
            self._give_back(hand)

        return Lease(take, free, give_back)

    def listen(self) -> Listener:
        """Return a descriptor that is readable when there may be a record, or the end.

        For ``select``, ``selectors`` and ``loop.add_reader``. Then call :meth:`get`,
        :meth:`get_many` or :meth:`lease` with ``timeout=0`` until it raises
        ``queue.Empty``: only then is the descriptor quiet again. It may be readable in vain,
        since another may have taken the record, and is so about once in a second.
        While nobody listens a :meth:`put` does nothing for it.

        Any number of processes and threads may listen and wait beside each other; all
        listeners are told of a record, and each record goes to one who asks. A producer
        reaches a listener through ``/proc``, whenever either was forked; where it may not,
        or is killed before it has, the listener is readable within a second.

        Raises:
            OSError: No descriptor is left, or there is no ``/proc``.
            StaleHandle: The ring was destroyed.

        Example:
            >>> import asyncio, queue
            >>> from ipcmap import ClosedError
            >>> ring, received = Ring(), []
            >>> async def receive():
            ...     loop, done = asyncio.get_running_loop(), asyncio.Event()
            ...     def get_all():
            ...         try:
            ...             while True:
            ...                 received.append(ring.get(timeout=0))
            ...         except queue.Empty:
            ...             pass
            ...         except ClosedError:
            ...             loop.remove_reader(listener)
            ...             done.set()
            ...     with ring.listen() as listener:
            ...         loop.add_reader(listener, get_all)
            ...         await done.wait()
            >>> ring.put(b"hello")
            >>> ring.close()
            >>> asyncio.run(receive())
            >>> received
            [b'hello']
        """
        self._check()
        with self._telling():
            return Listener(self, self._arena._id, self._core.for_records())

    # Facts and the end

    def __len__(self) -> int:
        """Return how many records are to come; it may be stale at once."""
        self._check()
        with self._telling():
            gets, puts = self._core.counts(_FOR_EVER)
            return puts - gets + self._core.count_returned()

    def __bool__(self) -> bool:
        return True

    @property
    def capacity(self) -> int:
        """Bytes for records."""
        return self._core.capacity

    @property
    def closed(self) -> bool:
        """Whether it was closed, by anyone; what is left can still be taken.

        Raises:
            StaleHandle: The ring was destroyed.
        """
        self._check()
        return self._core.is_closed()

    def statistics(self) -> RingStatistics:
        """Return what can be said of it in figures.

        Raises:
            CorruptError: Its bookkeeping is damaged.
            StaleHandle: The ring was destroyed.
        """
        self._check()
        with self._telling():
            gets, puts = self._core.counts(_FOR_EVER)
            backlog_bytes, producers, consumers, takeovers = self._core.glance()
            records = puts - gets + self._core.count_returned()
        return RingStatistics(
            self.capacity, backlog_bytes, records, puts, gets, producers, consumers, takeovers
        )

    def close(self) -> None:
        """End it for all: no more is put, what is there is taken. Twice is once.

        Whoever waits in a :meth:`put` gets :class:`ClosedError`, and so does whoever
        finds nothing left in a :meth:`get`.

        Raises:
            StaleHandle: The ring was destroyed.
        """
        self._check()
        with self._telling():
            self._core.close(_FOR_EVER)

    def destroy(self) -> None:
        """Close it, and free it for the whole family; every handle of it is stale then.

        Records that are left are gone. It must not be in use: a call that another thread
        or process is making meanwhile may end in any way. What no other process can
        have, before the first fork and the first pickle, is freed with its handle.

        Raises:
            BusyError: A signal handler interrupted a change of the ring or its arena.
            StaleHandle: It was destroyed before.
        """
        self.close()
        super().destroy()

    def __repr__(self) -> str:
        state = "destroyed"
        if self._is_good():
            state = "closed" if self.closed else "open"
            state += f", {self._core.backlog()} in use"
        return f"<ipcmap.Ring of {self.capacity} bytes: {state}>"
