"""The reference engine's ring: what goes in comes out, once, in order."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import binary

from children import Fork
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring_waiting import CLOSED, DONE
from ipcmap._deadline import Deadline
from ring_harness import CAPACITY, Closed, Ring


def test_records_come_out_as_they_went_in() -> None:
    """Order, content and length, over many wraps and every length that fits half the ring."""
    ring = Ring()
    records = [bytes([number % 251]) * (number % 121) for number in range(2000)]

    received = []
    for record in records:
        assert ring.push(record, 0)
        received.append(ring.pull(0))

    assert received == records
    assert ring.pull(0) is None
    assert ring.counts(Deadline(30)) == (2000, 2000)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 120])
def test_a_record_fits_at_every_offset_of_the_wrap(length: int) -> None:
    """Wherever the end of the ring would cut it, the record is whole, and so is the next."""
    for offset in range(0, CAPACITY, 8):
        ring = Ring()
        for _ in range(offset // 8):
            assert ring.push(b"", 0)
            assert ring.pull(0) == b""
        record = bytes(range(length))

        assert ring.push(record, 0)
        assert ring.drain() == [record]
        assert ring.push(b"next", 0)
        assert ring.drain() == [b"next"]


def test_a_full_ring_refuses_and_takes_again() -> None:
    """Capacity is what it says, less a word: seven records of 24 bytes and their headers."""
    ring = Ring()
    put = 0
    while ring.push(bytes([put]) * 24, 0):
        put += 1

    assert put == (CAPACITY - 8) // 32
    assert ring.pull(0) == bytes(24)
    assert ring.push(b"x" * 24, 0)
    assert not ring.push(b"x" * 24, 0)
    assert ring.drain() == [bytes([number]) * 24 for number in range(1, 7)] + [b"x" * 24]


class Model(RuleBasedStateMachine):
    """A ring does what a deque does, as long as there is room."""

    def __init__(self) -> None:
        super().__init__()
        self.ring, self.model = Ring(), deque[bytes]()

    @rule(data=binary(max_size=120))
    def put(self, data: bytes) -> None:
        """Put if there is room."""
        if self.ring.push(data, 0):
            self.model.append(data)
        else:
            assert self.model, "an empty ring has room for half of it"

    @precondition(lambda self: self.model)
    @rule()
    def get(self) -> None:
        """Get the oldest."""
        assert self.ring.pull(0) == self.model.popleft()

    @precondition(lambda self: not self.model)
    @rule()
    def get_nothing(self) -> None:
        """An empty ring has nothing."""
        assert self.ring.pull(0) is None

    @invariant()
    def counts_agree(self) -> None:
        """The backlog is exact."""
        assert self.ring.backlog() == len(self.model)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 1), (1, 4), (3, 3)])
def test_every_record_of_many_producers_reaches_one_of_many_consumers(
    producers: int, consumers: int, fork: Fork
) -> None:
    """Each once, whole, and in order for each producer as each consumer sees it."""
    ring, results, each = Ring(1024), Ring(1 << 20), 600

    def produce(name: int) -> None:
        for number in range(each):
            ring.push(b"%d %d " % (name, number) + b"." * (number % 90))

    def consume(name: int) -> None:
        try:
            while (record := ring.pull()) is not None:
                assert record.rsplit(b" ", 1)[1] == b"." * (int(record.split()[1]) % 90)
                results.push(b"%d " % name + record.rsplit(b" ", 1)[0])
        except Closed:
            return

    takers = [fork(consume, name) for name in range(consumers)]
    givers = [fork(produce, name) for name in range(producers)]
    assert [giver.wait() for giver in givers] == [0] * producers
    ring.end()
    assert [taker.wait() for taker in takers] == [0] * consumers

    received = [tuple(map(int, record.split())) for record in results.drain()]
    expected = Counter((name, number) for name in range(producers) for number in range(each))
    assert Counter((giver, number) for _, giver, number in received) == expected
    for taker in range(consumers):
        for giver in range(producers):
            seen = [n for t, g, n in received if (t, g) == (taker, giver)]
            assert seen == sorted(seen)


def test_threads_share_one_ring(chance: random.Random) -> None:
    """Two threads put and two get in one process; every record arrives once."""
    ring, each = Ring(), 300
    received: list[bytes] = []

    def produce(name: int) -> None:
        for number in range(each):
            ring.push(b"%d %d" % (name, number))

    def consume() -> None:
        try:
            while (record := ring.pull()) is not None:
                received.append(record)
        except Closed:
            return

    takers = [threading.Thread(target=consume) for _ in range(2)]
    givers = [threading.Thread(target=produce, args=(name,)) for name in range(2)]
    for thread in takers + givers:
        thread.start()
    for thread in givers:
        thread.join()
    ring.end()
    for thread in takers:
        thread.join()

    assert Counter(received) == Counter(b"%d %d" % (n, i) for n in range(2) for i in range(each))


@pytest.mark.parametrize("cpus", [1, 2])
def test_no_wake_up_is_lost_between_two_that_wait_for_each_other(cpus: int, fork: Fork) -> None:
    """Many round trips, on one processor where nobody spins, and on two."""
    there, back, rounds = Ring(), Ring(), 3000
    available = sorted(os.sched_getaffinity(0))[:cpus]

    def echo() -> None:
        os.sched_setaffinity(0, available)
        for _ in range(rounds):
            back.push(there.pull() or b"lost")

    def ask() -> None:
        os.sched_setaffinity(0, available)
        for number in range(rounds):
            there.push(b"%d" % number)
            assert back.pull() == b"%d" % number

    children = [fork(echo), fork(ask)]
    assert [child.wait() for child in children] == [0, 0]


def test_a_producer_waits_for_room(fork: Fork) -> None:
    """A ring far smaller than what goes through it slows its producer and loses nothing."""
    ring, count = Ring(64), 2000

    def produce() -> None:
        for number in range(count):
            ring.push(b"%d" % number)

    child = fork(produce)
    assert [ring.pull() for _ in range(count)] == [b"%d" % number for number in range(count)]
    assert child.wait() == 0


def test_record_numbers_wrap_without_a_seam(chance: random.Random) -> None:
    """The header keeps 30 bits of a count that has 64."""
    ring = Ring()
    ring._words[at.PUTS] = 2**40 - 5
    ring._words[at.FIRST_RECORD] = (2**30 - 5) << at.NUMBER_SHIFT
    records = [b"%d" % number for number in range(12)]

    assert ring.push_many(records[:9], 0) == 9
    assert ring.pull_many(7) == records[:7]
    assert ring.push_many(records[9:], 0) == 3
    assert ring.drain() == records[7:]
    assert ring.counts(Deadline(30)) == (2**40 + 7, 2**40 + 7)


def test_close_lets_consumers_take_what_is_left() -> None:
    """Committed records outlive the close; then, and for producers at once, it is over."""
    ring = Ring()
    ring.push(b"one")
    ring.push(b"two")
    ring.end()
    ring.end()

    with pytest.raises(Closed):
        ring.push(b"three")
    assert [ring.pull(), ring.pull()] == [b"one", b"two"]
    with pytest.raises(Closed):
        ring.pull()


@pytest.mark.parametrize("side", ["consumers", "producers"])
def test_close_wakes_all_who_wait(side: str, fork: Fork) -> None:
    """Nobody sleeps on in a closed ring."""
    ring = Ring(64)
    if side == "producers":
        while ring.push(b"full", 0):
            pass

    def wait() -> None:
        call = ring.pull if side == "consumers" else partial(ring.push, b"never")
        with pytest.raises(Closed):
            call()

    sleeping = at.CONSUMERS_SLEEPING if side == "consumers" else at.PRODUCERS_SLEEPING
    children = [fork(wait) for _ in range(3)]
    while ring._words[sleeping] < 3:
        os.sched_yield()
    ring.end()

    assert [child.wait() for child in children] == [0, 0, 0]


# What several processes of one side may do to each other


def test_a_record_that_a_sibling_saw_first_is_no_reason_to_wait() -> None:
    """An attempt that found nothing goes by what it saw, not by what is noted afterwards."""
    ring = Ring()
    mine = ring.get(Deadline(0))
    ring.push(b"one")
    ring.wait(ring.consumers, 0, Deadline(0))  # a sibling looks, and notes the record

    assert mine == 0
    assert ring.wait(ring.consumers, 0, Deadline(0)) == DONE
    assert ring.pull(0) == b"one"


def test_a_ring_that_is_closed_meanwhile_is_not_over_before_it_is_empty() -> None:
    """The end is only told to whoever saw all there was."""
    ring = Ring()
    assert ring.get(Deadline(0)) == 0
    ring.push(b"last")
    ring.wait(ring.consumers, 0, Deadline(0))
    ring.end()

    assert ring.wait(ring.consumers, 0, Deadline(0)) == DONE
    assert ring.pull(0) == b"last"
    assert ring.wait(ring.consumers, 16, Deadline(0)) == CLOSED


def test_room_that_a_sibling_saw_first_is_no_reason_to_wait() -> None:
    """As for records, so for room."""
    ring = Ring(64)
    while ring.push(b"", 0):
        pass
    mine = ring.put(b"", Deadline(0))
    ring.drain()
    ring.wait(ring.producers, mine, Deadline(0))

    assert ring.wait(ring.producers, mine, Deadline(0), 8) == DONE
    assert ring.push(b"x", 0)


@pytest.mark.parametrize("capacity", [64, 128, 1024])
def test_the_longest_record_fits_an_empty_ring_at_every_offset(capacity: int) -> None:
    """What is not longer than that never waits for ever."""
    for offset in range(0, capacity, 8):
        ring = Ring(capacity)
        for _ in range(offset // 8):
            ring.push(b"", 0)
            ring.pull(0)
        assert ring.push(bytes(ring.longest), 0)
        assert ring.pull(0) == bytes(ring.longest)


@pytest.mark.parametrize(
    ("side", "call"),
    [
        ("producers", lambda ring: ring.push(b"x", 0)),
        ("producers", lambda ring: ring.push_many([b"x"], 0)),
        ("producers", lambda ring: ring.pull(0)),  # looks across
        ("producers", Ring.backlog),
        ("producers", Ring.end),
        ("consumers", lambda ring: (ring.push(b"x", 0), ring.pull(0))),
        ("consumers", lambda ring: (ring.push(b"x", 0), ring.pull_many(1))),
        ("consumers", Ring.backlog),
        ("consumers", Ring.end),
    ],
)
def test_a_section_inherited_from_the_dead_is_counted_whoever_inherits_it(
    side: str, call: Callable[[Ring], object], fork: Fork
) -> None:
    """Once, and by the next to enter, whatever it is about."""
    ring = Ring()
    section = ring._producers_section if side == "producers" else ring._consumers_section
    assert fork(sections.trylock, section).wait() == 0

    call(ring)

    assert ring.glance()[3] == 1
