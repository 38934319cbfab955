"""What the processes of a storm do, each for ever, until they are told to stop or are killed.

Four kinds, which share one arena: they put and take records, guard counters by locks and
semaphores, and fill blocks. Each checks what it can see by itself, and notes in its journal
what only the account can check.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import random
import struct
from collections.abc import Callable
from typing import Any

from ipcmap import Arena, ArenaFull, Block, ClosedError, Lock, Mapping, Ring, Semaphore
from ring_traffic import BATCH, FREEING, GETTING, GETTING_MANY, HOLDING, IDLE, LEASING, Name, seal
from storm_account import ENTRIES, EVERY_EMPTY, Journal, read
from storm_report import sections

TOKENS = 2  # of the semaphore that lets in more than one
LIVES = 1 << 20  # how many processes a storm can have in all
LEFT, RIGHT, INSIDE, TAKEOVERS = range(4)  # words of a pair
STAMP = struct.Struct("<QQ")  # what a block is filled with: life, number of the block


class Pair:
    """Two counters that are raised together, under a guard that lets in one at a time."""

    def __init__(self, guard: Lock | Semaphore) -> None:
        self.guard = guard
        self.words = Mapping.anonymous(64).view().cast("Q")

    def raise_both(self, life: int, condemned: memoryview) -> None:
        """Raise both; whom this one inherits the guard from must have been killed inside."""
        words = self.words
        if before := words[INSIDE]:
            assert condemned[before], f"{life} and {before} are inside at a time"
            words[RIGHT] = words[LEFT]
            words[TAKEOVERS] += 1
        assert words[LEFT] == words[RIGHT], f"the counters differ: {words.tolist()}"
        words[INSIDE] = life
        words[LEFT] += 1
        os.sched_yield()
        words[RIGHT] += 1
        assert words[INSIDE] == life, f"{life} and {words[INSIDE]} are inside at a time"
        assert words[LEFT] == words[RIGHT], f"another one counts as well: {words.tolist()}"
        words[INSIDE] = 0


class Stage:
    """All that the processes share; made before the first of them."""

    def __init__(self, arena: Arena, ring: Ring, seats: int, chance: random.Random) -> None:
        self.arena, self.ring = arena, ring
        self.noise = memoryview(chance.randbytes(1 << 19))  # records are parts of it
        self.pairs = [Pair(Lock(arena=arena)), Pair(Semaphore(1, arena=arena))]
        self.gate = Semaphore(TOKENS, arena=arena)
        self.stop = Mapping.anonymous(8).view().cast("Q")
        self.condemned = Mapping.anonymous(LIVES).view()  # by life: 1 = about to be killed
        # By seat: who is inside the gate, and for the how manieth time.
        self.inside = Mapping.anonymous(8 * seats).view().cast("Q")

    def guards(self) -> list[Lock | Semaphore]:
        """Return all that can be held."""
        return [*(pair.guard for pair in self.pairs), self.gate]

    def sections(self) -> dict[str, memoryview]:
        """Return where the kernel keeps who is inside a section, as one number each."""
        return sections(self.arena, [self.ring, *self.guards()])


class Worker:
    """One life of a process: who it is, and its seat's journal."""

    def __init__(self, stage: Stage, seat: int, life: int, journal: Journal, seed: int) -> None:
        self.stage, self.seat, self.life, self.journal = stage, seat, life, journal
        self.chance = random.Random(seed)

    def live(self, work: Callable[[Worker], None]) -> None:
        """Work until the end; leave no descriptor behind."""
        before = sorted(os.listdir("/proc/self/fd"))
        work(self)
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before, "descriptors are left"

    def timeout(self) -> float | None:
        """Return how long to wait this time: mostly for ever."""
        return self.chance.choice([None, None, None, None, None, 0.0, 0.001, 0.05])


def produce(worker: Worker) -> None:
    """Put records, one, many, or by a claim."""
    ring, journal, chance = worker.stage.ring, worker.journal, worker.chance
    number = 0
    while not worker.stage.stop[0]:
        way, timeout = chance.randrange(3), worker.timeout()
        many = chance.randrange(1, BATCH) if way == 0 else 1
        batch = [_record(worker, number + index) for index in range(many)]
        journal.begin(number + many)
        try:
            if way == 0:
                ring.put_many(batch, timeout)
            elif way == 1:
                ring.put(batch[0], timeout)
            else:
                with ring.claim(len(batch[0]), timeout) as view:
                    view[:] = batch[0]
            number += many
        except (queue.Full, ArenaFull) as full:
            number += getattr(full, "put", 0)
            journal.begin(number)
        journal.end()
        journal.beat()


