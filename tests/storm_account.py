"""The books of a storm: which records were put, which came, and what explains a missing one.

A record may be missing for one reason only: somebody was killed in a call that was about to
return it. To count such calls would not do, since there are hundreds, and one real loss would
hide among them. So each missing record must have a call of its own that could have had it:

- It was put after the one before it, of the same producer, was made. Positions are in order, so
  it was taken before the call that took the next one had returned.
- The call began before that, and its process was dead after that.
- Who was killed in a lease had one record, which comes again: later, and out of its order.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from ring_traffic import (
    BATCH,
    FREEING,
    GETTING,
    GETTING_MANY,
    HOLDING,
    IDLE,
    LEASING,
    Log,
    Name,
    made_at,
    unpack,
)

EVERY_EMPTY = 16  # one record in so many is of 0 bytes
EMPTY = Name(0, 0)  # what is known of such a one; lives begin with 1
FOR_EVER = 1 << 63  # nanoseconds
ENTRIES = 1 << 16  # records that a consumer takes before it ends by itself
LIFE, BEAT, SINCE, TIMES = 0, 1, 2, 4  # words of a journal's second half


class Journal(Log):
    """What the one who has a seat does: its log, and the times of it."""

    def __init__(self) -> None:
        super().__init__(ENTRIES)
        self._more = Log(2 * ENTRIES)._words

    @property
    def beats(self) -> int:
        """How much was done: what has to grow while nobody is killed."""
        return self._more[BEAT]

    @property
    def since(self) -> int:
        """When the call began that is, or was, under way."""
        return self._more[SINCE]

    def begin_life(self) -> None:
        """Forget whoever had the seat before."""
        for word in range(TIMES):
            self._words[word] = self._more[word] = 0

    def beat(self) -> None:
        """Say that something was done."""
        self._more[BEAT] += 1

    def enter(self, phase: int, held: Name | None = None) -> None:
        """Say what it is about, and since when."""
        if phase in (GETTING, GETTING_MANY, LEASING):
            self._more[SINCE] = time.monotonic_ns()
        super().enter(phase, held)

    def take_at(self, *seen: Seen) -> None:
        """Say that it has taken them."""
        now = time.monotonic_ns()
        for index, (_, made) in enumerate(seen, self.count):
            self._more[TIMES + 2 * index] = made
            self._more[TIMES + 2 * index + 1] = now
        self.take(*(name for name, _ in seen))
        self.beat()

    def entries(self) -> Iterable[tuple[Name, int, int]]:
        """Return what was taken, when it was made, and when it was there."""
        times = self._more[TIMES : TIMES + 2 * self.count]
        return zip(self.taken, times[::2], times[1::2], strict=True)


class Seen(NamedTuple):
    """A record that came."""

    name: Name
    made: int  # when, in nanoseconds; 0 = it is empty and does not say


def read(record: bytes | memoryview) -> Seen:
    """Return which record it is, once its content was found to be whole."""
    if not len(record):
        return Seen(EMPTY, 0)
    return Seen(unpack(record), made_at(record))


class Call(NamedTuple):
    """A call whose process was killed in it."""

    begun: int
    died: int
    records: int  # that it may have had, at most

    def could_have(self, earliest: int, latest: int) -> bool:
        """Tell whether it was under way at some moment of these."""
        return self.begun <= latest and earliest <= self.died


class Records:
    """The records of one producer, by their numbers."""

    def __init__(self) -> None:
        self.begun = self.done = 0
        self.made, self.taken = array("Q"), array("Q")  # nanoseconds; taken at 0 = never

    def take(self, number: int, made: int, taken: int) -> None:
        """Note that one came."""
        if short := number + 1 - len(self.made):
            for times in (self.made, self.taken):
                times.extend([0] * max(short, 0))
        assert not self.taken[number], f"record {number} came twice"
        self.made[number], self.taken[number] = made, taken

    def committed(self) -> int:
        """Return how many certainly were put: a batch goes in from its first on."""
        return max(self.done, len(self.made))

    def missing(self) -> list[tuple[int, int, int]]:
        """Return the numbers of those that never came, and the first and last moment to take them."""
        gone = []
        end = self.committed()
        self.made.extend([0] * (end - len(self.made)))
        self.taken.extend([0] * (end - len(self.taken)))
        latest = FOR_EVER
        for number in reversed(range(end)):
            if self.taken[number]:
                latest = self.taken[number]
            elif number % EVERY_EMPTY != EVERY_EMPTY - 1:
                gone.append((number, latest))
        earliest, at = 0, 0
        found = []
        for number, latest in reversed(gone):
            for before in range(at, number):
                earliest = self.made[before] or earliest
            at = number
            found.append((number, earliest, latest))
        return found


class Account:
    """All that was put and taken, and the calls in doubt."""

    def __init__(self) -> None:
        self.by_producer: dict[int, Records] = {}
        self.calls: list[Call] = []
        self.leases: list[Call] = []  # of killed ones: what they had came again
        self.freed: set[Name] = set()  # leases whose end was under way: gone, or here again
        self.returned: set[Name] = set()  # leases that certainly come again
        self.taken = self.empty = self.out_of_order = 0

    def settle_producer(self, life: int, journal: Journal) -> None:
        """Take over what a producer said that it began, and did."""
        records = self.by_producer.setdefault(life, Records())
        records.begun, records.done = journal.begun, journal.done

    def settle_consumer(self, journal: Journal, died: int | None) -> None:
        """Take over what a consumer had; ``died`` is when, if it was killed."""
        latest: dict[int, int] = {}
        for (producer, number), made, taken in journal.entries():
            self._take(Name(producer, number), made, taken)
            if producer:
                self.out_of_order += number < latest.get(producer, -1)
                latest[producer] = max(number, latest.get(producer, -1))
        if died is None or journal.phase == IDLE:
            return
        call = Call(journal.since, died, BATCH if journal.phase == GETTING_MANY else 1)
        if journal.phase in (GETTING, GETTING_MANY):
            self.calls.append(call)
            return
        self.leases.append(call)
        if journal.phase == HOLDING:
            self.returned.add(journal.held)
        elif journal.phase == FREEING and journal.held == EMPTY:
            self.calls.append(call)
        elif journal.phase == FREEING:
            self.freed.add(journal.held)

    def settle_rest(self, records: Iterable[bytes]) -> None:
        """Take over what was left in the end."""
        for record in records:
            self._take(*read(record), time.monotonic_ns())

    def _take(self, name: Name, made: int, taken: int) -> None:
        self.taken += 1
        if name == EMPTY:
            self.empty += 1
        else:
            self.by_producer.setdefault(name.producer, Records()).take(name.number, made, taken)

    def check(self, puts: int) -> int:
        """Assert that every record is accounted for, of so many put; return how many are gone."""
        for producer, records in self.by_producer.items():
            assert len(records.made) <= records.begun, f"a record that {producer} never put came"
        assert self.out_of_order <= len(self.leases), "out of order: no lease explains it"
        missing = self._missing()
        gone = _match(list(missing.values()), self.calls)
        names = [name for number, name in enumerate(missing) if number in gone]
        assert not names, f"lost, and no killed call could have had them: {names}"
        freed = self._freed()
        empty_gone = puts - self.taken - len(missing) - freed
        room = sum(call.records for call in self.calls) - len(missing)
        assert 0 <= empty_gone <= room, f"{empty_gone} empty records are gone, room for {room}"
        numbers = [(records.committed(), records.begun) for records in self.by_producer.values()]
        surely, perhaps = (sum(n // EVERY_EMPTY for n in ns) for ns in zip(*numbers, strict=True))
        assert surely <= self.empty + empty_gone <= perhaps, "empty records do not add up"
        return len(missing) + freed + empty_gone

    def _freed(self) -> int:
        came = self.by_producer
        return sum(not _came(came, name) for name in self.freed)

    def _missing(self) -> dict[Name, tuple[int, int]]:
        """Return what never came and was not freed, and when it can have been taken."""
        missing = {}
        for producer, records in self.by_producer.items():
            for number, earliest, latest in records.missing():
                name, last = Name(producer, number), latest
                if name in self.freed:
                    continue
                again = (call.could_have(earliest, latest) for call in self.leases)
                if name in self.returned or any(again):
                    last = FOR_EVER
                missing[name] = (earliest, last)
        return missing


def _came(by_producer: dict[int, Records], name: Name) -> bool:
    records = by_producer.get(name.producer)
    return bool(records and name.number < len(records.taken) and records.taken[name.number])


def _match(times: list[tuple[int, int]], calls: list[Call]) -> set[int]:
    """Return which of the records no call is left for, each call having so many at most."""
    places = [index for index, call in enumerate(calls) for _ in range(call.records)]
    owner: dict[int, int] = {}  # of a place

    def settle(record: int, seen: set[int]) -> bool:
        for place, index in enumerate(places):
            if place in seen or not calls[index].could_have(*times[record]):
                continue
            seen.add(place)
            if place not in owner or settle(owner[place], seen):
                owner[place] = record
                return True
        return False

    return {record for record in range(len(times)) if not settle(record, set())}
