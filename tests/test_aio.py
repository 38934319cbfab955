"""What is awaited: rings and queues in asyncio, across processes, tasks and loops."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import queue
import random
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from children import Fork
from ipcmap import (
    Arena,
    ClosedError,
    JoinableQueue,
    Queue,
    Ring,
    Semaphore,
    ShutDown,
    SimpleQueue,
    aio,
)
from listening import PATIENCE
from rings import drained, fill

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]


async def wait_for_the_others() -> None:
    """Let all other tasks run until they wait."""
    for _ in range(3):
        await asyncio.sleep(0)


def descriptors() -> int:
    """Count this process's."""
    return len(os.listdir("/proc/self/fd"))


def run(main: Coroutine[Any, Any, object]) -> None:
    """Run it to its end; hanging, it says where."""

    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await main

    asyncio.run(limited())


# Get


def test_a_get_waits_for_another_process_to_put(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """It is called, and no timer is needed."""
    ring, waits = ring_type(), Semaphore(0)

    def put() -> None:
        for number in range(3):
            waits.acquire()
            ring.put(b"%d" % number)

    child = fork(put)

    async def main() -> None:
        face = aio.Ring(ring)
        for number in range(3):
            getting = asyncio.create_task(face.get())
            await wait_for_the_others()
            waits.release()
            assert await getting == b"%d" % number

    run(main())
    assert child.wait() == 0
    ring.destroy()


def test_thousands_of_tasks_are_served_in_their_order_through_one_listener(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """First come, first served, and no more descriptors than for one."""
    ring, waits, count = ring_type(4096), Semaphore(0), 5000

    def put() -> None:
        waits.acquire()
        for number in range(count):
            ring.put(b"%d" % number)

    child, at_first = fork(put), descriptors()

    async def main() -> None:
        before = descriptors()
        face, other = aio.Ring(ring), aio.Ring(ring)
        tasks = [
            asyncio.create_task((face if number % 2 else other).get()) for number in range(count)
        ]
        await wait_for_the_others()
        assert descriptors() == before + 3
        waits.release()
        assert await asyncio.gather(*tasks) == [b"%d" % number for number in range(count)]

    run(main())
    assert child.wait() == 0
    assert descriptors() == at_first
    ring.destroy()


def test_async_for_takes_all_from_many_producers_to_the_end(
    ring_type: RingType, fork: Fork
) -> None:
    """Each record once, those of one producer in order, and the end is the last producer's."""
    ring, producers, each = ring_type(4096), 4, 2500
    holding, begun = ring.attach_producer(), Semaphore(0)

    def produce(name: int) -> None:
        with ring.attach_producer():
            begun.release()
            for number in range(each):
                ring.put(b"%d %d" % (name, number))

    children = [fork(produce, name) for name in range(producers)]
    for _ in children:
        begun.acquire()
    holding.detach()
    received: dict[int, list[int]] = {name: [] for name in range(producers)}

    async def main() -> None:
        async for record in aio.Ring(ring):
            name, number = map(int, record.split())
            received[name].append(number)

    run(main())
    assert received == {name: [*range(each)] for name in range(producers)}
    assert [child.wait() for child in children] == [0] * producers
    ring.destroy()


@pytest.mark.parametrize("many", [False, True])
def test_a_ring_that_is_never_empty_leaves_other_tasks_their_turn(
    ring_type: RingType, many: bool
) -> None:
    """A get that finds something does not wait, but once in a hundred it lets the loop go on."""
    ring = ring_type()
    for number in range(1000):
        ring.put(b"%d" % number)

    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        face = aio.Ring(ring)
        if many:
            received = [(await face.get_many(1))[0] for _ in range(1000)]
        else:
            received = [await face.get() for _ in range(1000)]
        assert received == [b"%d" % number for number in range(1000)]
        assert turns >= 9
        counting.cancel()

    run(main())


def test_get_many_takes_what_is_there(ring_type: RingType, endless_timers: None) -> None:
    """In one step, and waits for the first only."""
    ring = ring_type()

    async def main() -> None:
        face = aio.Ring(ring)
        getting = asyncio.create_task(face.get_many())
        await wait_for_the_others()
        ring.put_many([b"a", b"b", b"c"])
        assert await getting == [b"a", b"b", b"c"]
        ring.put_many([b"d", b"e"])
        assert await face.get_many(1) == [b"d"]
        assert await face.get_many(5) == [b"e"]

    run(main())


def test_a_cancelled_get_has_taken_nothing_and_lets_the_next_one_try(
    ring_type: RingType, endless_timers: None
) -> None:
    """Also when it had been told already that there is something."""
    ring = ring_type()

    async def main() -> None:
        face = aio.Ring(ring)
        for told in (False, True):
            first, second = (asyncio.create_task(face.get()) for _ in range(2))
            await wait_for_the_others()
            ring.put(b"x")
            if told:
                face._getting.here()._ready()
            first.cancel()
            assert await second == b"x"
            assert first.cancelled()
        assert drained(ring) == []

    run(main())


@pytest.mark.parametrize("cancels", ["timeout", "cancel"])
def test_no_record_is_lost_or_changes_places_where_tasks_are_cancelled(
    ring_type: RingType, cancels: str, fork: Fork, chance: random.Random
) -> None:
    """Whatever moment a cancel comes at, the records are taken once, and in their order."""
    ring, count = ring_type(256), 3000

    def produce() -> None:
        with ring.attach_producer():
            for number in range(count):
                ring.put(b"%d" % number)

    received: list[bytes] = []
    cut = 0

    async def consume() -> None:
        nonlocal cut
        face = aio.Ring(ring)

        async def get() -> None:
            received.append(await face.get())

        while True:
            try:
                if cancels == "timeout":
                    async with asyncio.timeout(chance.choice([0, 0, 1e-5, 1e-4, 1e-3])):
                        await get()
                else:
                    task = asyncio.create_task(get())
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                    await task
            except (TimeoutError, asyncio.CancelledError):
                cut += 1
            except ClosedError:
                return

    async def main() -> None:
        await asyncio.gather(*(consume() for _ in range(7)))

    holding = ring.attach_producer()
    child = fork(produce)
    while len(ring) == 0:
        os.sched_yield()
    holding.detach()
    run(main())
    assert child.wait() == 0
    assert received == [b"%d" % number for number in range(count)]
    assert cut > 0, "some were cancelled"
    ring.destroy()


def test_the_end_comes_to_all_who_wait(ring_type: RingType, endless_timers: None) -> None:
    """And to those who come later."""
    ring = ring_type()

    async def main() -> None:
        face = aio.Ring(ring)
        tasks = [asyncio.create_task(face.get()) for _ in range(10)]
        await wait_for_the_others()
        ring.put(b"last")
        ring.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == b"last"
        assert [type(result) for result in results[1:]] == [ClosedError] * 9
        with pytest.raises(ClosedError):
            await face.get()
        with pytest.raises(ClosedError):
            await face.put(b"x")

    run(main())


# Put


@pytest.mark.parametrize("take", ["get", "get_many", "lease"])
@pytest.mark.parametrize("nbytes", [8, 40_000])
def test_a_put_waits_for_another_process_to_take(
    ring_type: RingType, take: str, nbytes: int, fork: Fork, endless_timers: None
) -> None:
    """However it takes, records in blocks too; and the records keep their order."""
    ring, waits = ring_type(1024), Semaphore(0)
    in_it = fill(ring, bytes(nbytes))

    def consume() -> None:
        waits.acquire()
        taken = 0
        while taken < in_it + 5:
            if take == "get":
                assert len(ring.get(PATIENCE)) == nbytes
                taken += 1
            elif take == "get_many":
                taken += len(ring.get_many(2, PATIENCE))
            else:
                with ring.lease(PATIENCE) as view:
                    assert len(view) == nbytes
                taken += 1

    child = fork(consume)

    async def main() -> None:
        face = aio.Ring(ring)
        putting = asyncio.create_task(face.put(bytes(nbytes)))
        await wait_for_the_others()
        assert not putting.done()
        waits.release()
        await putting
        for _ in range(4):
            await face.put(bytes(nbytes))

    run(main())
    assert child.wait() == 0
    ring.destroy()


def test_puts_are_served_in_their_order(ring_type: RingType, endless_timers: None) -> None:
    """A small one does not overtake a large one for which there is no room yet."""
    ring = ring_type(256)
    in_it = fill(ring, b"x" * 40)

    async def main() -> None:
        face = aio.Ring(ring)
        puts = [asyncio.create_task(face.put(b"%d" % n * 100)) for n in range(2)]
        puts += [asyncio.create_task(face.put(b"small"))]
        received: list[bytes] = []
        while len(received) < in_it + 3:
            received.append(await face.get())
        assert received[in_it:] == [b"0" * 100, b"1" * 100, b"small"]
        await asyncio.gather(*puts)

    run(main())


def test_a_small_record_that_fits_is_put_though_a_larger_one_of_this_process_did_not_fit(
    ring_type: RingType, endless_timers: None
) -> None:
    """What another put has found says nothing to those who wait for room."""
    ring = ring_type(256)
    fill(ring, b"x" * 40)

    async def main() -> None:
        putting = asyncio.create_task(aio.Ring(ring).put(b"y" * 40))
        await wait_for_the_others()
        ring.get_many(2)
        with pytest.raises(queue.Full):
            ring.put(b"z" * 100, 0)
        await putting

    run(main())


def test_a_cancelled_put_has_put_nothing(ring_type: RingType, endless_timers: None) -> None:
    """And the next in the line is put."""
    ring = ring_type(64)
    fill(ring)

    async def main() -> None:
        face = aio.Ring(ring)
        first, second = (asyncio.create_task(face.put(name)) for name in (b"no", b"yes"))
        await wait_for_the_others()
        drained(ring)
        first.cancel()
        await second
        assert first.cancelled()
        assert drained(ring) == [b"yes"]

    run(main())


def test_each_put_that_returned_is_received_and_no_cancelled_one(
    ring_type: RingType, fork: Fork, chance: random.Random
) -> None:
    """Whatever moment a cancel comes at."""
    ring, answers, count = ring_type(256), ring_type(1 << 18), 2000

    def consume() -> None:
        for record in iter(ring.get, b"end"):
            answers.put(record)

    child, put = fork(consume), list[bytes]()

    async def produce(name: int) -> None:
        face = aio.Ring(ring)
        for number in range(count // 4):
            record = b"%d %d" % (name, number)
            try:
                async with asyncio.timeout(chance.choice([0, 1e-5, 1e-4, 1e-3, 1])):
                    await face.put(record)
                    put.append(record)
            except TimeoutError:
                pass

    async def main() -> None:
        await asyncio.gather(*(produce(name) for name in range(4)))
        await aio.Ring(ring).put(b"end")

    run(main())
    assert child.wait() == 0
    assert drained(answers) == put
    ring.destroy()
    answers.destroy()


# Queues


def test_a_queue_is_awaited_to_its_end(arena: Arena, engine: str, fork: Fork) -> None:
    """Objects, in order, within its bound; its shutdown ends the loop."""
    tasks: Queue[object] = Queue(2, arena=arena)
    objects: list[object] = [{"number": number, "bytes": b"x" * number} for number in range(200)]

    def produce() -> None:
        async def put_all() -> None:
            face = aio.Queue(tasks)
            for one in objects:
                await face.put(one)
            tasks.shutdown()

        run(put_all())

    child = fork(produce)

    async def main() -> None:
        assert [one async for one in aio.Queue(tasks)] == objects
        with pytest.raises(ShutDown):
            await aio.Queue(tasks).get()
        with pytest.raises(ShutDown):
            await aio.Queue(tasks).put(1)

    run(main())
    assert child.wait() == 0


def test_what_is_got_from_a_joinable_queue_is_done_by_its_own_calls(
    arena: Arena, engine: str, endless_timers: None
) -> None:
    """What waits is awaited; the rest is the queue's."""
    tasks: JoinableQueue[int] = JoinableQueue(arena=arena)

    async def main() -> None:
        face = aio.Queue(tasks)
        getting = asyncio.create_task(face.get())
        await wait_for_the_others()
        tasks.put(1)
        assert await getting == 1
        tasks.task_done()
        tasks.join()

    run(main())


def test_a_simple_queue_is_awaited(arena: Arena, engine: str, endless_timers: None) -> None:
    """It has no call of its own that does not wait."""
    answers: SimpleQueue[str] = SimpleQueue(capacity=64, arena=arena)

    async def main() -> None:
        face = aio.Queue(answers)
        getting = asyncio.create_task(face.get())
        await wait_for_the_others()
        await face.put("an answer")
        assert await getting == "an answer"
        filling = asyncio.create_task(face.put("x" * 20))
        await asyncio.gather(
            *(face.put("x" * 20) for _ in range(3)), *(face.get() for _ in range(4))
        )
        await filling
        answers.close()
        with pytest.raises(OSError, match="closed"):
            await face.get()

    run(main())


# Processes, loops and threads


def test_a_worker_awaits_a_ring_that_it_got_by_pickle(
    arena: Arena, engine: str, fork: Fork, endless_timers: None
) -> None:
    """It was forked before there was a ring, and so was its peer."""
    mail = Ring(arena=arena)

    def work() -> None:
        async def echo() -> None:
            requests, answers = pickle.loads(mail.get())
            face, back = aio.Ring(requests), aio.Ring(answers)
            async for record in face:
                await back.put(record)

        run(echo())

    worker = fork(work)
    requests, answers = Ring(64, arena=arena), Ring(64, arena=arena)
    mail.put(pickle.dumps((requests, answers)))

    async def main() -> None:
        face, back = aio.Ring(requests), aio.Ring(answers)
        for number in range(100):
            await face.put(b"%d" % number)
            assert await back.get() == b"%d" % number
        requests.close()

    run(main())
    assert worker.wait() == 0


def test_two_loops_in_two_threads_share_a_ring(ring_type: RingType, fork: Fork) -> None:
    """Each record goes to one of them, and both are told."""
    ring, count = ring_type(1024), 4000
    received: list[list[int]] = [[], []]
    face, ready = aio.Ring(ring), threading.Barrier(3)

    def consume(mine: list[int]) -> None:
        async def main() -> None:
            ready.wait()
            async for record in face:
                mine.append(int(record))
                await asyncio.sleep(0)

        run(main())

    threads = [threading.Thread(target=consume, args=(mine,)) for mine in received]
    for thread in threads:
        thread.start()
    ready.wait()
    for number in range(count):
        ring.put(b"%d" % number)
    ring.close()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in received)
    assert sorted(received[0] + received[1]) == [*range(count)]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_loop_that_is_closed_while_tasks_wait_leaves_nothing(
    ring_type: RingType, goes_on: bool
) -> None:
    """No descriptor once its face is gone, no warning, and the face serves the next loop."""
    at_first, ring, empty = descriptors(), ring_type(64), ring_type(64)
    fill(ring)
    faces = [aio.Ring(ring)]

    def begin() -> None:
        loop = asyncio.new_event_loop()
        waiting: list[asyncio.Task[object]] = []
        waiting += [loop.create_task(faces[0].put(b"never")) for _ in range(3)]
        waiting += [loop.create_task(aio.Ring(empty).get()) for _ in range(3)]
        loop.run_until_complete(wait_for_the_others())
        assert not any(task.done() for task in waiting)
        loop.close()

    async def go_on() -> None:
        await faces[0].put(b"next")
        assert await faces[0].get() == b"next"

    begin()
    gc.collect()
    drained(ring)
    if goes_on:
        run(go_on())
    faces.clear()
    gc.collect()
    assert descriptors() == at_first


def test_a_child_awaits_what_its_parent_awaits(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """With a listener of its own, through the same face, forked while the parent's tasks waited."""
    ring, waits = ring_type(), Semaphore(0)
    face = aio.Ring(ring)

    def consume() -> None:
        async def get() -> None:
            getting = asyncio.create_task(face.get())
            await wait_for_the_others()
            waits.release()
            assert await getting == b"x"

        run(get())

    async def main() -> None:
        getting = asyncio.create_task(face.get())
        await wait_for_the_others()
        child = fork(threading_free, consume)
        waits.acquire()
        ring.put_many([b"x", b"x"])
        assert await getting == b"x"
        assert child.wait() == 0

    run(main())
    ring.destroy()


def threading_free(function: Any) -> None:
    """Run it as a child does that was forked inside a running loop, whose loop is not its own."""
    asyncio.events._set_running_loop(None)
    function()


def test_a_face_says_what_it_stands_for(ring_type: RingType, arena: Arena) -> None:
    """Its repr has its object's."""
    ring, tasks = ring_type(64), Queue[int](3, arena=arena)

    assert repr(aio.Ring(ring)) == f"<ipcmap.aio.Ring: {ring!r}>"
    assert repr(aio.Queue(tasks)) == "<ipcmap.aio.Queue: <ipcmap.Queue maxsize=3>>"
