"""Batches through the reference engine's ring: one commit, the same records."""

from __future__ import annotations

import random
import signal

import pytest

from children import Fork, die
from ipcmap._deadline import Deadline
from ring_harness import CAPACITY, Ring, set_trap


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_batches_come_out_as_they_went_in(most: int, chance: random.Random) -> None:
    """Lengths mixed and alike, over many wraps, in batches of other sizes than they went in."""
    ring, sent, received = Ring(), list[bytes](), list[bytes]()
    for _ in range(300):
        length = chance.choice([None, 0, 8, 13, 64])
        lengths = [
            chance.randrange(65) if length is None else length for _ in range(chance.randrange(9))
        ]
        batch = [chance.randbytes(length) for length in lengths]
        done = ring.push_many(batch, 0)
        sent += batch[:done]
        while ring.backlog() and chance.random() < 0.7:
            taken = ring.pull_many(most)
            assert len(taken) <= most
            received += taken
    while ring.backlog():
        received += ring.pull_many(most)

    assert len(sent) > 500
    assert received == sent
    assert ring.counts(Deadline(30)) == (len(sent), len(sent))


def test_single_records_and_batches_mix(chance: random.Random) -> None:
    """Whatever puts and whatever gets, the order is one."""
    ring, received, numbers = Ring(1024), list[bytes](), iter(range(10**6))
    sent = 0
    while sent < 2000:
        batch = [b"%d" % next(numbers) for _ in range(chance.randrange(1, 12))]
        put = (
            ring.push_many(batch, 0)
            if chance.random() < 0.5
            else sum(ring.push(b, 0) for b in batch)
        )
        assert put == len(batch)
        sent += put
        while ring.backlog():
            if chance.random() < 0.5:
                received += ring.pull_many(5)
            elif (record := ring.pull(0)) is not None:
                received.append(record)

    assert received == [b"%d" % number for number in range(sent)]


def test_a_batch_larger_than_the_ring_goes_through_it(fork: Fork) -> None:
    """put_many waits for room as often as it must."""
    ring, records = Ring(), [b"%d" % number * (number % 8) for number in range(3000)]

    child = fork(ring.push_many, records)
    received: list[bytes] = []
    while len(received) < len(records):
        received += ring.pull_many(100)

    assert received == records
    assert child.wait() == 0


def test_a_batch_that_runs_out_of_time_says_how_far_it_came() -> None:
    """A prefix went in, whole, and nothing after it."""
    ring, records = Ring(), [bytes([number]) * 24 for number in range(20)]

    assert ring.push_many(records, 0) == (CAPACITY - 8) // 32
    assert ring.push_many(records, 0) == 0
    assert ring.drain() == records[: (CAPACITY - 8) // 32]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", range(1, 4))
def test_a_producer_killed_at_any_store_of_put_many(store: int, before: bool, fork: Fork) -> None:
    """All of the batch or none of it."""
    ring, batch = Ring(), [b"a" * 8, b"b" * 8, b"c" * 8]
    ring.wait(ring.producers, 0, Deadline(0))  # the look at read_pos is not of the put

    def put() -> None:
        set_trap(ring, store, before, die)
        ring.push_many(batch, 0)

    assert fork(put).wait() == -signal.SIGKILL
    committed = store == 3 and not before
    ring.push(b"later", 0)
    expected = [*(batch if committed else []), b"later"]
    assert ring.backlog() == len(expected)
    assert ring.drain() == expected


@pytest.mark.parametrize("before", [True, False])
def test_a_consumer_killed_at_the_store_of_get_many(before: bool, fork: Fork) -> None:
    """The batch of its unfinished call is in doubt, and nothing else."""
    ring, batch = Ring(), [b"a", b"b", b"c", b"d"]
    ring.push_many(batch, 0)
    ring.wait(ring.consumers, 0, Deadline(0))

    def get() -> None:
        set_trap(ring, 1, before, die)
        ring.get_many(3, Deadline(0))

    assert fork(get).wait() == -signal.SIGKILL
    expected = batch if before else batch[3:]
    assert ring.backlog() == len(expected)
    assert ring.drain() == expected


def test_a_view_of_wide_items_is_refused_before_it_is_stored() -> None:
    """Its length in items is not its length in bytes, and would reach into the next record."""
    ring = Ring()
    ring.push(b"kept")
    wide = memoryview(bytes(24)).cast("Q")

    with pytest.raises(ValueError, match="single bytes"):
        ring.put_many([wide], 0, Deadline(0))
    assert ring.drain() == [b"kept"]


def test_lengths_that_never_repeat_cost_no_more_than_their_number() -> None:
    """Runs are tried only as far as the last ones carried."""
    ring = Ring(1 << 18)
    records = [b"x" * (7 + number % 2) for number in range(6000)]

    assert ring.push_many(records, 0) == 6000
    assert ring.pull_many(10_000) == records
