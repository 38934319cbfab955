"""A small family with live structures, and whoever scribbles over its bookkeeping."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from functools import partial

from ipcmap import Arena, Lock, Ring, Semaphore
from ipcmap._core import layout, monitor_layout, slot_layout
from ipcmap._core import ring_layout as at
from ipcmap._core.layout import HeaderWord, Kind
from ipcmap._core.slot_layout import HOLDER_BITS

LARGE = b"L" * 200
WORDS = 2**64
PROCESSES = 3
USUAL = [
    0, 1, 2, 3, 7, 8, 9, 64, 512, 2**16, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63,
    2**63 + 1, WORDS - 1, WORDS - 8, at.BLOCK | 16, at.TAKEN | 8, at.PADDING, at.PADDING | 2**31,
    layout.USED, layout.USED | layout.RETIRED, 1 << HOLDER_BITS | 1, 2**61 << 2 | 1,
]  # fmt: skip

Call = Callable[[], object]


class World:
    """An arena with a ring, a lock, a semaphore and a block in use, and calls upon them."""

    def __init__(self, engine: str, chance: random.Random) -> None:
        self.chance = chance
        self.arena = arena = Arena(
            8 << 20, reserve=64 << 20, max_processes=PROCESSES, backend=engine
        )
        self.ring = Ring(chance.choice([64, 128, 512, 4096]), arena=arena)
        self.lock, self.semaphore = Lock(arena=arena), Semaphore(chance.randrange(4), arena=arena)
        self.attachment = self.ring.attach_producer()
        self.block = arena.allocate(chance.choice([1, 64, 100_000, 1 << 20]))
        self.claim, self.lease = self.ring.claim(200, 0), self.ring.lease(0)
        self.leased = False
        for data in chance.choices([b"", b"small", b"s" * 20], k=chance.randrange(4)):
            self._quietly(partial(self.ring.put, data, 0))
        if chance.random() < 0.5:
            self._quietly(partial(self.ring.put, LARGE, 0))
        if chance.random() < 0.5 and len(self.ring):
            self.lease.__enter__()
            self.leased = True
        self.claim.__enter__()
        if chance.random() < 0.5:
            self.lock.acquire()
            self.semaphore.acquire(timeout=0)
        self.pickles = [
            pickle.dumps(thing)
            for thing in (self.ring, self.lock, self.semaphore, self.block, arena)
        ]
        # Places are taken now: the allocator that finds them is soon not to be trusted.
        self.groups = list(self._groups())

    def _quietly(self, call: Call) -> None:
        try:
            call()
        except Exception as error:
            if type(error).__name__ != "Full":
                raise

    def beside(self, work: Call) -> None:
        """Do something in another process, which then dies of it, and wait for that."""
        pid = os.fork()
        if not pid:
            try:
                work()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def leave_things_behind(self) -> None:
        """Use everything, as a process that dies in the middle of it."""
        self.ring.attach_producer()
        for call in (
            partial(self.ring.put, LARGE, 0),
            partial(self.lock.acquire, False),
            partial(self.semaphore.acquire, False),
            self.ring.claim(200, 0).__enter__,
            self.ring.lease(0).__enter__,
        ):
            try:
                call()
            except Exception as error:
                if type(error).__name__ not in ("Full", "Empty"):
                    raise
        self.arena.allocate(70)

    # Where

    def _groups(self) -> Iterator[tuple[memoryview, list[int]]]:
        """Yield the words of each structure that are not its mutexes and semaphores."""
        inside = self.arena._open()
        words, places = inside.words, inside.allocator.layout
        ring = [*range(at.WRITE_POS, at.PRODUCERS_TAKEOVERS + 1)]
        ring += [*range(at.READ_POS, at.CONSUMERS_TAKEOVERS + 1)]
        ring += [at.CONSUMERS_SLEEPING, at.PRODUCERS_SLEEPING, at.CAPACITY]
        yield self.ring._core._words, ring
        yield self.ring._core._words, ring[:12]
        yield (
            self.ring._core._words,
            [at.FIRST_RECORD + index for index in range(self.ring.capacity // 8)][:40],
        )
        lock = [monitor_layout.SLEEPERS, monitor_layout.HOLDER, monitor_layout.THREAD]
        yield self.lock._core._words, lock
        first = monitor_layout.FIRST_ENTRY
        ledger = range(first, len(self.semaphore._core._words))
        journal = range(monitor_layout.INITIAL, monitor_layout.NEXT_LEFT + 1)
        yield self.semaphore._core._words, [monitor_layout.SLEEPERS, *journal, *ledger]
        yield words, [*range(HeaderWord.CREATOR + 1)]
        counts = [layout.JOURNAL, layout.BYTES_IN_USE, layout.SWEPT_AT]
        for size_class in places.classes[:14]:
            counts += [size_class.high_water, size_class.cursor]
            counts += [size_class.used, size_class.used_nbytes]
        yield words, counts
        tags, lengths, blocks = [], [], []
        kinds = [*range(Kind.LEAVING + 1), Kind.RING, Kind.LOCK, Kind.SEMAPHORE]
        for kind in kinds:
            for cell in inside.allocator.of_kind(kind):
                found = places.locate(cell.offset)
                assert found
                tags += [found[0].tags + found[1] + step for step in (0, 0, 1)]
                lengths.append(found[0].lengths + found[1])
                if Kind.BYTES < kind <= Kind.LEAVING:
                    blocks += [cell.offset // 8 + index for index in range(8)]
        yield words, tags + lengths
        yield words, blocks
        table = places.slot_table // 8
        slots = [*range(slot_layout.H_JOURNAL_DEATH + 1)]
        slots += [
            number * slot_layout.SLOT + field
            for number in range(1, PROCESSES + 1)
            for field in range(slot_layout.LEAVING + 1)
        ]
        log = slot_layout.log_begin(PROCESSES)
        yield words, [table + place for place in slots]
        lives = [table + number * slot_layout.SLOT for number in range(1, PROCESSES + 1)]
        yield words, lives
        yield words, [table + log + field for field in range(3 * slot_layout.RECORD)]

    def scribble(self) -> list[str]:
        """Overwrite a few words; return what was done."""
        chance, done = self.chance, []
        for _ in range(chance.choice([1, 1, 2, 3, 5])):
            words, places = chance.choice(self.groups)
            place = chance.choice(places)
            old = words[place]
            other, others = chance.choice(self.groups)
            value = chance.choice(
                [
                    chance.choice(USUAL),
                    chance.choice(USUAL),
                    chance.randrange(WORDS),
                    chance.randrange(1024),
                    old ^ 1 << chance.randrange(64),
                    old + chance.choice([-512, -64, -8, -7, -1, 1, 4, 8, 64]),
                    other[chance.choice(others)],
                    self.ring._cell.offset,
                ]
            )
            words[place] = value % WORDS
            done.append(f"word {place} of {words.nbytes} bytes: {old:#x} -> {value % WORDS:#x}")
        return done

    # What is called

    def calls(self) -> list[Call]:
        """Return every public operation, each with a timeout, in an order of its own."""
        ring, lock, semaphore, arena, chance = (
            self.ring, self.lock, self.semaphore, self.arena, self.chance,
        )  # fmt: skip

        def lend() -> None:
            with ring.lease(0) as view:
                bytes(view)

        def fill() -> None:
            with ring.claim(chance.choice([5, 300]), 0) as view:
                view[:] = bytes(len(view))

        def allocate() -> None:
            block = arena.allocate(chance.choice([0, 60, 70, 5000, 1 << 20]))
            view = block.view()
            view[:1] = view[:1]
            view.release()
            block.free()

        def look_at_closed() -> bool:
            return ring.closed

        short = 0.0003
        calls: list[Call] = [
            partial(ring.put, b"x" * chance.randrange(30), 0),
            partial(ring.put, b"x" * chance.randrange(30), short),
            partial(ring.put, LARGE, 0),
            partial(ring.put_many, [b"a", LARGE, b"b"], 0),
            partial(ring.put_many, [b"a" * 9] * 8, short),
            partial(ring.get, 0),
            partial(ring.get, short),
            partial(ring.get_many, 3, 0),
            partial(ring.get_many, None, short),
            lend,
            fill,
            partial(len, ring),
            ring.statistics,
            ring.__repr__,
            look_at_closed,
            ring.attach_producer,
            partial(lock.acquire, False),
            partial(lock.acquire, True, short),
            lock.locked,
            lock.__repr__,
            lock.release,
            partial(semaphore.acquire, False),
            partial(semaphore.acquire, True, short),
            semaphore.get_value,
            semaphore.__repr__,
            semaphore.release,
            allocate,
            arena.statistics,
            arena.deaths,
            arena.sweep,
            arena.__repr__,
            self.block.view,
            self.block.__repr__,
            partial(Ring, 128, arena=arena),
            partial(Lock, arena=arena),
            partial(Semaphore, 2, arena=arena),
            *(partial(pickle.loads, sent) for sent in self.pickles),
            *(partial(pickle.dumps, thing) for thing in (ring, lock, semaphore, arena)),
            partial(self.claim.__exit__, None, None, None),
        ]
        chance.shuffle(calls)
        if self.leased:
            calls.append(partial(self.lease.__exit__, None, None, None))
        last: list[Call] = [self.attachment.detach, ring.close, self.block.free]
        return [*calls, *last, ring.destroy, lock.destroy, semaphore.destroy]
