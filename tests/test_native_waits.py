"""The native engine's ring when its users wait, are interrupted, or are killed."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import queue
import random
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from types import FrameType

import pytest

from children import Child, Fork
from ipcmap import PAGE_SIZE, Arena, ClosedError, Mapping, Ring
from ipcmap._core import libc
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at


def in_a_wait(ring: Ring) -> Callable[[], bool]:
    """Return what says whether anybody sleeps."""

    def sleeps() -> bool:
        facts = ring.statistics()
        return bool(facts.waiting_consumers or facts.waiting_producers)

    return sleeps


WAITS: list[Callable[[Ring], object]] = [
    lambda ring: ring.get(),
    lambda ring: ring.get_many(timeout=60),
    lambda ring: [*map(ring.put, [b"x" * 20] * 9)],
    lambda ring: ring.put_many([b"x" * 20] * 9),
]


@pytest.mark.parametrize("wait", WAITS)
def test_a_handler_that_raises_ends_a_wait_at_once_and_unchanged(
    wait: Callable[[Ring], object], native_arena: Arena
) -> None:
    """No sleeper is left counted, and the ring goes on."""
    ring = Ring(64, arena=native_arena)

    class Raised(Exception):
        pass

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    begin = time.monotonic()
    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Raised):
            wait(ring)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert time.monotonic() - begin >= 0.1
    assert not in_a_wait(ring)()
    ring.put(b"on", 0) if not len(ring) else ring.get(0)


def test_a_handler_may_use_the_ring_whose_wait_it_interrupts(native_arena: Arena) -> None:
    """No section is held in a wait."""
    ring = Ring(arena=native_arena)

    def handle(number: int, frame: FrameType | None) -> None:
        ring.put(b"from the handler")

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert ring.get() == b"from the handler"
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_handlers_that_raise_anywhere_break_nothing(
    native_arena: Arena, chance: random.Random
) -> None:
    """What returned is in the ring; C is never broken off."""

    class Raised(Exception):
        pass

    armed: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if armed:
            armed.clear()
            raise Raised

    def attempt(call: Callable[[], object]) -> bool:
        """Call, and have the handler raise at some moment in it or beside; False = it did."""
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 3e-5))
            call()
            armed.clear()
        except Raised:
            return False
        return True

    def take() -> None:
        with contextlib.suppress(queue.Empty):
            taken.extend(ring.get_many(timeout=0))

    ring, put, taken, raised = Ring(4096, arena=native_arena), list[bytes](), list[bytes](), 0
    gc.disable()  # what a handler raises in a callback of the collector comes to nobody
    previous = signal.signal(signal.SIGALRM, handle)
    try:
        for number in range(2000):
            put.append(b"%d" % number)
            raised += not attempt(partial(ring.put, put[-1], 0))
            raised += not attempt(take)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.enable()

    assert raised
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(put)
    assert taken == sorted(taken, key=int)


def test_threads_of_one_process_wait_for_each_other(native_arena: Arena) -> None:
    """Who waits lets go of the GIL."""
    there, back = (Ring(64, arena=native_arena) for _ in range(2))
    received: list[bytes] = []

    def echo() -> None:
        for _ in range(500):
            back.put(there.get())

    thread = threading.Thread(target=echo)
    thread.start()
    for number in range(500):
        there.put(b"%d" % number)
        received.append(back.get())
    thread.join()

    assert received == [b"%d" % number for number in range(500)]


@pytest.mark.parametrize("processors", [1, 2])
@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_everything_arrives_once_and_in_order(
    processors: int, producers: int, consumers: int, native_arena: Arena, fork: Fork
) -> None:
    """On one processor too, where nobody looks on; one by one and in batches."""
    count = 2000
    ring, log = Ring(1024, arena=native_arena), Ring(1 << 22, arena=native_arena)
    allowed = sorted(os.sched_getaffinity(0))[:processors]

    def produce(name: int) -> None:
        os.sched_setaffinity(0, allowed)
        for number in range(0, count, 4):
            ring.put(b"%d %d" % (name, number))
            ring.put_many(b"%d %d" % (name, number + more) for more in (1, 2, 3))

    def consume(name: int) -> None:
        os.sched_setaffinity(0, allowed)
        while True:
            try:
                log.put_many(ring.get_many(3) if name % 2 else [ring.get()])
            except ClosedError:
                return

    givers = [fork(produce, name) for name in range(producers)]
    takers = [fork(consume, name) for name in range(consumers)]
    assert [giver.wait() for giver in givers] == [0] * producers
    ring.close()
    assert [taker.wait() for taker in takers] == [0] * consumers

    received = [tuple(map(int, record.split())) for record in log.get_many()]
    assert sorted(received) == [(n, m) for n in range(producers) for m in range(count)]
    if consumers == 1:
        for name in range(producers):
            assert [m for n, m in received if n == name] == [*range(count)]
    facts = ring.statistics()
    assert (facts.waiting_producers, facts.waiting_consumers, facts.recoveries) == (0, 0, 0)


# Deaths


@pytest.mark.parametrize("get", [lambda ring: ring.get(0), lambda ring: ring.get_many(timeout=0)])
def test_padding_without_a_record_gives_room_back(
    get: Callable[[Ring], object], native_arena: Arena
) -> None:
    """A producer that died between the two leaves no room taken for ever."""
    ring = Ring(256, arena=native_arena)
    for _ in range(2):
        ring.put(b"x" * 92)
        ring.get()
    core = ring._core
    assert core._note_room(core._words[at.READ_POS], 104)
    assert core.backlog() == 48

    with pytest.raises(queue.Empty):
        get(ring)

    assert core.backlog() == 0


@pytest.mark.parametrize("section", [at.PRODUCERS_SECTION, at.CONSUMERS_SECTION])
def test_the_section_of_the_dead_is_taken_over(
    section: int, native_arena: Arena, fork: Fork
) -> None:
    """And the takeover is counted, once."""
    ring = Ring(arena=native_arena)
    assert fork(sections.trylock, ring._address + section).wait() == 0

    ring.put(b"x")
    ring.put_many([b"y", b"z"])

    assert [ring.get(), *ring.get_many()] == [b"x", b"y", b"z"]
    assert ring.statistics().recoveries == 1


def test_a_producer_that_dies_in_the_middle_of_its_bytes_has_put_nothing(
    native_arena: Arena, fork: Fork
) -> None:
    """The file that it puts is cut short beneath the copy: SIGBUS, inside the section."""
    ring = Ring(arena=native_arena)
    ring.put(b"before")

    def put_what_is_gone() -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(4 * PAGE_SIZE)
            mapping = Mapping.file(file.fileno())
            view = mapping.view()[: 3 * PAGE_SIZE]
            file.truncate(PAGE_SIZE)
            faulthandler.disable()
            ring.put(view)

    assert fork(put_what_is_gone).wait() == -signal.SIGBUS
    ring.put(b"after")

    assert ring.get_many() == [b"before", b"after"]
    assert ring.statistics().recoveries == 1


def test_a_consumer_that_dies_in_the_middle_of_its_copy_has_taken_nothing(
    native_arena: Arena, fork: Fork
) -> None:
    """The pages of the record are no longer readable to it: SIGSEGV, inside the section."""
    ring = Ring(arena=native_arena)
    ring.put(b"x" * 3 * PAGE_SIZE)

    def take() -> None:
        faulthandler.disable()
        libc.mprotect((ring._address | PAGE_SIZE - 1) + 1, PAGE_SIZE, 0)
        ring.get()

    assert fork(take).wait() == -signal.SIGSEGV

    assert ring.get() == b"x" * 3 * PAGE_SIZE
    assert ring.statistics().recoveries == 1


@pytest.mark.parametrize("section", [at.PRODUCERS_SECTION, at.CONSUMERS_SECTION])
def test_a_stopped_holder_delays_others_and_hangs_nobody(
    section: int, native_arena: Arena, fork: Fork
) -> None:
    """A timeout holds, and another thread of the one who waits goes on."""
    ring = Ring(arena=native_arena)
    ring.put(b"x")

    def hold() -> None:
        sections.trylock(ring._address + section)
        os.kill(os.getpid(), signal.SIGSTOP)
        sections.unlock(ring._address + section)

    holder = fork(hold)
    os.waitpid(holder.pid, os.WUNTRACED)
    if section == at.PRODUCERS_SECTION:
        with pytest.raises(queue.Full):
            ring.put(b"y", 0.05)
        thread = threading.Thread(target=ring.put, args=[b"y"])
    else:
        with pytest.raises(queue.Empty):
            ring.get(0.05)
        thread = threading.Thread(target=ring.get)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()

    os.kill(holder.pid, signal.SIGCONT)
    thread.join()
    assert holder.wait() == 0


@pytest.mark.parametrize(
    "kills", [50, pytest.param(2000, marks=[pytest.mark.stress, pytest.mark.timeout(1200)])]
)
@pytest.mark.parametrize("capacity", [512, 1 << 16])
def test_a_storm_of_kills_loses_no_committed_record(
    kills: int, capacity: int, native_arena: Arena, chance: random.Random, fork: Fork
) -> None:
    """Three producers and three consumers, killed at random moments and replaced.

    What a producer noted as put comes out once, unless it was in the hands of a
    consumer that was killed: one record of a get, or a batch. Nobody is stuck.
    """
    ring, log = Ring(capacity, arena=native_arena), Ring(1 << 22, arena=native_arena)
    notes = Mapping.anonymous(8 * (kills + 6))
    noted = notes.view().cast("Q")  # records that each producer knows to be in
    batch = 5

    def produce(name: int) -> None:
        some, number = random.Random(name), 0
        while True:
            count = some.randrange(1, batch)
            records = [
                b"%d %d." % (name, number + more) + bytes(some.randrange(60))
                for more in range(count)
            ]
            if some.random() < 0.5:
                ring.put_many(records)
            else:
                count = 1
                ring.put(records[0])
            number += count
            noted[name] = number
            if some.random() < 0.02:  # others wait, too
                time.sleep(0.001)

    def consume(name: int) -> None:
        while True:
            records = ring.get_many(batch) if name % 2 else [ring.get()]
            log.put_many(record[: record.index(b".")] for record in records)

    times = defaultdict[int, Counter[int]](Counter)  # of each producer, how often each record came

    def count(records: list[bytes]) -> None:
        for record in records:
            name, number = record.partition(b".")[0].split()
            times[int(name)][int(number)] += 1

    places = {place: place for place in range(6)}  # who works where: producers, then consumers

    def start(name: int, place: int) -> Child:
        places[place] = name
        return fork(produce if place < 3 else consume, name)

    alive = [start(place, place) for place in range(6)]
    lost_at_most = 0
    for name in range(6, 6 + kills):
        time.sleep(chance.expovariate(300))
        with contextlib.suppress(queue.Empty):
            count(log.get_many(timeout=0))
        place = chance.randrange(6)
        alive[place].kill()
        lost_at_most += batch * (place >= 3)
        alive[place] = start(name, place)
    for place in range(3):
        before = noted[places[place]]
        while noted[places[place]] == before:
            count(log.get_many())
    for child in alive:
        child.kill()
        lost_at_most += batch

    for rest in (log, ring):
        while len(rest):
            count(rest.get_many())
    came = sum(len(numbers) for numbers in times.values())
    lost = sum(noted) - sum(number < noted[name] for name in times for number in times[name])
    print(f"records={came}, lost={lost}, recoveries={ring.statistics().recoveries}")
    for name, numbers in times.items():
        assert max(numbers.values()) == 1, "nothing comes twice"
        assert max(numbers) < noted[name] + batch, "at most the one batch that did not return"
    assert 0 <= lost <= lost_at_most
    ring.put(b"on", 5)
    assert ring.get(5) == b"on"
