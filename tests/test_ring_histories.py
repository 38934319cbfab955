"""Every short history of the reference engine's ring, broken off before every store, against a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring_waiting import DONE
from ipcmap._deadline import Deadline
from ring_harness import Ring, set_trap

CAPACITY = 64
NOW = Deadline(0)
Records = tuple[bytes, ...]


class Crash(Exception):
    """The process dies here."""


class State(NamedTuple):
    """The bytes of a ring, and the records that must be in it."""

    memory: bytes
    records: Records


def crash() -> None:
    """Break the call off."""
    raise Crash


def put(record: bytes) -> Callable[[Ring], tuple[Records, int]]:
    """Return an operation that puts one record: what it puts, and how many went in."""
    return lambda ring: ((record,), int(ring.put(record, NOW) == DONE))


def put_many(*records: bytes) -> Callable[[Ring], tuple[Records, int]]:
    """Return an operation that puts a batch."""
    return lambda ring: (records, ring.put_many(records, 0, NOW)[1])


def put_soon(record: bytes) -> Callable[[Ring], tuple[Records, int]]:
    """Return an operation that looks across and puts, in one visit of the section."""
    return lambda ring: ((record,), int(ring.put_soon(record) == DONE))


def get_soon(ring: Ring) -> Records:
    """Look across and take one record, in one visit of the section."""
    record = ring.get_soon(ring._words[at.SEEN_WRITE_POS])
    return (record,) if isinstance(record, bytes) else ()


def get(ring: Ring) -> Records:
    """Take one record."""
    record = ring.get(NOW)
    return (record,) if isinstance(record, bytes) else ()


def get_many(most: int) -> Callable[[Ring], Records]:
    """Return an operation that takes a batch."""

    def take(ring: Ring) -> Records:
        records = ring.get_many(most, NOW)
        return (
            ()
            if isinstance(records, int)
            else tuple(record for record in records if isinstance(record, bytes))
        )

    return take


PUTS: dict[Callable[[Ring], tuple[Records, int]], Records] = {
    put(b""): (b"",),
    put(b"nine byte"): (b"nine byte",),
    put(b"the longest record here."): (b"the longest record here.",),
    put_soon(b"soon"): (b"soon",),
    put_soon(b"the longest that is soon"): (b"the longest that is soon",),
    put_many(b"3 a", b"3 b"): (b"3 a", b"3 b"),
    put_many(b"1", b"twenty-four bytes, all..", b"eight...", b"8 more.."): (
        b"1",
        b"twenty-four bytes, all..",
        b"eight...",
        b"8 more..",
    ),
}
GETS: list[Callable[[Ring], Records]] = [get, get_soon, get_many(2), get_many(99)]
LOOKS: list[Callable[[Ring], object]] = [
    lambda ring: ring.wait(ring.producers, ring._words[at.SEEN_READ_POS], NOW, 32),
    lambda ring: ring.wait(ring.consumers, ring._words[at.SEEN_WRITE_POS], NOW),
    lambda ring: ring.counts(NOW),
]


class Histories:
    """Walks through all histories of a ring from one beginning."""

    def __init__(self, offset: int, number: int) -> None:
        self.ring = Ring(CAPACITY)
        self.words, self.memory = self.ring._words, self.ring._memory
        for word in (at.WRITE_POS, at.SEEN_WRITE_POS, at.READ_POS, at.SEEN_READ_POS):
            self.words[word] = offset
        self.words[at.PUTS] = number
        self.words[at.FIRST_RECORD + offset // 8] = number << at.NUMBER_SHIFT
        self.known = {State(bytes(self.memory), ())}
        self.crashes = 0

    def walk(self, depth: int) -> None:
        """Take every operation from every state that ``depth`` of them can reach."""
        frontier = list(self.known)
        for _ in range(depth):
            frontier = [after for state in frontier for after in self.after(state)]

    def after(self, state: State) -> list[State]:
        """Return the new states that one operation leads to, whole or broken off."""
        found: list[State] = []
        for operation, records in PUTS.items():
            self.every_crash(state, operation, records, found)
        for taker in GETS:
            self.every_crash(state, taker, None, found)
        for look in LOOKS:
            self.every_crash(state, look, (), found)
        return found

    def every_crash(
        self,
        state: State,
        operation: Callable[[Ring], object],
        puts: Records | None,
        found: list[State],
    ) -> None:
        """Run an operation whole, and broken off before each of its stores; check what is left."""
        store, crashed = 0, True
        while crashed:
            store += 1
            self.memory[:] = state.memory
            before = self.counts()
            remove = set_trap(self.ring, store, True, crash)
            try:
                result = operation(self.ring)
                crashed = False
            except Crash:
                result = None
                self.crashes += 1
            finally:
                remove()
            after = self.counts()
            records = state.records + (puts or ())[: after[1] - before[1]]
            taken = after[0] - before[0]
            if not crashed and puts is None:
                assert result == records[:taken]
            if not crashed and puts:
                assert isinstance(result, tuple)
                assert result[1] == after[1] - before[1]
            self.check(records[taken:], found)

    def counts(self) -> tuple[int, int]:
        """Return gets and puts as a journal that was broken off says, and change nothing."""
        saved = bytes(self.memory)
        counts = self.ring.counts(NOW)
        self.memory[:] = saved
        return counts

    def check(self, records: Records, found: list[State]) -> None:
        """See that the ring has just these records, unless that was seen before."""
        state = State(bytes(self.memory), records)
        if state in self.known:
            return
        self.known.add(state)
        found.append(state)
        assert self.ring.backlog() == len(records)
        assert tuple(self.ring.drain()) == records
        assert self.ring.push(b"the ring goes on", 0)
        assert self.ring.drain() == [b"the ring goes on"]
        self.memory[:] = state.memory


@pytest.mark.parametrize(
    ("offset", "number", "depth"),
    [
        (0, 0, 3),
        (40, 2**30 - 2, 3),
        *(
            pytest.param(offset, number, 4, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])
            for offset in range(0, CAPACITY, 8)
            for number in (0, 2**30 - 2)
        ),
    ],
)
def test_no_history_loses_doubles_or_miscounts_a_record(
    offset: int, number: int, depth: int
) -> None:
    """Whatever was broken off where: what was committed is there, once and in order."""
    histories = Histories(offset, number)
    histories.walk(depth)

    assert histories.crashes > 400
    assert len(histories.known) > 150
    print(f"{len(histories.known)} states, {histories.crashes} crashes")
