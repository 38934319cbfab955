"""What a kill does to a queue: nothing to what was put, and what was taken comes again."""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
from itertools import count

import pytest

from children import Fork, die
from ipcmap import Arena, JoinableQueue, Queue
from ipcmap._core.reference_sections import inside
from ipcmap._deadline import Deadline
from ring_harness import Stores

pytestmark = pytest.mark.usefixtures("ring_type")  # on both engines

SMALL, LARGE = "small", "large" * 20_000


@pytest.mark.parametrize(
    "make", [lambda arena: Queue(ack=True, arena=arena), lambda arena: JoinableQueue(arena=arena)]
)
def test_what_a_dead_consumer_had_not_done_comes_again_in_order(
    make: object, arena: Arena, fork: Fork
) -> None:
    """Once, and marked; what it had done with does not."""
    tasks: Queue[str] = make(arena)  # type: ignore[operator]
    tasks.put_many(["done", SMALL, LARGE, "last"])

    def die_with_two() -> None:
        assert tasks.get() == "done"
        tasks.task_done()
        assert [tasks.get(), tasks.get()] == [SMALL, LARGE]
        die()

    assert fork(die_with_two).wait() == -signal.SIGKILL
    arena.sweep()
    assert tasks.qsize() == 3
    found = []
    for _ in range(3):
        found.append((tasks.get(timeout=5), tasks.redelivered))
        tasks.task_done()
    assert sorted(found) == sorted([(SMALL, True), (LARGE, True), ("last", False)])
    assert [task for task, again in found if again] == [SMALL, LARGE]
    assert tasks.empty()


def test_join_does_not_wait_for_the_dead(arena: Arena, fork: Fork) -> None:
    """Another does what they had begun."""
    tasks: JoinableQueue[int] = JoinableQueue(arena=arena)
    tasks.put_many(range(10))

    def die_with_one() -> None:
        tasks.get()
        die()

    assert fork(die_with_one).wait() == -signal.SIGKILL
    joiner = threading.Thread(target=tasks.join)
    joiner.start()
    done: set[int] = set()
    while len(done) < 10:
        done.add(tasks.get(timeout=30))
        tasks.task_done()
    joiner.join()
    assert done == set(range(10))


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
def test_a_put_killed_at_any_store_leaves_the_bound_as_it_was(record: str, fork: Fork) -> None:
    """Its object is there, or not; and there is room for just as many as the bound says."""
    for before in (True, False):
        for store in count(1):
            tasks: Queue[str] = Queue(3)
            tasks.put("first")

            def put(tasks: Queue[str] = tasks, store: int = store, before: bool = before) -> None:
                Stores(store, before, die).watch(tasks._ring)
                tasks.put(record)

            status = fork(put).wait()
            tasks._ring._arena.sweep()
            there = tasks.qsize()
            assert there in (1, 2)
            for _ in range(3 - there):
                tasks.put("another", block=False)
            assert tasks.full()
            found = [tasks.get(timeout=5) for _ in range(3)]
            assert found[:there] == ["first", record][:there]
            tasks.destroy()
            if status == 0:
                assert store > 1
                break


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
def test_a_get_killed_at_any_store_gives_its_object_to_another(record: str, fork: Fork) -> None:
    """It is marked if it had been taken, comes once, and join does not wait for the dead."""
    for before in (True, False):
        for store in count(1):
            tasks: JoinableQueue[str] = JoinableQueue()
            tasks.put_many([record, "next"])

            def get(
                tasks: JoinableQueue[str] = tasks, store: int = store, before: bool = before
            ) -> None:
                Stores(store, before, die).watch(tasks._ring)
                tasks.get()

            status = fork(get).wait()
            tasks._ring._arena.sweep()
            # A block may be in the ring and in the hand of the dead, and counts as both.
            assert tasks.qsize() == 2 <= tasks.unfinished_tasks <= 3
            found = []
            for _ in range(2):
                found.append((tasks.get(timeout=5), tasks.redelivered))
                tasks.task_done()
            assert found in ([(record, False), ("next", False)], [(record, True), ("next", False)])
            tasks.join()
            tasks.destroy()
            if status == 0:
                assert found[0] == (record, True)
                assert store > 1
                break


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
def test_a_task_done_killed_at_any_store_has_done_it_or_not(record: str, fork: Fork) -> None:
    """If it is not, the object comes again, marked; in any case join ends."""
    for before in (True, False):
        for store in count(1):
            tasks: JoinableQueue[str] = JoinableQueue()
            tasks.put(record)

            def done(
                tasks: JoinableQueue[str] = tasks, store: int = store, before: bool = before
            ) -> None:
                assert tasks.get() == record
                Stores(store, before, die).watch(tasks._ring)
                tasks.task_done()

            status = fork(done).wait()
            tasks._ring._arena.sweep()
            assert tasks.qsize() == tasks.unfinished_tasks in (0, 1)
            if tasks.qsize():
                assert status == -signal.SIGKILL
                assert (tasks.get(timeout=5), tasks.redelivered) == (record, True)
                tasks.task_done()
            tasks.join()
            tasks.destroy()
            if status == 0:
                assert store > 1
                break


