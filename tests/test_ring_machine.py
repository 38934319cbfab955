"""Random calls of a ring beside a model: a deque of its records, and what is counted of them."""

from __future__ import annotations

import pickle
import queue
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, builds, integers, lists, none, one_of

from ipcmap import Arena, Ring, RingStatistics
from ipcmap.loans import Claim, Lease
from rings import blocks, drained

WINDOW = 1 << 18  # bytes at the front of a larger ring, in which a small backlog stays


def patterned(number: int, length: int) -> bytes:
    """Return ``length`` bytes that tell one record from another."""
    return (b"%d." % number * (length // 2 + 1))[:length]


def machine(
    ring_type: type[Ring], capacity: int, longest: int, scale: int
) -> type[RuleBasedStateMachine]:
    """Return a machine for rings of a capacity, and records of up to ``longest`` bytes."""
    inline = min(capacity // 2 - 8, 1 << 16)  # longer records travel in blocks
    records = builds(patterned, integers(0, 999), one_of(integers(0, 40), integers(0, longest)))

    def room_for(record: bytes | int) -> int:
        """Return the bytes of the ring that a record takes."""
        length = record if isinstance(record, int) else len(record)
        return 24 if length > inline else length + 15 & -8

    class Machine(RuleBasedStateMachine):
        """A ring, through two handles in turn, does what a deque does while there is room."""

        def __init__(self) -> None:
            super().__init__()
            self.arena = Arena(256 << 20)
            ring = ring_type(capacity, arena=self.arena)
            self.handles = deque[Ring]([ring, pickle.loads(pickle.dumps(ring))])
            self.model, self.puts, self.gets = deque[bytes](), 0, 0
            self.claims: list[tuple[Claim, memoryview, bytes]] = []
            self.leases: list[tuple[Lease, memoryview, bytes]] = []

        @property
        def ring(self) -> Ring:
            self.handles.rotate()
            return self.handles[0]

        def note_put(self, record: bytes) -> None:
            self.model.append(record)
            self.puts += 1

        def note_get(self) -> bytes:
            self.gets += 1
            return self.model.popleft()

        def check_full(self, record: bytes) -> None:
            """Full is right only if the record, and what might be left before it, does not fit."""
            assert self.ring.statistics().backlog_bytes + 2 * room_for(record) > capacity - 8

        @rule(record=records)
        def put(self, record: bytes) -> None:
            try:
                self.ring.put(record, 0)
            except queue.Full:
                self.check_full(record)
            else:
                self.note_put(record)

        @rule(batch=lists(records, max_size=12))
        def put_many(self, batch: list[bytes]) -> None:
            done = len(batch)
            try:
                self.ring.put_many(batch, 0)
            except queue.Full as error:
                done = error.put  # type: ignore[attr-defined]
                self.check_full(batch[done])
            for record in batch[:done]:
                self.note_put(record)

        @precondition(lambda self: self.model)
        @rule(wait=booleans())
        def get(self, wait: bool) -> None:
            assert self.ring.get(None if wait else 0) == self.note_get()

        @precondition(lambda self: not self.model)
        @rule()
        def get_nothing(self) -> None:
            with pytest.raises(queue.Empty):
                self.ring.get(0)
            with pytest.raises(queue.Empty):
                self.ring.get_many(timeout=0)
            with pytest.raises(queue.Empty):
                self.ring.lease(0).__enter__()

        @precondition(lambda self: self.model)
        @rule(most=one_of(none(), integers(1, 5)))
        def get_many(self, most: int | None) -> None:
            received = self.ring.get_many(most)
            assert 1 <= len(received) <= min(most or len(self.model), len(self.model))
            assert received == [self.note_get() for _ in received]

        @rule(record=records)
        def claim(self, record: bytes) -> None:
            claim = self.ring.claim(len(record), 0)
            view = claim.__enter__()
            view[:] = record
            self.claims.append((claim, view, record))

        @precondition(lambda self: self.claims)
        @rule(index=integers(0, 99), commit=booleans())
        def end_claim(self, index: int, commit: bool) -> None:
            claim, view, record = self.claims.pop(index % len(self.claims))
            assert bytes(view) == record
            try:
                if commit:
                    claim.__exit__(None, None, None)
                else:
                    claim.__exit__(ValueError, ValueError(), None)
            except queue.Full:
                self.check_full(record)
            else:
                if commit:
                    self.note_put(record)

        @precondition(lambda self: self.model)
        @rule()
        def lease(self) -> None:
            lease = self.ring.lease()
            view, record = lease.__enter__(), self.note_get()
            assert bytes(view) == record
            self.leases.append((lease, view, record))

        @precondition(lambda self: self.leases)
        @rule(index=integers(0, 99))
        def end_lease(self, index: int) -> None:
            lease, view, record = self.leases.pop(index % len(self.leases))
            assert bytes(view) == record
            lease.__exit__(None, None, None)

        @rule(times=integers(1, scale), length=integers(0, inline // 4))
        def turn_over(self, times: int, length: int) -> None:
            for number in range(times):
                self.put(patterned(number, length))
                if self.model:
                    self.get(wait=False)

        @invariant()
        def figures_are_exact(self) -> None:
            in_use = sum(map(room_for, self.model))
            statistics = self.ring.statistics()
            assert in_use <= statistics.backlog_bytes <= capacity - 8
            assert len(self.ring) == len(self.model)
            assert statistics == RingStatistics(
                capacity, statistics.backlog_bytes, len(self.model), self.puts, self.gets, 0, 0, 0
            )

        @invariant()
        def blocks_are_those_of_records_that_are_there(self) -> None:
            records = [*self.model, *(record for _, _, record in self.claims)]
            large = sum(len(record) > inline for record in records)
            assert blocks(self.arena) == 1 + large + len(self.leases)

        def teardown(self) -> None:
            while self.claims:
                self.end_claim(0, commit=False)
            while self.leases:
                self.end_lease(0)
            assert drained(self.ring) == list(self.model)
            assert blocks(self.arena) == 1

    return Machine


@pytest.mark.parametrize(
    ("capacity", "examples"),
    [(64, 40), (128, 30), (256, 40), (1024, 30), (1 << 20, 50)]
    + [
        pytest.param(capacity, 2000, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])
        for capacity in (64, 256, 1 << 20)
    ],
)
def test_a_ring_does_what_a_deque_does(capacity: int, examples: int, ring_type: type[Ring]) -> None:
    """Records from nothing to beyond what fits; every count, and every block, at every step."""
    longest, scale = (100_000, 60) if capacity > WINDOW else (2 * capacity, 5)

    run_state_machine_as_test(
        machine(ring_type, capacity, longest, scale),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_small_backlog_stays_at_the_front_of_a_large_ring(ring_type: type[Ring]) -> None:
    """A padding record sends it back to the beginning, and counts as bytes in use till it is passed."""
    ring = ring_type(4 * WINDOW)
    jumps = 0
    for number in range(1000):
        record = patterned(number, 1000)
        ring.put(record)
        statistics = ring.statistics()
        jumps += statistics.backlog_bytes > 2 * WINDOW
        assert (statistics.backlog_records, statistics.puts) == (1, number + 1)
        assert ring.get() == record

    assert jumps == 1000 * 1008 // WINDOW
