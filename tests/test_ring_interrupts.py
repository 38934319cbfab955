"""Exceptions of signal handlers amid calls of a ring: nothing is held, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import count
from types import FrameType

import pytest

from children import Fork
from ipcmap import Ring
from ipcmap._core import reference_sections as sections
from ipcmap._core.layout import ALLOCATOR_SECTION
from ring_harness import Stores
from rings import blocks

pytestmark = pytest.mark.usefixtures("collected")

LARGE = [bytes([number]) * 100 for number in range(1, 6)]
SMALL = [b"1", b"22", b"333"]


class Raised(Exception):
    """What a signal handler raises."""


def interrupt() -> None:
    """Raise, as a signal handler might."""
    raise Raised


def drained(ring: Ring) -> list[bytes]:
    """Take all that is there."""
    found = []
    with contextlib.suppress(queue.Empty):
        while True:
            found.append(ring.get(0))
    return found


def nothing_is_held(ring: Ring) -> None:
    """Check that every section can be had."""
    core = ring._core
    arena = ring._arena._open().pages.address + ALLOCATOR_SECTION
    for section in (core._producers_section, core._consumers_section, arena):
        assert sections.trylock(section) == 0
        assert sections.unlock(section) == 0


def claim(ring: Ring) -> None:
    """Put a large record by filling its block."""
    with ring.claim(100) as view:
        view[:] = LARGE[0]


def lease(ring: Ring) -> None:
    """Take a record and look at it."""
    with ring.lease(0) as view:
        assert len(view)


CALLS: dict[str, tuple[Callable[[Ring], object], list[bytes], list[list[bytes]]]] = {
    "put": (lambda ring: Ring.put(ring, LARGE[0]), [], [[], [LARGE[0]]]),
    "claim": (claim, [], [[], [LARGE[0]]]),
    "get": (Ring.get, [LARGE[0], SMALL[0]], [[LARGE[0], SMALL[0]], [SMALL[0]]]),
    "lease large": (lease, [LARGE[0], SMALL[0]], [[LARGE[0], SMALL[0]], [SMALL[0]]]),
    "lease small": (lease, [SMALL[1], SMALL[0]], [[SMALL[1], SMALL[0]], [SMALL[0]]]),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_handler_that_raises_at_any_store_leaves_the_ring_as_it_was_or_done(
    name: str, before: bool, fork: Fork
) -> None:
    """A lease that was not given comes again; what is left ends with the process at the latest."""
    call, records, legal = CALLS[name]

    def run(ring: Ring, store: int) -> None:
        Stores(store, before, interrupt).watch(ring)
        try:
            call(ring)
        except Raised:
            nothing_is_held(ring)
            found = drained(ring)
            assert sorted(found) in [sorted(each) for each in legal], found
            os._exit(3)

    for store in count(1):
        at_first, ring = blocks(), Ring(128)
        ring.put_many(records)
        code = fork(run, ring, store).wait()
        assert code in (0, 3), f"{store=}"
        nothing_is_held(ring)
        ring._arena.sweep()
        assert drained(ring) == ([] if code else legal[-1])
        ring.put(LARGE[1], 0)
        assert ring.get(0) == LARGE[1]
        ring.destroy()
        assert blocks() == at_first, f"{store=}"
        if code == 0:
            break


def test_handlers_that_raise_at_random_moments_lose_no_large_record(
    chance: random.Random, fork: Fork
) -> None:
    """A put that raised may have put; of the gets that raised each may have taken one; no lease has."""
    ring, at_first = Ring(1024), blocks() - 1
    armed: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if armed:
            armed.clear()
            raise Raised

    def run() -> None:
        previous = signal.signal(signal.SIGALRM, handle)
        sure, doubtful, received, gets = set[bytes](), set[bytes](), list[bytes](), 0
        held = list[bytes]()

        def attempt(call: Callable[[], object]) -> bool:
            try:
                try:
                    armed.append(True)
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 3e-4))
                    call()
                finally:
                    armed.clear()
            except Raised:
                return False
            except queue.Empty:
                pass
            return True

        def get() -> None:
            received.append(ring.get(0))

        def take() -> None:
            with ring.lease(0) as view:
                held.append(bytes(view))

        for number in range(1500):
            record = b"%d " % number + bytes(chance.choice([8, 600]))
            try:
                done = attempt(lambda record=record: ring.put(record, 0))  # type: ignore[misc]
            except queue.Full:
                continue
            (sure if done else doubtful).add(record)
            if chance.random() < 0.5:
                before = len(received)
                if not attempt(get) and len(received) == before:
                    gets += 1
            else:
                held.clear()
                done = attempt(take)
                # Its block shows the record; raised inside, it ended or comes again.
                if done:
                    received += held
                elif held:
                    doubtful.add(held[0])
                    sure.discard(held[0])
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        nothing_is_held(ring)
        received += drained(ring)
        assert len(set(received)) == len(received), "none twice"
        assert set(received) <= sure | doubtful
        missing = sure - set(received)
        assert len(missing) <= gets, (len(missing), gets)

    assert fork(run).wait() == 0
    ring._arena.sweep()
    ring.destroy()
    assert blocks() == at_first


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(60, marks=[pytest.mark.stress, pytest.mark.timeout(200)])]
)
def test_threads_of_one_process_share_leases_claims_and_large_records(
    seconds: int, chance: random.Random
) -> None:
    """Each record once, whole, and no block left."""
    at_first = blocks()
    ring = Ring(512)
    per, end = 4, time.monotonic() + seconds
    puts = [0] * per
    taken: list[list[tuple[int, int]]] = [[] for _ in range(per)]
    seeds = [chance.random() for _ in range(2 * per)]
    errors: list[BaseException] = []

    def record(name: int, number: int, dice: random.Random) -> bytes:
        return b"%d %d " % (name, number) + bytes([number % 251]) * dice.choice([0, 100, 300, 5000])

    def produce(name: int) -> None:
        dice = random.Random(seeds[name])
        while time.monotonic() < end:
            data = record(name, puts[name], dice)
            try:
                if dice.random() < 0.5:
                    ring.put(data, 0.1)
                else:
                    with ring.claim(len(data), 0.1) as view:
                        view[:] = data
            except queue.Full:
                continue
            puts[name] += 1

    def parse(data: bytes, name: int) -> None:
        giver, number, rest = data.split(b" ", 2)
        assert rest == bytes([int(number) % 251]) * len(rest)
        taken[name].append((int(giver), int(number)))

    def consume(name: int) -> None:
        dice = random.Random(seeds[per + name])
        while True:
            try:
                choice = dice.randrange(3)
                if choice == 0:
                    parse(ring.get(0.1), name)
                elif choice == 1:
                    with ring.lease(0.1) as view:
                        parse(bytes(view), name)
                else:
                    for data in ring.get_many(3, 0.1):
                        parse(data, name)
            except queue.Empty:
                if time.monotonic() > end + 1:
                    return

    def guarded(work: Callable[[int], None], name: int) -> None:
        try:
            work(name)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(work, name))
        for work in (produce, consume)
        for name in range(per)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    everything = sorted(pair for one in taken for pair in one)
    assert everything == sorted(
        (name, number) for name in range(per) for number in range(puts[name])
    )
    for one in taken:
        for name in range(per):
            numbers = [number for giver, number in one if giver == name]
            assert numbers == sorted(numbers)
    ring.destroy()
    assert blocks() == at_first