def test_a_put_gives_up_in_time_though_someone_is_stopped(arena: Arena, fork: Fork) -> None:
    """In a section of the ring, which not even the message of queue.Full waits for."""
    objects: Queue[int] = Queue(1, arena=arena)
    objects.put(1)
    for section in (objects._ring._core._producers_section, objects._ring._core._consumers_section):

        def stop_inside(section: int = section) -> None:
            inside(section, Deadline(None), lambda: os.kill(os.getpid(), signal.SIGSTOP))

        stopped = fork(stop_inside)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        outcome: list[BaseException] = []

        def put(outcome: list[BaseException] = outcome) -> None:
            try:
                objects.put(2, timeout=0.01)
            except queue.Full as error:
                outcome.append(error)

        producer = threading.Thread(target=put)
        producer.start()
        producer.join(10)
        gave_up = list(outcome)
        stopped.kill()
        producer.join()
        assert len(gave_up) == 1


def test_an_immediate_shutdown_waits_for_who_is_stopped(arena: Arena, fork: Fork) -> None:
    """In a section of the ring: it does not take that for an empty queue."""
    objects: Queue[int] = Queue(arena=arena)
    objects.put_many(range(10))
    section = objects._ring._core._consumers_section
    stopped = fork(inside, section, Deadline(None), lambda: os.kill(os.getpid(), signal.SIGSTOP))
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
    ending = threading.Thread(target=objects.shutdown, args=[True])
    ending.start()
    while not objects.is_shutdown:
        os.sched_yield()
    stopped.kill()
    ending.join()
    assert objects.qsize() == 0


def test_a_storm_of_kills_among_workers_does_every_task(
    arena: Arena, fork: Fork, chance: random.Random
) -> None:
    """Each is done with by somebody, and only what came again may have been done twice."""
    tasks: JoinableQueue[int] = JoinableQueue(64, arena=arena)
    answers: Queue[tuple[int, bool]] = Queue(arena=arena)

    def work() -> None:
        while True:
            task = tasks.get()
            answers.put((task, tasks.redelivered))
            tasks.task_done()

    def produce() -> None:
        for task in range(600):
            tasks.put(task)

    producer, workers = fork(produce), [fork(work) for _ in range(3)]
    for _ in range(40):
        threading.Event().wait(chance.random() / 50)
        index = chance.randrange(3)
        workers[index].kill()
        workers[index] = fork(work)
    assert producer.wait() == 0
    tasks.join()
    found = answers.get_many()
    assert {task for task, _ in found} == set(range(600))
    first = {task for task, again in found if not again}
    assert len(found) - len(first) == sum(again for _, again in found)
    assert sum(not again for _, again in found) == len(first)
