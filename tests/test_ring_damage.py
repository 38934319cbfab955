"""The reference engine's ring with scribbled bytes: an error, never a crash."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring_producers import RingProducers
from ipcmap._core.reference_ring_waiting import Damaged
from ipcmap._deadline import Deadline
from ring_harness import CAPACITY, Closed, Ring


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
