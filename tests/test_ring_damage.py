"""The reference engine's ring with scribbled bytes: an error, never a crash."""

from __future__ import annotations

import contextlib
import queue
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

import ipcmap
from children import Fork
from ipcmap import Arena, ClosedError, CorruptError, StaleHandle
from ipcmap._core import ring_layout as at
from ipcmap._core.layout import Kind
from ipcmap._core.reference_ring_producers import RingProducers
from ipcmap._core.reference_ring_waiting import Damaged
from ipcmap._deadline import Deadline
from ring_harness import CAPACITY, Closed, Ring

ARENA = Arena(64 << 20, reserve=256 << 20)  # its own: what is damaged may stay in it


def test_scribbled_bookkeeping_is_an_error_and_never_a_crash(chance: random.Random) -> None:
    """Any value in any word but the mutexes and semaphores: an error, a wait in vain, or bytes."""
    words = [*range(at.WRITE_POS, at.PUTS + 1), *range(at.READ_POS, at.CONSUMERS_TAKEOVERS)]
    words += [at.CONSUMERS_SLEEPING, at.PRODUCERS_SLEEPING, at.CAPACITY]
    outcomes: Counter[str] = Counter()
    for _ in range(3000):
        ring = Ring()
        for number in range(chance.randrange(4)):
            ring.push(bytes(number), 0)
        for _ in range(chance.randrange(1, 4)):
            index = chance.choice([*words, at.FIRST_RECORD + chance.randrange(CAPACITY // 8)])
            ring._words[index] = chance.choice(
                [
                    0,
                    1,
                    7,
                    8,
                    2**63,
                    2**64 - 1,
                    2**32,
                    chance.randrange(2**64),
                    chance.randrange(512),
                ]
            )
        many = partial(ring.push_many, [b"m" * 8] * 3, 0)
        take = partial(ring.get_many, 3, Deadline(0))
        for call in (
            partial(ring.push, b"x" * 40, 0),
            partial(ring.pull, 0),
            ring.drain,
            many,
            take,
        ):
            try:
                call()
                outcomes["answer"] += 1
            except Damaged:
                outcomes["damaged"] += 1
            except Closed:
                outcomes["closed"] += 1

    assert outcomes.total() == 15000
    assert outcomes["damaged"] > 1000


def test_a_damaged_capacity_is_refused_at_attach() -> None:
    """A process that attaches checks the figure against the memory it was given."""
    ring = Ring()
    for capacity in (0, 1, 63, 100, 512, 2**63):
        ring._words[at.CAPACITY] = capacity
        with pytest.raises(Damaged, match=f"capacity={capacity}"):
            RingProducers(ring._place, ring.address)


def test_a_write_position_out_of_reach_is_damage_and_no_full_ring() -> None:
    """A producer would wait for ever for room that cannot come."""
    ring = Ring()
    ring._words[at.WRITE_POS] = CAPACITY + 8

    with pytest.raises(Damaged):
        ring.push(b"x", 0)
    with pytest.raises(Damaged):
        ring.push_many([b"x"], 0)


# The public class

LARGE = b"L" * 200
LEGAL = (CorruptError, StaleHandle, ClosedError, queue.Full, queue.Empty)


def scribbled(ring: ipcmap.Ring, chance: random.Random) -> None:
    """Overwrite a few words of a ring, and of the blocks that have to do with it."""
    words = [*range(at.WRITE_POS, at.PUTS + 1), *range(at.READ_POS, at.CONSUMERS_TAKEOVERS)]
    words += [at.CONSUMERS_SLEEPING, at.PRODUCERS_SLEEPING, at.CAPACITY]
    words += [at.FIRST_RECORD + index for index in range(ring.capacity // 8)] * 2
    core, allocator = ring._core, ring._allocator
    kinds = range(Kind.RECORD, Kind.LEAVING + 1)
    cells = [cell for kind in kinds for cell in allocator.of_kind(kind)]
    ours = [cell for cell in cells if core.is_ours(cell)]
    for _ in range(chance.randrange(1, 5)):
        offset = chance.choice([cell.offset for cell in ours] or [0])
        usual = [0, 1, 7, 8, 64, 2**32, 2**63, 2**64 - 1, at.BLOCK | 16, at.TAKEN | 8, at.PADDING]
        wild = [chance.randrange(2**64), chance.randrange(512), offset, ring._cell.offset]
        value = chance.choice([*usual, *wild])
        if ours and chance.random() < 0.4:
            core._block(chance.choice(ours))[chance.randrange(8)] = value
        else:
            core._words[chance.choice(words)] = value


@pytest.mark.parametrize(
    "rounds", [600, pytest.param(6000, marks=[pytest.mark.stress, pytest.mark.timeout(1200)])]
)
def test_scribbled_words_come_out_of_every_method_as_an_error_that_it_names(
    rounds: int, chance: random.Random
) -> None:
    """Records in blocks, leases and attached producers included; no hang, and no other error."""
    outcomes: Counter[str] = Counter()
    for _ in range(rounds):
        ring = ipcmap.Ring(chance.choice([64, 128, 512]), arena=ARENA)
        attachment = ring.attach_producer()
        records = chance.choices([b"", b"small", LARGE], k=chance.randrange(4))
        lease, claim = ring.lease(0), ring.claim(200, 0)
        entered = 0
        with contextlib.suppress(queue.Full):
            ring.put_many(records, 0)
        if records and chance.random() < 0.5:
            lease.__enter__()
            entered = 1
        returned = list(ring._allocator.of_kind(Kind.LEASED))
        for cell in returned if chance.random() < 0.5 else []:
            ring._core.keeps(cell, ring._core._place.slot(), lambda: True, Deadline(0))
        claim.__enter__()
        scribbled(ring, chance)

        def lend(ring: ipcmap.Ring = ring) -> None:
            with ring.lease(0) as view:
                bytes(view)

        calls: list[Callable[[], object]] = [
            partial(ring.put, b"x" * chance.randrange(30), 0),
            partial(ring.put, LARGE, 0),
            partial(ring.put_many, [b"a", LARGE, b"b"], 0),
            partial(ring.get, 0),
            partial(ring.get_many, 3, 0),
            partial(ring.get_many, None, 0),
            lend,
            partial(len, ring),
            ring.statistics,
            ring.__repr__,
            partial(claim.__exit__, None, None, None),
            ring.attach_producer,
        ]
        chance.shuffle(calls)
        if entered:
            calls.append(partial(lease.__exit__, None, None, None))
        for call in [*calls, attachment.detach, ring.close, ring.destroy]:
            try:
                call()
                outcomes["answer"] += 1
            except LEGAL as error:
                outcomes[type(error).__name__] += 1
            except BaseException:
                print(call, records)
                raise

    assert outcomes["CorruptError"] > rounds / 2


@pytest.mark.parametrize("rounds", [60])
def test_a_sweep_passes_over_scribbled_rings(
    rounds: int, chance: random.Random, fork: Fork
) -> None:
    """Whoever died amid leases, claims and promises: it is buried, and nobody fails."""
    for _ in range(rounds):
        ring = ipcmap.Ring(128, arena=ARENA)
        ring.put_many([LARGE, b"small", LARGE], 0)

        def hold(ring: ipcmap.Ring = ring) -> None:
            ring.attach_producer()
            ring.put(LARGE, 0)
            ring.claim(200).__enter__()
            ring.lease(0).__enter__()
            ring.lease(0).__enter__()

        assert fork(hold).wait() == 0
        scribbled(ring, chance)

        assert ARENA.sweep() == 1
        with contextlib.suppress(*LEGAL):
            while True:
                ring.get(0)
        ring.destroy()
