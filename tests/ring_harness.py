"""A ring of the reference engine with the loop around its attempts, and a trap for its stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipcmap
from children import die
from ipcmap import Semaphore
from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_ring_producers import RingProducers
from ipcmap._core.reference_ring_waiting import CLOSED, DONE, Side
from ipcmap._deadline import Deadline

CAPACITY = 256


class Closed(Exception):
    """The ring is closed, and for a consumer empty."""


class Ring(RingProducers):
    """The core of a ring in the default arena, with the loop around an attempt."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.handle = ipcmap.Ring(capacity)
        self.address = self.handle._address
        super().__init__(self.handle._core._place, self.address)

    def push(self, data: bytes, timeout: float | None = None) -> bool:
        """Put, waiting for room; False = none within ``timeout``."""
        deadline = Deadline(timeout)
        while (outcome := self.put(data, deadline)) != DONE:
            if not self.may_go_on(self.producers, outcome, deadline, len(data)):
                return False
        return True

    def pull(self, timeout: float | None = None) -> bytes | None:
        """Get, waiting for a record; None = none within ``timeout``."""
        deadline, waited = Deadline(timeout), False
        while not isinstance(record := self.get(deadline), bytes):
            assert isinstance(record, int)
            if not self.may_go_on(self.consumers, record, deadline):
                return None
            waited = True
        if waited:
            self.pass_on()
        return record

    def push_many(self, records: list[bytes], timeout: float | None = None) -> int:
        """Put them all, waiting for room; return how many went in within ``timeout``."""
        deadline, done = Deadline(timeout), 0
        while done < len(records):
            outcome, done = self.put_many(records, done, deadline)
            if outcome != DONE and not self.may_go_on(
                self.producers, outcome, deadline, len(records[done])
            ):
                break
        return done

    def pull_many(self, most: int) -> list[bytes]:
        """Get what is there, waiting for the first."""
        deadline, waited = Deadline(None), False
        while isinstance(taken := self.get_many(most, deadline), int):
            waited = self.may_go_on(self.consumers, taken, deadline)
        if waited:
            self.pass_on()
        return [record for record in taken if isinstance(record, bytes)]

    def may_go_on(self, side: Side, outcome: int, deadline: Deadline, length: int = 0) -> bool:
        """Wait after an attempt that did not come off; False = the time is over."""
        if outcome >= 0:
            outcome = self.wait(side, outcome, deadline, length + 15 & -8)
        if outcome == CLOSED:
            raise Closed
        return outcome == DONE or bool(deadline.remaining())

    def end(self) -> None:
        """Close it."""
        self.close(Deadline(30))

    def drain(self) -> list[bytes]:
        """Take all that is there."""
        return list(iter(lambda: self.pull(0), None))

    def backlog(self) -> int:
        """Count the records that were put and not taken."""
        gets, puts = self.counts(Deadline(30))
        return puts - gets


class Trap:
    """Memory that does something at one of its stores: ``before`` or after it."""

    def __init__(
        self, memory: memoryview, store: int, before: bool, act: Callable[[], object]
    ) -> None:
        self.memory, self.left, self.before, self.act = memory, store, before, act

    def __getitem__(self, index: Any) -> Any:
        return self.memory[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.before:
            self.act()
        self.memory[index] = value
        if self.left == 0 and not self.before:
            self.act()


def set_trap(ring: Ring, store: int, before: bool, act: Callable[[], object]) -> Callable[[], None]:
    """Act at the n-th store of a word from here on; return what takes the trap away."""
    stores = Stores(store, before, act)
    words, halves = ring._words, ring._halves

    def remove() -> None:
        ring._words, ring._halves = words, halves

    ring._words, ring._halves = stores.watched(words), stores.watched(halves)
    return remove


class Stores:
    """Stores of one process to a ring, to the blocks of its records and to their tags.

    Acts ``before`` or after the n-th, wherever that goes.
    """

    def __init__(self, store: int, before: bool, act: Callable[[], object]) -> None:
        self.left, self.before, self.act = store, before, act

    def watch(self, ring: ipcmap.Ring) -> None:
        """Count what this process stores from here on, also when it sweeps.

        Its allocator is the reference engine's then, on the same bytes.
        """
        core, arena = ring._core, ring._arena
        inside = arena._open()
        words = self.watched(inside.words)
        known = inside.allocator
        allocator = Allocator(
            inside.words, inside.pages.address, known.layout, arena.limit, inside.family.slot
        )
        allocator._words = words
        memory = self.watched(core._place.memory)
        place = core._place._replace(memory=memory, allocator=allocator)
        core._words, core._halves = self.watched(core._words), self.watched(core._halves)
        core._memory = self.watched(core._memory)
        core._place = place
        ring._allocator = allocator
        arena._inside = inside._replace(words=words, allocator=allocator)

    def watched(self, memory: memoryview) -> Any:
        """Return the memory, watched."""
        return Watched(memory, self)


def at_each_store(ring: ipcmap.Ring, store: int, before: bool, call: Callable[[], object]) -> None:
    """Make a call, and be killed at one of its stores."""
    Stores(store, before, die).watch(ring)
    call()


def put_and_die(
    ring: ipcmap.Ring, attached: Semaphore, armed: Semaphore, store: int, before: bool
) -> None:
    """Attach, wait, and be killed at a store of a put, in Python: its stores can be counted."""
    with ring.attach_producer():
        attached.release()
        armed.acquire()
        at_each_store(ring, store, before, lambda: ipcmap.Ring.put(ring, b"x"))


class Watched:
    """Memory whose stores are counted, and those through its slices."""

    def __init__(self, memory: memoryview, stores: Stores) -> None:
        self.memory, self.stores, self.nbytes = memory, stores, memory.nbytes
        self.tobytes, self.tolist = memory.tobytes, memory.tolist

    def __bytes__(self) -> bytes:
        return bytes(self.memory)

    def cast(self, form: Any) -> Watched:
        """Return the same as other items."""
        return Watched(self.memory.cast("B").cast(form), self.stores)

    def __getitem__(self, index: Any) -> Any:
        found = self.memory[index]
        return Watched(found, self.stores) if isinstance(found, memoryview) else found

    def __setitem__(self, index: Any, value: Any) -> None:
        stores = self.stores
        stores.left -= 1
        if stores.left == 0 and stores.before:
            stores.act()
        self.memory[index] = value.memory if isinstance(value, Watched) else value
        if stores.left == 0 and not stores.before:
            stores.act()
