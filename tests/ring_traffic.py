"""Records that can be accounted for, and processes that put and take them in every way.

A record says who put it, which of theirs it is, and the checksum of the rest. Each
process keeps a log in shared memory, which outlives it; it says what is done only when
the call has returned, and what is begun before.
"""

from __future__ import annotations

import random
import struct
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from ipcmap import ClosedError, Mapping, Ring

HEADER = struct.Struct("<QQII")  # when it was made, number, producer, checksum
NUMBER_BITS = 40
BATCH = 8  # records at a time, at most

IDLE, GETTING, GETTING_MANY, LEASING, HOLDING, FREEING = range(6)


class Name(NamedTuple):
    """Which record it is."""

    producer: int
    number: int


def pack(name: Name, length: int, chance: random.Random) -> bytes:
    """Return a record with so many bytes behind its header."""
    return seal(name, chance.randbytes(length))


def seal(name: Name, body: bytes | memoryview) -> bytes:
    """Return a record with these bytes behind its header."""
    checksum = zlib.crc32(body)
    return HEADER.pack(time.monotonic_ns(), name.number, name.producer, checksum) + body


def unpack(record: bytes | memoryview) -> Name:
    """Return which record it is, once its content was found to be whole."""
    _, number, producer, checksum = HEADER.unpack_from(record)
    assert zlib.crc32(record[HEADER.size :]) == checksum, f"content of {producer}, {number}"
    return Name(producer, number)


def made_at(record: bytes | memoryview) -> int:
    """Return when it was made, a little before it was put, in nanoseconds of the monotonic clock."""
    made: int = HEADER.unpack_from(record)[0]
    return made


def check_order(sequence: Sequence[Name]) -> int:
    """Return how often a record of a producer came behind a later one of the same."""
    latest: dict[int, int] = {}
    back = 0
    for producer, number in sequence:
        back += int(number < latest.get(producer, -1))
        latest[producer] = number
    return back


class Log:
    """What one process did: written by it alone, and read by the test."""

    def __init__(self, entries: int) -> None:
        self._words = Mapping.anonymous(8 * (4 + entries)).view().cast("Q")

    # A producer's

    @property
    def begun(self) -> int:
        """How many records it began to put."""
        return self._words[0]

    @property
    def done(self) -> int:
        """How many it has put."""
        return self._words[1]

    def begin(self, number: int) -> None:
        """Say that it is about to put the records before ``number``."""
        self._words[0] = number

    def end(self) -> None:
        """Say that it has."""
        self._words[1] = self._words[0]

    # A consumer's

    @property
    def phase(self) -> int:
        """What it is, or was, about."""
        return self._words[2]

    @property
    def held(self) -> Name:
        """The record that it has leased, in the phases HOLDING and FREEING."""
        return self._name(self._words[3])

    @property
    def taken(self) -> list[Name]:
        """What it has taken, in this order."""
        return [self._name(word) for word in self._words[4 : 4 + self._words[1]]]

    @property
    def count(self) -> int:
        """How many it has put, or taken."""
        return self._words[1]

    def enter(self, phase: int, held: Name | None = None) -> None:
        """Say what it is about."""
        if held:
            self._words[3] = held.producer << NUMBER_BITS | held.number
        self._words[2] = phase

    def take(self, *names: Name) -> None:
        """Say that it has taken them."""
        done = self._words[1]
        for index, name in enumerate(names, 4 + done):
            self._words[index] = name.producer << NUMBER_BITS | name.number
        self._words[1] = done + len(names)
        self._words[2] = IDLE

    def _name(self, word: int) -> Name:
        return Name(word >> NUMBER_BITS, word & (1 << NUMBER_BITS) - 1)


def produce(
    ring: Ring, producer: int, log: Log, seed: int, last: int, stop: memoryview | None = None
) -> None:
    """Put records until there were ``last``, or a word says stop: one, many, or by a claim."""
    chance = random.Random(seed)
    number = 0
    while number < last and not (stop and stop[0]):
        many = min(chance.randrange(1, BATCH), last - number)
        batch = [
            pack(Name(producer, number + index), _length(chance), chance) for index in range(many)
        ]
        way = chance.randrange(3)
        number += many if way == 0 else 1
        log.begin(number)
        if way == 0:
            ring.put_many(batch)
        elif way == 1:
            ring.put(batch[0])
        else:
            with ring.claim(len(batch[0])) as view:
                view[:] = batch[0]
        log.end()


def consume(
    ring: Ring, log: Log, seed: int, ways: Sequence[int] = (GETTING, GETTING_MANY, LEASING)
) -> None:
    """Take records until the ring is closed and empty: one, many, or by a lease."""
    chance = random.Random(seed)
    try:
        while True:
            take(ring, log, chance.choice(ways))
    except ClosedError:
        log.enter(IDLE)


def take(ring: Ring, log: Log, way: int, timeout: float | None = None) -> None:
    """Take one or some, and note it afterwards."""
    log.enter(way)
    if way == GETTING:
        log.take(unpack(ring.get(timeout)))
    elif way == GETTING_MANY:
        log.take(*map(unpack, ring.get_many(BATCH, timeout)))
    else:
        with ring.lease(timeout) as view:
            name = unpack(view)
            log.enter(HOLDING, name)
            assert unpack(view) == name
            log.enter(FREEING)
        log.take(name)


def _length(chance: random.Random) -> int:
    """Return a length: mostly short, sometimes many times a ring of 4 KiB."""
    return chance.choice(
        [0, chance.randrange(100), chance.randrange(3000), chance.randrange(100_000)]
    )
