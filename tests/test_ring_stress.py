"""Many producers and consumers of one small ring, killed, stopped and interrupted.

Every record is counted, in order, and whole; every block and slot is free in the end.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections import Counter
from functools import partial
from itertools import product
from types import FrameType

import pytest

from children import Child, Fork
from ipcmap import Arena, ClosedError, Mapping, Ring
from ring_harness import set_trap
from ring_traffic import (
    BATCH,
    FREEING,
    GETTING,
    GETTING_MANY,
    HOLDING,
    LEASING,
    Log,
    Name,
    check_order,
    consume,
    pack,
    produce,
    take,
    unpack,
)
from rings import blocks, drained

CROWDS = list(product([1, 2, 4, 8], repeat=2))
SMALL_CROWDS = [(1, 1), (4, 4), (8, 1), (1, 8)]
KILLS = 500  # for a ring alone; test_storm.py has more of everything


def members(arena: Arena) -> int:
    """Count the processes that have a slot."""
    arena.sweep()
    return len(arena._open().family.members())


@pytest.mark.parametrize(
    ("producers", "consumers", "each"),
    [(*crowd, 60) for crowd in SMALL_CROWDS]
    + [pytest.param(*crowd, 3000, marks=[pytest.mark.stress, pytest.mark.timeout(900)]) for crowd in CROWDS],
)  # fmt: skip
def test_every_record_reaches_one_consumer_in_order_and_whole(
    producers: int,
    consumers: int,
    each: int,
    ring_type: type[Ring],
    arena: Arena,
    chance: random.Random,
    fork: Fork,
) -> None:
    """By all ways to put and to take, with records of up to 100,000 bytes in 4 KiB."""
    ring = ring_type(4096, arena=arena)
    puts = [Log(0) for _ in range(producers)]
    takes = [Log(producers * each) for _ in range(consumers)]
    takers = [fork(consume, ring, log, chance.randrange(2**32)) for log in takes]
    givers = [
        fork(produce, ring, producer, log, chance.randrange(2**32), each)
        for producer, log in enumerate(puts)
    ]
    assert [child.wait() for child in givers] == [0] * producers
    ring.close()
    assert [child.wait() for child in takers] == [0] * consumers

    assert [log.done for log in puts] == [each] * producers
    received = Counter(name for log in takes for name in log.taken)
    assert received == Counter(Name(p, n) for p in range(producers) for n in range(each))
    assert [check_order(log.taken) for log in takes] == [0] * consumers
    statistics = ring.statistics()
    assert (statistics.puts, statistics.gets) == (producers * each,) * 2
    assert (blocks(arena), members(arena)) == (1, 1)


class Storm:
    """Producers and consumers of which random ones are killed, and replaced."""

    def __init__(
        self, ring: Ring, chance: random.Random, fork: Fork, ways: tuple[int, ...]
    ) -> None:
        self.ring, self.chance, self.fork, self.ways = ring, chance, fork, ways
        self.stop = Mapping.anonymous(8).view().cast("Q")
        self.puts: list[Log] = []
        self.takes: list[Log] = []
        self.alive: list[tuple[Child, Log, bool]] = []  # whether it is a producer
        self.stopped: list[Child] = []
        self.doubtful = 0  # records that may be lost: of unfinished calls
        self.again = 0  # records that may come again out of their order
        self.freed: set[Name] = set()  # and those of which the names are known

    def add(self, producer: bool) -> None:
        """Start one more."""
        seed = self.chance.randrange(2**32)
        if producer:
            log = Log(0)
            child = self.fork(produce, self.ring, len(self.puts), log, seed, 1 << 30, self.stop)
            self.puts.append(log)
        else:
            log = Log(1 << 18)
            child = self.fork(consume, self.ring, log, seed, self.ways)
            self.takes.append(log)
        self.alive.append((child, log, producer))

    def kill(self) -> None:
        """End one, and note what it may have taken with it."""
        child, log, producer = self.alive.pop(self.chance.randrange(len(self.alive)))
        child.kill()
        if not self.stopped:  # who may hold a section for as long as this process waits for it
            self.ring._arena.sweep()  # at once, with blocks of the dead in the ring
        if not producer:
            self.doubtful += {GETTING: 1, GETTING_MANY: BATCH}.get(log.phase, 0)
            self.again += int(log.phase in (LEASING, HOLDING, FREEING))
            if log.phase == FREEING:
                self.freed.add(log.held)
        self.stopped = [other for other in self.stopped if other is not child]
        self.add(producer)

    def go_on(self) -> None:
        """Let those continue that were stopped; perhaps stop another."""
        for child in self.stopped:
            os.kill(child.pid, signal.SIGCONT)
        self.stopped = []
        if self.chance.random() < 0.2:
            self.stopped.append(self.chance.choice(self.alive)[0])
            os.kill(self.stopped[0].pid, signal.SIGSTOP)

    def wait_for_progress(self, records: int) -> None:
        """Wait until so many more were taken, or for a moment."""
        until = sum(log.count for log in self.takes) + records
        give_up = time.monotonic() + 0.05
        while sum(log.count for log in self.takes[-8:]) < until and time.monotonic() < give_up:
            time.sleep(0.001)

    def end(self) -> list[Name]:
        """Let the living finish; return all that was taken."""
        for child in self.stopped:
            os.kill(child.pid, signal.SIGCONT)
        self.stop[0] = 1
        assert {child.wait() for child, _, producer in self.alive if producer} == {0}
        self.ring.close()
        assert {child.wait() for child, _, producer in self.alive if not producer} == {0}
        self.ring._arena.sweep()
        rest = [unpack(record) for record in drained_to_the_end(self.ring)]
        return [name for log in self.takes for name in log.taken] + rest


def drained_to_the_end(ring: Ring) -> list[bytes]:
    """Take all that is left in a closed ring."""
    records = []
    try:
        while True:
            records.append(ring.get())
    except ClosedError:
        return records


@pytest.mark.parametrize(
    "kills",
    [40, pytest.param(KILLS, marks=[pytest.mark.stress, pytest.mark.timeout(3600)])],
)
@pytest.mark.parametrize(
    "ways", [(GETTING, GETTING_MANY, LEASING), (LEASING,)], ids=["all ways", "leases"]
)
def test_a_storm_of_kills_loses_no_committed_record_no_block_and_no_slot(
    kills: int,
    ways: tuple[int, ...],
    ring_type: type[Ring],
    arena: Arena,
    chance: random.Random,
    fork: Fork,
) -> None:
    """What a put returned from is taken once, unless a killed get was about to return it.

    Leased records come again. A put that did not return went in or did not, a batch in part:
    the first of it.
    """
    ring = ring_type(4096, arena=arena)
    storm = Storm(ring, chance, fork, ways)
    for is_producer in (True, True, False) * 2:
        storm.add(is_producer)
    for _ in range(kills):
        storm.wait_for_progress(chance.randrange(1, 40))
        storm.go_on()
        storm.kill()
    taken = storm.end()

    assert len(taken) == len(set(taken)), "each once"
    numbers: dict[int, set[int]] = {producer: set() for producer in range(len(storm.puts))}
    for producer, number in taken:
        numbers[producer].add(number)
    lost = set()
    for producer, log in enumerate(storm.puts):
        assert max(numbers[producer], default=-1) < log.begun
        end = max([log.done - 1, *numbers[producer]]) + 1  # a batch goes in from its first on
        lost |= {Name(producer, number) for number in set(range(end)) - numbers[producer]}
    assert len(lost - storm.freed) <= storm.doubtful
    assert sum(check_order(log.taken) for log in storm.takes) <= storm.again
    statistics = ring.statistics()
    assert (len(ring), statistics.backlog_bytes) == (0, 0)
    assert statistics.puts == len(taken) + len(lost)
    assert (blocks(arena), members(arena)) == (1, 1)


@pytest.mark.parametrize("length", [50, 5000], ids=["inline", "block"])
@pytest.mark.parametrize("way", ["put", "get", "lease"])
@pytest.mark.parametrize("seconds", [0.2, pytest.param(2, marks=pytest.mark.stress)])
def test_who_is_stopped_in_a_section_delays_others_and_loses_nothing(
    way: str, length: int, seconds: float, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """A call with a timeout ends meanwhile; one without goes on when the holder does."""
    ring, told, record = ring_type(4096, arena=arena), ring_type(4096), bytes(length)
    ring.put_many([b"first", record])
    ring.get()

    def stop_inside() -> None:
        arena.allocate(1).free()  # a process without a slot claims one in the middle of a get
        stop = partial(os.kill, os.getpid(), signal.SIGSTOP)
        set_trap(ring._core, 1, True, stop)  # type: ignore[arg-type]
        # Whatever the others use, the one in the trap uses the methods that it is set for.
        if way == "put":
            Ring.put(ring, record)
        elif way == "get":
            assert Ring.get(ring) == record
        else:
            assert ring.lease().__enter__() == record

    def wait() -> None:
        if way == "put":
            ring.put(b"other")
        else:
            told.put(ring.get())

    child = fork(stop_inside)
    os.waitpid(child.pid, os.WUNTRACED)
    waiter = fork(wait)
    with pytest.raises(queue.Full if way == "put" else queue.Empty, match="see who is stopped"):
        ring.put(record, 0.3) if way == "put" else ring.get(0.3)
    time.sleep(seconds)
    assert told.statistics().puts == 0
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0
    if way != "put":
        ring.put(b"other")
    assert waiter.wait() == 0
    arena.sweep()

    legal = {
        "put": [[record, record, b"other"]],  # the holder had the section first
        "get": [[b"other"]],
        "lease": [[record, b"other"], [b"other", record]],  # its holder ended inside the block
    }
    assert drained(ring) + drained(told) in legal[way]
    assert (blocks(arena), members(arena)) == (1, 1)


class Raised(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize(
    "rounds", [1500, pytest.param(60_000, marks=[pytest.mark.stress, pytest.mark.timeout(900)])]
)
def test_handlers_that_raise_in_any_call_break_nothing(
    rounds: int, ring_type: type[Ring], arena: Arena, chance: random.Random, fork: Fork
) -> None:
    """What returned is in the ring; a call that raised did its work, or did not."""
    ring = ring_type(4096, arena=arena)
    sure = Mapping.anonymous(rounds)
    doubts = Mapping.anonymous(8 * 2).view().cast("Q")
    log = Log(rounds + BATCH)
    seed = chance.randrange(2**32)

    def work() -> None:
        random_calls(ring, random.Random(seed), rounds, sure.view(), doubts, log)

    assert fork(work).wait() == 0
    arena.sweep()
    taken = log.taken + [unpack(record) for record in drained(ring)]

    assert len(taken) == len(set(taken)), "each once"
    assert {name.number for name in taken} <= set(range(rounds))
    lost = {number for number in range(rounds) if sure[number]} - {n.number for n in taken}
    assert len(lost) <= doubts[0] + doubts[1]
    assert min(doubts[0], doubts[1], len(taken)) > 0, "some calls were interrupted, and some not"
    assert (len(ring), blocks(arena), members(arena)) == (0, 1, 1)


def random_calls(
    ring: Ring, chance: random.Random, rounds: int, sure: memoryview, doubts: memoryview, log: Log
) -> None:
    """Put and take in every way, while a handler raises at some moment of each call."""
    armed: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if armed:
            armed.clear()
            raise Raised

    def put(record: bytes, way: int) -> None:
        if way == 0:
            ring.put(record, 0)
        elif way == 1:
            ring.put_many([record], 0)
        else:
            with ring.claim(len(record), 0) as view:
                view[:] = record

    signal.signal(signal.SIGALRM, handle)
    for number in range(rounds):
        record = pack(Name(0, number), chance.choice([20, 5000]), chance)
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4))
            put(record, chance.randrange(3))
            armed.clear()
            sure[number] = 1
        except (Raised, queue.Full):
            armed.clear()
        before = len(ring)
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4))
            take(ring, log, chance.randrange(GETTING, LEASING + 1), 0)
            armed.clear()
        except queue.Empty:
            armed.clear()
        except Raised:
            # Not what is missing now: a lease that was broken off may have come back meanwhile.
            if log.phase in (GETTING, GETTING_MANY):
                doubts[0] += 1 if log.phase == GETTING else min(BATCH, before)
            doubts[1] += int(log.phase in (HOLDING, FREEING))
    signal.setitimer(signal.ITIMER_REAL, 0)
