"""Records in blocks and leases when a process dies at any store: nothing is lost, nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count

import pytest

import ipcmap
from children import Fork, die
from ipcmap import Ring
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring_blocks import NO_SLOT
from ipcmap._deadline import Deadline
from ring_harness import Stores
from rings import blocks, drained

pytestmark = pytest.mark.usefixtures("collected")

LARGE = [bytes([number]) * 100 for number in range(1, 6)]  # of which the ring has the place
SMALL = [b"1", b"22", b"333", b"4444"]
CAPACITY = 128
HUGE = b"h" * (1 << 20)  # in a block whose memory is given back when it is freed

Call = Callable[[Ring], object]


def deaths(
    fork: Fork, call: Call, records: list[bytes], prepare: Call = lambda ring: None
) -> Iterator[Ring]:
    """Yield rings with these records, in each of which a process died at another store of a call.

    Until one completes it, before and after each store. Then nothing may be left of the ring.
    """
    ipcmap.default_arena().sweep()  # of what earlier tests left dead
    for before in (True, False):
        for store in count(1):
            at_first, ring = blocks(), Ring(CAPACITY)
            ring.put_many(records)
            fork(prepare, ring).wait()

            def die_at_a_store(
                ring: Ring = ring, store: int = store, before: bool = before
            ) -> None:
                Stores(store, before, die).watch(ring)
                call(ring)

            status = fork(die_at_a_store).wait()
            assert status in (0, -signal.SIGKILL), f"{store=} {before=}"
            ring._arena.sweep()
            yield ring
            goes_on(ring)
            ring.destroy()
            ring._arena.sweep()
            assert blocks() == at_first, f"{store=} {before=}"
            if status == 0:
                assert store > 1
                break


def goes_on(ring: Ring) -> None:
    """Check that a ring is empty and as good as new."""
    assert len(ring) == 0
    assert ring.statistics().backlog_records == 0
    for record in [*SMALL, *LARGE]:
        ring.put(record, 0)
        with ring.lease(0) as view:
            assert bytes(view) == record
        ring.put(record, 0)
        assert ring.get(0) == record


def die_in_a_lease(ring: Ring) -> None:
    """Take a record and end with it in hand."""
    with ring.lease(0):
        os._exit(0)


@pytest.mark.parametrize("record", [LARGE[0], HUGE], ids=["large", "huge"])
def test_a_producer_killed_at_any_store_of_a_large_put(record: bytes, fork: Fork) -> None:
    """Its record is whole or was never put; the others' are all there."""
    for ring in deaths(fork, lambda ring: Ring.put(ring, record), [LARGE[1], SMALL[0]]):
        ring.put(LARGE[2], 0)
        found = drained(ring)
        assert found in (
            [LARGE[1], SMALL[0], LARGE[2]],
            [LARGE[1], SMALL[0], record, LARGE[2]],
        )


def test_a_producer_killed_at_any_store_of_a_claim(fork: Fork) -> None:
    """As for a put; what was filled and not committed is freed."""

    def claim(ring: Ring) -> None:
        with ring.claim(100) as view:
            view[:] = LARGE[0]

    for ring in deaths(fork, claim, []):
        assert drained(ring) in ([], [LARGE[0]])


def test_a_producer_killed_at_any_store_of_put_many_with_large_records(fork: Fork) -> None:
    """A prefix is delivered."""
    records = [SMALL[0], LARGE[0], SMALL[1], LARGE[1]]
    for ring in deaths(fork, lambda ring: ring.put_many(records), []):
        found = drained(ring)
        assert found == records[: len(found)]


@pytest.mark.parametrize("record", [LARGE[0], HUGE], ids=["large", "huge"])
def test_a_consumer_killed_at_any_store_of_a_large_get(record: bytes, fork: Fork) -> None:
    """The one record of its get is in doubt."""
    rest = [LARGE[1], SMALL[0]]
    for ring in deaths(fork, Ring.get, [record, *rest]):
        assert drained(ring) in (rest, [record, *rest])


def test_a_consumer_killed_at_any_store_of_get_many_with_large_records(fork: Fork) -> None:
    """All of its batch is in doubt, and nothing else."""
    records = [LARGE[0], SMALL[0], LARGE[1], LARGE[2]]
    for ring in deaths(fork, lambda ring: ring.get_many(3), records):
        assert drained(ring) in (records, records[3:])


