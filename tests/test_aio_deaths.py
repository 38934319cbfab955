"""Peers that are killed or stopped while somebody awaits them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import pytest

from children import Fork, die
from ipcmap import Arena, Event, JoinableQueue, Lock, Ring, Semaphore, aio
from ipcmap._core import reference_sections as sections
from ipcmap._deadline import Deadline
from listening import PATIENCE
from ring_harness import at_each_store, put_and_die
from rings import drained, fill
from test_aio import run, wait_for_the_others

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]
BOTH = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])


@BOTH
@pytest.mark.usefixtures("short_slices")
def test_a_producer_killed_at_any_store_of_a_put_leaves_no_task_waiting(
    before: bool, fork: Fork
) -> None:
    """What it committed is taken, and the end is its end."""
    for store in count(1):
        ring, attached, armed = Ring(256), Semaphore(0), Semaphore(0)
        holding = ring.attach_producer()
        child = fork(put_and_die, ring, attached, armed, store, before)
        attached.acquire()
        holding.detach()

        async def main(ring: Ring = ring, armed: Semaphore = armed) -> list[bytes]:
            asyncio.get_running_loop().call_later(0, armed.release)
            return [record async for record in aio.Ring(ring)]

        records = asyncio.run(main())
        status = child.wait()
        committed = ring.statistics().puts
        ring.destroy()

        assert len(records) == committed, f"{store=}"
        if status == 0:
            assert records == [b"x"]
            break
        assert status == -signal.SIGKILL
    assert store > 5, "the stores of the call are among them"


@BOTH
@pytest.mark.parametrize("nbytes", [8, 1000])
@pytest.mark.usefixtures("short_slices")
def test_a_consumer_killed_at_any_store_of_a_get_leaves_no_put_waiting(
    nbytes: int, before: bool, fork: Fork
) -> None:
    """Where it made room, the put goes in; where it did not, another's get makes room."""
    for store in count(1):
        ring, waits = Ring(64), Semaphore(0)
        in_it = fill(ring, bytes(nbytes))

        def consume(ring: Ring = ring, store: int = store, waits: Semaphore = waits) -> None:
            waits.acquire()
            at_each_store(ring, store, before, lambda: Ring.get_many(ring))

        child = fork(consume)

        async def main(
            ring: Ring = ring, waits: Semaphore = waits, in_it: int = in_it
        ) -> tuple[int, list[bytes]]:
            putting = asyncio.create_task(aio.Ring(ring).put(b"next"))
            await wait_for_the_others()
            waits.release()
            status = child.wait()  # noqa: B023
            left = drained(ring) if ring.statistics().gets < in_it else []
            await putting
            return status, left

        status, left = asyncio.run(main())
        records = left + drained(ring)
        assert records[-1:] == [b"next"], f"{store=}"
        assert set(records[:-1]) <= {bytes(nbytes)}
        ring.destroy()
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert store > 3, "the stores of the call are among them"