def _record(worker: Worker, number: int) -> bytes:
    """Return a record, from none to several times what goes into the ring itself."""
    if number % EVERY_EMPTY == EVERY_EMPTY - 1:
        return b""
    chance, inline, noise = worker.chance, worker.stage.ring._inline, worker.stage.noise
    length = chance.choice([0, 40, 40, 40, 40, 40, inline // 8, inline, 5 * inline])
    length = min(chance.randrange(length + 1), len(noise))
    begin = chance.randrange(len(noise) - length + 1)
    return seal(Name(worker.life, number), noise[begin : begin + length])


def consume(worker: Worker) -> None:
    """Take records until the ring has ended or the journal is full: one, many, or by a lease."""
    journal = worker.journal
    with contextlib.suppress(ClosedError):
        while journal.count + BATCH < ENTRIES:
            with contextlib.suppress(queue.Empty, ArenaFull):
                _take(worker, worker.chance.choice([GETTING, GETTING_MANY, LEASING]))
    journal.enter(IDLE)


def _take(worker: Worker, way: int) -> None:
    ring, journal, timeout = worker.stage.ring, worker.journal, worker.timeout()
    journal.enter(way)
    if way == GETTING:
        journal.take_at(read(ring.get(timeout)))
    elif way == GETTING_MANY:
        most = worker.chance.randrange(1, BATCH + 1)
        journal.take_at(*map(read, ring.get_many(most, timeout)))
    else:
        with ring.lease(timeout) as view:
            seen = read(view)
            journal.enter(HOLDING, seen.name)
            assert read(view) == seen
            journal.enter(FREEING)
        journal.take_at(seen)


def count(worker: Worker) -> None:
    """Raise a pair of counters, or pass the gate, again and again."""
    stage, journal, chance = worker.stage, worker.journal, worker.chance
    pair = stage.pairs[worker.seat % len(stage.pairs)]
    stage.inside[worker.seat] = 0
    passed = 0
    while not stage.stop[0]:
        timeout = worker.timeout()
        if chance.random() < 0.5:
            if not stage.gate.acquire(timeout=timeout):
                continue
            passed += 1
            _pass_gate(worker, passed)
            stage.gate.release()
        else:
            journal.begin(journal.done + 1)
            if not pair.guard.acquire(timeout=timeout):
                journal.begin(journal.done)
                continue
            pair.raise_both(worker.life, stage.condemned)
            pair.guard.release()
            journal.end()
        journal.beat()


def _pass_gate(worker: Worker, passed: int) -> None:
    """See how many others are inside at the same moment."""
    inside, condemned = worker.stage.inside, worker.stage.condemned
    inside[worker.seat] = worker.life << 40 | passed
    once = inside.tolist()
    os.sched_yield()
    # Each passage has its number: whoever is there twice was there between the two looks.
    twice = [one for one, other in zip(once, inside.tolist(), strict=True) if one == other]
    living = [one >> 40 for one in twice if one and not condemned[one >> 40]]
    assert len(living) <= TOKENS, f"{living} are inside at a time"
    inside[worker.seat] = 0


def fill(worker: Worker) -> None:
    """Allocate blocks, fill them, and see that nobody else writes to them."""
    arena, journal, chance = worker.stage.arena, worker.journal, worker.chance
    held: list[tuple[Block, bytes]] = []
    number = 0
    while not worker.stage.stop[0] or held:
        if len(held) < 12 and not worker.stage.stop[0]:
            nbytes = chance.choice([1, 64, 100, 5000, 70_000, 600_000])
            number += 1
            with contextlib.suppress(ArenaFull):
                block = arena.allocate(nbytes)
                pattern = _pattern(worker.life, number, nbytes)
                with block.view() as view:
                    view[:] = pattern
                held.append((block, pattern))
        if held and (chance.random() < 0.6 or worker.stage.stop[0]):
            block, pattern = held.pop(chance.randrange(len(held)))
            with block.view() as view:
                assert view == pattern, f"{block!r} was overwritten"
            block.free()
        if chance.random() < 0.05:
            with contextlib.suppress(ArenaFull):
                chance.choice([_look_on, _use_and_drop])(worker)
        journal.beat()


def _look_on(worker: Worker) -> None:
    """Ask for all that an onlooker can ask for."""
    stage = worker.stage
    statistics = stage.ring.statistics()
    assert 0 <= statistics.gets <= statistics.puts
    assert 0 <= statistics.backlog_bytes <= stage.ring.capacity
    assert 0 <= stage.gate.value <= TOKENS
    assert [repr(guard) for guard in stage.guards()]
    assert len(stage.ring) >= 0
    assert stage.arena.statistics().damaged == 0
    stage.arena.deaths()


def _use_and_drop(worker: Worker) -> None:
    """Make a ring, with a record in it and one in a block, and drop it full or destroy it."""
    ring = type(worker.stage.ring)(256, arena=worker.stage.arena)
    ring.put_many([b"in the ring", b"in a block" * 50])
    assert ring.get() == b"in the ring"
    if worker.chance.random() < 0.5:
        ring.destroy()


def _pattern(life: int, number: int, nbytes: int) -> bytes:
    return (STAMP.pack(life, number) * (nbytes // STAMP.size + 1))[:nbytes]


ROLES: dict[str, Any] = {"produce": produce, "consume": consume, "count": count, "fill": fill}