@pytest.mark.parametrize("record", [LARGE[0], SMALL[1], HUGE], ids=["large", "small", "huge"])
def test_a_consumer_killed_at_any_store_of_taking_a_lease_loses_nothing(
    record: bytes, fork: Fork
) -> None:
    """Whenever it dies, and with the lease open, the record comes again."""
    rest = [LARGE[1], SMALL[0]]
    for ring in deaths(fork, die_in_a_lease, [record, *rest]):
        assert sorted(drained(ring)) == sorted([record, *rest])


@pytest.mark.parametrize("record", [LARGE[0], SMALL[1], HUGE], ids=["large", "small", "huge"])
def test_a_consumer_killed_at_any_store_of_a_whole_lease(record: bytes, fork: Fork) -> None:
    """The record comes again until its block is freed."""

    def lease(ring: Ring) -> None:
        with ring.lease(0) as view:
            assert bytes(view) == record

    rest = [LARGE[1], SMALL[0]]
    for ring in deaths(fork, lease, [record, *rest]):
        assert sorted(drained(ring)) in (sorted(rest), sorted([record, *rest]))


@pytest.mark.parametrize("record", [LARGE[0], SMALL[1]], ids=["large", "small"])
def test_a_record_that_came_back_survives_the_next_holder(record: bytes, fork: Fork) -> None:
    """Killed at any store of leasing it again, or with that lease open, it comes once more."""
    for ring in deaths(fork, die_in_a_lease, [record, SMALL[0]], die_in_a_lease):
        assert sorted(drained(ring)) == sorted([record, SMALL[0]])


@pytest.mark.parametrize("record", [LARGE[0], SMALL[1]], ids=["large", "small"])
def test_a_record_that_came_back_is_in_doubt_in_the_hands_of_a_get(
    record: bytes, fork: Fork
) -> None:
    """And no other is."""

    def get(ring: Ring) -> None:
        ring._arena.sweep()
        ring.get(0)

    for ring in deaths(fork, get, [record, SMALL[0]], die_in_a_lease):
        assert sorted(drained(ring)) in (sorted([record, SMALL[0]]), [SMALL[0]], [record])


@pytest.mark.parametrize("record", [LARGE[0], SMALL[1]], ids=["large", "small"])
@pytest.mark.parametrize(
    "store", [25, *(pytest.param(store, marks=pytest.mark.stress) for store in (3, 28, 99))]
)
def test_a_sweeper_killed_at_any_store_is_completed_by_the_next(
    store: int, record: bytes, fork: Fork
) -> None:
    """Whatever the one that it buries was doing with its lease."""

    def lease(ring: Ring) -> None:
        Stores(store, True, die).watch(ring)
        die_in_a_lease(ring)

    for ring in deaths(fork, lambda ring: ring._arena.sweep(), [record, SMALL[0]], lease):
        assert sorted(drained(ring)) == sorted([record, SMALL[0]])


def test_a_process_killed_while_it_destroys_leaves_what_another_can_destroy(fork: Fork) -> None:
    """Its blocks go with it or with the ring."""
    records = [LARGE[0], SMALL[0], LARGE[1]]
    ipcmap.default_arena().sweep()  # of what earlier tests left dead
    for before in (True, False):
        for store in count(1):
            at_first, ring = blocks(), Ring(CAPACITY)
            ring.put_many(records)

            def destroy(ring: Ring = ring, store: int = store, before: bool = before) -> None:
                Stores(store, before, die).watch(ring)
                ring.destroy()

            status = fork(destroy).wait()
            ring._arena.sweep()
            with contextlib.suppress(ipcmap.StaleHandle):
                ring.destroy()
            assert blocks() == at_first, f"{store=} {before=}"
            if status == 0:
                break


def test_a_newcomer_never_moves_the_ring_back_to_a_lease_that_it_finished(fork: Fork) -> None:
    """It finds a lease taken and not finished, and behind it a record for which it needs a slot."""
    found = 0
    for store in count(1):
        ring = Ring(CAPACITY)
        ring.put_many([SMALL[0], LARGE[0]])

        def lease(ring: Ring = ring, store: int = store) -> None:
            Stores(store, False, die).watch(ring)
            die_in_a_lease(ring)

        def get_many(ring: Ring = ring) -> None:
            assert ring._core.get_many(5, Deadline(0)) == NO_SLOT
            assert ring._core._words[at.READ_POS] == 16

        status = fork(lease).wait()
        if ring._core._words[at.FIRST_RECORD] & at.KIND_BITS == at.TAKEN:
            found += 1
            assert fork(get_many).wait() == 0
        ring._arena.sweep()
        assert sorted(drained(ring)) == sorted([SMALL[0], LARGE[0]])
        ring.destroy()
        if status == 0:
            break
    assert found > 1