@pytest.mark.parametrize("step", ["readlink", "open", "fstat", "write", "close"])
@pytest.mark.usefixtures("short_slices")
def test_a_consumer_killed_on_its_way_to_the_pipe_leaves_no_put_waiting(
    ring_type: RingType, step: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room, and its byte may not be there."""
    ring, waits = ring_type(64), Semaphore(0)
    fill(ring)

    def consume() -> None:
        monkeypatch.setattr(os, step, lambda *_: die())
        waits.acquire()
        ring.get_many()

    child = fork(consume)

    async def main() -> None:
        putting = asyncio.create_task(aio.Ring(ring).put(b"next"))
        await wait_for_the_others()
        waits.release()
        assert child.wait() == -signal.SIGKILL
        await putting

    run(main())
    assert drained(ring) == [b"next"]
    ring.destroy()


@pytest.mark.usefixtures("short_slices")
def test_what_a_dead_consumer_had_in_hand_comes_to_a_task_that_waits(
    arena: Arena, engine: str, fork: Fork
) -> None:
    """Of a queue that is told what is done with."""
    tasks: JoinableQueue[str] = JoinableQueue(arena=arena)
    waits = Semaphore(0)
    tasks.put("a task")

    def take_and_die() -> None:
        tasks.get()
        waits.release()
        waits_for_ever = Semaphore(0)
        waits_for_ever.acquire()

    child = fork(take_and_die)
    waits.acquire()

    async def main() -> None:
        getting = asyncio.create_task(aio.Queue(tasks).get())
        await wait_for_the_others()
        child.kill()
        assert await getting == "a task"
        assert tasks.redelivered
        tasks.task_done()

    run(main())


def test_a_killed_waiter_takes_nothing_with_it(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """Nobody had told it yet that there is something: the living take it all."""
    ring, waits = ring_type(), Semaphore(0)

    def wait() -> None:
        async def main() -> None:
            getting = [asyncio.create_task(aio.Ring(ring).get()) for _ in range(10)]
            await wait_for_the_others()
            waits.release()
            await asyncio.gather(*getting)

        run(main())

    child = fork(wait)
    waits.acquire()

    async def main() -> None:
        face = aio.Ring(ring)
        getting = [asyncio.create_task(face.get()) for _ in range(10)]
        await wait_for_the_others()
        child.kill()
        for number in range(10):
            ring.put(b"%d" % number)
        assert await asyncio.gather(*getting) == [b"%d" % number for number in range(10)]

    run(main())
    ring.destroy()


@pytest.mark.parametrize("section", ["_producers_section", "_consumers_section"])
def test_a_loop_sleeps_while_somebody_is_stopped_in_a_section(
    ring_type: RingType, section: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks again when its timer rings, and not all the time; then it gets the record."""
    ring, attempts = ring_type(), 0
    monkeypatch.setattr(sections, "_GRACE", 0.001)

    def stop() -> None:
        sections.inside(
            getattr(ring._core, section), Deadline(None), os.kill, os.getpid(), signal.SIGSTOP
        )
        ring.put(b"x")

    async def main() -> None:
        nonlocal attempts
        face = aio.Ring(ring)
        getting = asyncio.create_task(face.get())
        await wait_for_the_others()
        child = fork(stop)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        get_now = face._get_now

        def counted() -> bytes:
            nonlocal attempts
            attempts += 1
            return get_now()

        face._get_now = counted
        await asyncio.sleep(0.3)
        assert attempts <= 2
        os.kill(child.pid, signal.SIGCONT)
        assert await getting == b"x"
        assert child.wait() == 0

    run(main())
    ring.destroy()


def test_a_loop_sleeps_while_somebody_is_stopped_in_the_allocator(
    arena: Arena, engine: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue whose records are leased needs a block for one; it looks again as timers ring."""
    tasks: JoinableQueue[str] = JoinableQueue(arena=arena)
    attempts = 0
    monkeypatch.setattr(sections, "_GRACE", 0.001)

    def stop() -> None:
        section = arena._open().allocator._section
        sections.inside(section, Deadline(None), os.kill, os.getpid(), signal.SIGSTOP)

    async def main() -> None:
        nonlocal attempts
        face = aio.Queue(tasks)
        getting = asyncio.create_task(face.get())
        await wait_for_the_others()
        child = fork(stop)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        get_now = face._get_now

        def counted() -> str:
            nonlocal attempts
            attempts += 1
            return get_now()

        face._get_now = counted
        tasks.put("a task")
        await asyncio.sleep(0.3)
        assert 1 <= attempts <= 2
        os.kill(child.pid, signal.SIGCONT)
        assert await getting == "a task"
        assert child.wait() == 0

    run(main())


def test_every_record_arrives_while_those_who_await_are_killed(
    ring_type: RingType, fork: Fork, chance: random.Random
) -> None:
    """Producers await room, consumers records; only what a dead one had in hand is missing."""
    ring, results = ring_type(1024), ring_type(1 << 18)
    acknowledged = ring_type(1 << 18)

    def produce(name: int) -> None:
        async def main() -> None:
            face = aio.Ring(ring)
            for number in count():
                await face.put(b"%d %d" % (name, number))
                acknowledged.put(b"%d %d" % (name, number))

        asyncio.run(main())

    def consume() -> None:
        async def get() -> None:
            async for record in aio.Ring(ring):
                results.put(record)

        async def main() -> None:
            await asyncio.gather(*(get() for _ in range(3)))

        asyncio.run(main())

    put, received = list[bytes](), list[bytes]()
    consumers = [fork(consume) for _ in range(2)]
    killed = 0
    for round_number in range(10):
        producer = fork(produce, round_number)
        for _ in range(chance.randrange(20, 200)):
            put.append(acknowledged.get(PATIENCE))
        producer.kill()
        put += drained(acknowledged)
        if round_number % 3 == 0:
            consumers.pop(0).kill()
            killed += 1
            consumers.append(fork(consume))
        received += drained(results)
    while len({*put} - {*received}) > killed:
        received.append(results.get(PATIENCE))
    for consumer in consumers:
        consumer.kill()
    received += drained(results)

    assert len(received) == len({*received})
    assert len({*put} - {*received}) <= killed
    for each in (ring, results, acknowledged):
        each.destroy()


STALLED: dict[str, Callable[[Arena], tuple[Coroutine[Any, Any, object], int]]] = {
    "lock": lambda arena: of_guard(aio.Lock(taken_lock(arena))),
    "semaphore": lambda arena: of_guard(aio.Semaphore(Semaphore(0, arena=arena))),
    "event": lambda arena: of_event(Event(arena=arena)),
    "records": lambda arena: of_ring(Ring(256, arena=arena), "_consumers_section"),
    "records, to be told of": lambda arena: of_ring(Ring(256, arena=arena), "_producers_section"),
}


def taken_lock(arena: Arena) -> Lock:
    """Return a lock that is held."""
    lock = Lock(arena=arena)
    lock.acquire()
    return lock


def of_guard(face: aio.Lock | aio.Semaphore) -> tuple[Coroutine[Any, Any, object], int]:
    """Return a wait for it, and its section."""
    return face.acquire(), face._guard._core._section


def of_event(event: Event) -> tuple[Coroutine[Any, Any, object], int]:
    """Return a wait for it, and its section."""
    return aio.Event(event).wait(), event._core._section


def of_ring(ring: Ring, section: str) -> tuple[Coroutine[Any, Any, object], int]:
    """Return a wait for a record, and one of its sections."""
    return aio.Ring(ring).get(), getattr(ring._core, section)


@pytest.mark.parametrize("what", STALLED)
def test_a_process_stopped_in_a_section_holds_up_no_loop_that_begins_to_wait(
    what: str, arena: Arena, engine: str, fork: Fork
) -> None:
    """The time of who waits runs out while it is stopped still."""
    waiting, section = STALLED[what](arena)

    def be_stopped() -> None:
        sections.inside(section, Deadline(None), os.kill, os.getpid(), signal.SIGSTOP)

    child = fork(be_stopped)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await waiting

    run(main())
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0
