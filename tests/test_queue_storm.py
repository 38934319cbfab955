"""Queues with acknowledgement under random kills of producers and consumers: all is accounted for.

    tox -e storm                                    2,000 kills on each engine
    IPCMAP_STORM_SEED=4711 tox -e storm             with the choices of an earlier run

Each life keeps a journal in shared memory: a producer what it is about to put and what it has
put, a consumer what it got, and whether it has said that it is done with it. So it is known
of each object where it was when somebody died.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from children import Child, Fork
from ipcmap import Arena, JoinableQueue, Queue, ShutDown

pytestmark = pytest.mark.usefixtures("ring_type")  # on both engines

KILLS = int(os.environ.get("IPCMAP_STORM_KILLS", "2000"))
SEED = os.environ.get("IPCMAP_STORM_SEED")
LONG = pytest.param(KILLS, marks=[pytest.mark.storm, pytest.mark.timeout(max(3600, 2 * KILLS))])
PRODUCERS, CONSUMERS = 3, 4
ENTRIES = 1 << 15  # objects in one life, after which it does no more
BEGUN, PUT = 0, 1  # words of a producer's journal
TAKEN, DONE = 0, 1  # words of a consumer's, before its entries: objects got, objects done with
FIRST = 2
PAUSE = 0.02  # seconds between two kills, at most


class Name(NamedTuple):
    """Whose object it is, and the how-manieth."""

    life: int
    number: int


class Entry(NamedTuple):
    """What a consumer got."""

    name: Name
    again: bool


def load(name: Name) -> Any:
    """Return what an object carries: of each way in which objects travel."""
    kind = hash(name) % 16
    if kind == 0:
        return b"x" * (65_000 + name.number % 2000)  # some in a block
    return {name.number} if kind == 1 else [str(name), {"n": name.number}, None, 0.5]


class Journal:
    """Words that outlive who writes them."""

    def __init__(self, life: int) -> None:
        self.life = life
        self._memory = mmap.mmap(-1, 8 * (FIRST + ENTRIES))
        self.words = memoryview(self._memory).cast("Q")

    def note(self, entry: Entry) -> None:
        """Add what was got."""
        taken = self.words[TAKEN]
        name, again = entry
        self.words[FIRST + taken] = name.life << 32 | name.number << 1 | again
        self.words[TAKEN] = taken + 1

    def entries(self) -> list[Entry]:
        """Return what was got, in order."""
        words = self.words[FIRST : FIRST + self.words[TAKEN]].tolist()
        return [Entry(Name(w >> 32, (w & 0xFFFFFFFF) >> 1), bool(w & 1)) for w in words]

    def close(self) -> None:
        """Give the memory back."""
        self.words.release()
        self._memory.close()


class Storm:
    """A queue, who puts into it and gets out of it, and the books."""

    def __init__(self, tasks: Queue[tuple[Name, Any]], fork: Fork) -> None:
        self.tasks, self.fork = tasks, fork
        self.stop = mmap.mmap(-1, 1)
        self.lives = 0
        self.seats: list[tuple[bool, Journal, Child]] = []
        self.put: set[Name] = set()  # surely
        self.doubtful: set[Name] = set()
        self.got: list[list[Entry]] = []  # by life
        self.done: Counter[Name] = Counter()

    def seat(self, produces: bool) -> tuple[bool, Journal, Child]:
        """Begin a life."""
        self.lives += 1
        journal = Journal(self.lives)
        return produces, journal, self.fork(self.produce if produces else self.consume, journal)

    def produce(self, journal: Journal) -> None:
        """Put objects until told to stop."""
        for number in range(ENTRIES):
            if self.stop[0]:
                return
            name = Name(journal.life, number)
            journal.words[BEGUN] = number + 1
            self.tasks.put((name, load(name)))
            journal.words[PUT] = number + 1

    def consume(self, journal: Journal) -> None:
        """Get objects, and say that they are done with, until there are no more."""
        for _ in range(ENTRIES):
            try:
                name, carried = self.tasks.get()
            except ShutDown:
                return
            name = Name(*name)
            assert carried == load(name)
            journal.note(Entry(name, self.tasks.redelivered))
            self.tasks.task_done()
            journal.words[DONE] += 1

    def book(self, produces: bool, journal: Journal, died: bool) -> None:
        """Enter what a life has done."""
        if produces:
            begun, put = journal.words[BEGUN], journal.words[PUT]
            self.put |= {Name(journal.life, number) for number in range(put)}
            self.doubtful |= {Name(journal.life, number) for number in range(put, begun)}
        else:
            entries, done = journal.entries(), journal.words[DONE]
            assert done in ({len(entries), len(entries) - 1} if died else {len(entries)})
            self.done.update(name for name, _ in entries[:done])
            self.got.append(entries)
        journal.close()

    def blow(self, kills: int, chance: random.Random) -> None:
        """Kill one after the other, let another take its place, and come to an end."""
        self.seats = [self.seat(number < PRODUCERS) for number in range(PRODUCERS + CONSUMERS)]
        for _ in range(kills):
            threading.Event().wait(chance.random() * PAUSE)
            index = chance.randrange(len(self.seats))
            produces, journal, child = self.seats[index]
            child.kill()
            self.book(produces, journal, True)
            self.seats[index] = self.seat(produces)
            self.relieve()
        self.stop[0] = 1
        self.relieve_until(lambda: not any(produces for produces, _, _ in self.seats))
        tasks = self.tasks
        if isinstance(tasks, JoinableQueue):
            self.relieve_until(lambda: tasks.unfinished_tasks == 0)
            tasks.join()
        tasks.shutdown()
        self.relieve_until(lambda: not self.seats)

    def relieve_until(self, over: Callable[[], bool]) -> None:
        """Relieve who has ended, until something holds."""
        while not over():
            threading.Event().wait(PAUSE)
            self.relieve()

    def relieve(self) -> None:
        """Enter what those did who have ended by themselves; another goes on for a full journal."""
        for seat in [seat for seat in self.seats if seat[2].has_ended()]:
            produces, journal, child = seat
            assert child.wait() == 0
            if produces and not self.stop[0]:
                continue  # it has put all, and is to be killed
            full = not produces and journal.words[TAKEN] == ENTRIES
            self.book(produces, journal, False)
            self.seats.remove(seat)
            if full:
                self.seats.append(self.seat(produces))

    def check(self) -> str:
        """Find each object where it may be; return a line about them."""
        times = Counter(entry.name for entries in self.got for entry in entries)
        first = Counter(entry.name for entries in self.got for entry in entries if not entry.again)
        assert set(times) - self.put <= self.doubtful, "what was never put has come"
        assert self.put - set(times) == set(), "lost"
        assert max(first.values()) == 1, "came twice, unmarked"
        assert max(self.done.values()) == 1, "came again after it was done with"
        for entries in self.got:
            self.check_order(entries)
        broken_off = times.total() - self.done.total()
        assert broken_off <= len(self.got), "a life broke off more than one"
        again = times.total() - first.total()
        return f"{len(times)} objects, {again} came again, {broken_off} ends with one in hand"

    def check_order(self, entries: list[Entry]) -> None:
        """Those of one producer come in order, but for what comes again."""
        last: dict[int, int] = {}
        for name, again in entries:
            if not again:
                assert last.get(name.life, -1) < name.number
                last[name.life] = name.number


@pytest.mark.parametrize("kills", [25, LONG], ids=["short", "long"])
@pytest.mark.parametrize("kind", [Queue, JoinableQueue])
def test_nothing_is_lost_and_what_comes_again_is_marked(
    kills: int, kind: type[Queue[Any]], arena: Arena, fork: Fork
) -> None:
    """Whoever is killed, in put, get, task_done or between them."""
    seed = int(SEED) if SEED else random.randrange(2**32)
    chance = random.Random(seed)
    options: dict[str, Any] = {
        "maxsize": chance.choice([0, 1, 50]),
        "capacity": chance.choice([1 << 10, 1 << 17, None]),
        "arena": arena,
    }
    print(f"seed={seed}, {options}")
    if kind is Queue:
        options["ack"] = True
    before = arena.statistics().blocks
    tasks: Queue[tuple[Name, Any]] = kind(**options)
    storm = Storm(tasks, fork)
    storm.blow(kills, chance)
    print(storm.check())
    assert tasks.empty()
    tasks.destroy()
    arena.sweep()
    assert arena.statistics().blocks == before
