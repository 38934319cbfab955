"""Locks and semaphores that are awaited: in asyncio, beside threads and other processes."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from children import Fork, die
from ipcmap import (
    Arena,
    BoundedSemaphore,
    Lock,
    Ring,
    RLock,
    Semaphore,
    StaleHandle,
    aio,
    native_locks,
)
from ipcmap._core import monitor_layout as at
from ipcmap.aio import guards
from ipcmap.aio.line import Line
from listening import PATIENCE
from monitor_harness import stop, wait_until_dead
from test_aio import descriptors, run, wait_for_the_others

pytestmark = pytest.mark.usefixtures("collected")


@pytest.fixture
def endless_slices(endless_timers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no timer ring: who is not called waits for ever."""
    monkeypatch.setattr(guards, "FIRST_SLICE", 3600)
    monkeypatch.setattr(guards, "LONGEST_SLICE", 3600)


@pytest.fixture
def lock(arena: Arena, engine: str) -> Lock:
    """A lock in an arena of the engine."""
    made = Lock(arena=arena)
    assert isinstance(made, native_locks.Lock) == (engine == "native")
    return made


@pytest.fixture
def places(arena: Arena, engine: str) -> BoundedSemaphore:
    """Three places."""
    return BoundedSemaphore(3, arena=arena)


def run_one(function: Callable[..., Coroutine[Any, Any, object]], *arguments: object) -> None:
    """Run what a function makes, in the process that calls this."""
    run(function(*arguments))


def test_a_task_waits_for_a_lock_that_another_process_gives_back(
    lock: Lock, fork: Fork, endless_slices: None
) -> None:
    """It is called, and no timer is needed."""
    held, waits = Semaphore(0), Semaphore(0)

    def hold() -> None:
        with lock:
            held.release()
            waits.acquire()

    child = fork(hold)

    async def main() -> None:
        face = aio.Lock(lock)
        held.acquire()
        taking = asyncio.create_task(face.acquire())
        await wait_for_the_others()
        assert not taking.done()
        waits.release()
        assert await taking
        assert lock.locked()
        face.release()

    run(main())
    assert child.wait() == 0


def test_thousands_of_tasks_take_a_lock_in_their_order_through_one_listener(
    lock: Lock, endless_slices: None
) -> None:
    """First come, first served, one at a time."""
    count = 3000
    served = list[int]()

    async def main() -> None:
        face, other = aio.Lock(lock), aio.Lock(lock)
        inside = 0

        async def take(number: int) -> None:
            nonlocal inside
            async with face if number % 2 else other:
                inside += 1
                assert inside == 1
                served.append(number)
                if number % 100 == 0:
                    await asyncio.sleep(0)
                inside -= 1

        lock.acquire()
        before = descriptors()
        tasks = [asyncio.create_task(take(number)) for number in range(count)]
        await wait_for_the_others()
        assert descriptors() == before + 3
        lock.release()
        await asyncio.gather(*tasks)

    at_first = descriptors()
    run(main())
    assert served == [*range(count)]
    assert not lock.locked()
    assert descriptors() == at_first


def test_tasks_threads_and_processes_share_the_places_of_a_semaphore(
    places: BoundedSemaphore, arena: Arena, fork: Fork
) -> None:
    """Never more than there are, and nobody is forgotten."""
    inside = Semaphore(3, arena=arena)

    async def use_many() -> None:
        face = aio.Semaphore(places)

        async def use() -> None:
            async with face:
                assert inside.acquire(False), "more were inside than there are places"
                await asyncio.sleep(0)
                inside.release()

        await asyncio.gather(*(use() for _ in range(100)))

    def use_many_times() -> None:
        for _ in range(100):
            with places:
                assert inside.acquire(False)
                inside.release()

    children = [fork(run_one, use_many) for _ in range(2)] + [fork(use_many_times)]
    thread = threading.Thread(target=use_many_times)
    thread.start()
    run(use_many())
    thread.join()
    assert [child.wait() for child in children] == [0] * 3
    assert places.value == 3


def test_each_of_two_releases_serves_one_of_two_processes(
    arena: Arena, engine: str, fork: Fork, endless_slices: None
) -> None:
    """All who listen are called by the first; whoever was too late listens again."""
    tokens, waits = Semaphore(0, arena=arena), Semaphore(0)

    async def take() -> None:
        taking = asyncio.create_task(aio.Semaphore(tokens).acquire())
        await wait_for_the_others()
        waits.release()
        await taking

    children = [fork(run_one, take) for _ in range(2)]
    for _ in children:
        waits.acquire()
    tokens.release()
    tokens.release()
    assert [child.wait() for child in children] == [0, 0]
    assert tokens.value == 0


def test_a_sleeping_thread_and_a_task_are_both_served(
    arena: Arena, engine: str, endless_slices: None
) -> None:
    """One release wakes the one and calls the other; the second is for whom the first was not."""
    tokens = Semaphore(0, arena=arena)
    thread = threading.Thread(target=tokens.acquire)

    async def main() -> None:
        taking = asyncio.create_task(aio.Semaphore(tokens).acquire())
        await wait_for_the_others()
        thread.start()
        while not tokens._core._words[at.SLEEPERS] & 0xFFFF:
            os.sched_yield()
        tokens.release()
        tokens.release()
        assert await taking

    run(main())
    thread.join()
    assert tokens.value == 0


@pytest.mark.parametrize("told", [False, True])
def test_a_cancelled_task_has_taken_nothing_and_the_next_one_is_served(
    lock: Lock, told: bool, endless_slices: None
) -> None:
    """Also when it had been told already that the lock is there."""

    async def main() -> None:
        face = aio.Lock(lock)
        lock.acquire()
        first, second = (asyncio.create_task(face.acquire()) for _ in range(2))
        await wait_for_the_others()
        lock.release()
        if told:
            face._acquiring.here()._ready()
        first.cancel()
        assert await second
        assert first.cancelled()
        face.release()
        assert not lock.locked()

    run(main())


def test_a_task_that_runs_out_of_time_has_taken_nothing(lock: Lock, endless_slices: None) -> None:
    """The lock is there for others as soon as it is given back."""

    async def main() -> None:
        lock.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await aio.Lock(lock).acquire()
        lock.release()
        assert lock.acquire(False)
        lock.release()

    run(main())


@pytest.mark.parametrize("tokens", [1, 3])
def test_every_token_is_accounted_for_where_tasks_are_cancelled(
    arena: Arena, engine: str, tokens: int, fork: Fork, chance: random.Random
) -> None:
    """Whatever moment a cancel comes at, in two processes: what was taken is given back, once."""
    guard = BoundedSemaphore(tokens, arena=arena)
    inside = BoundedSemaphore(tokens, arena=arena)
    seeds = [chance.random() for _ in range(2)]

    async def use(face: aio.Semaphore, mine: random.Random, counts: list[int]) -> None:
        for _ in range(60):
            holds = False

            async def take_and_give() -> None:
                nonlocal holds
                async with face:
                    holds = inside.acquire(False)
                    assert holds, "more were inside than there are tokens"
                    try:
                        await asyncio.sleep(mine.choice([0, 0, 1e-4]))
                    finally:
                        inside.release()

            task = asyncio.create_task(take_and_give())
            try:
                async with asyncio.timeout(mine.choice([0, 1e-5, 1e-4, 1e-3, PATIENCE])):
                    for _ in range(mine.randrange(3)):
                        await asyncio.sleep(0)
                    if mine.random() < 0.3:
                        task.cancel()
                    await task
                counts[0] += 1
            except (TimeoutError, asyncio.CancelledError):
                counts[1] += 1
                task.cancel()
                await asyncio.wait([task])

    async def use_many(seed: float) -> None:
        face, mine, counts = aio.Semaphore(guard), random.Random(seed), [0, 0]
        await asyncio.gather(*(use(face, mine, counts) for _ in range(8)))
        assert sum(counts) == 8 * 60
        assert counts[1] > 0, "some were cancelled"

    child = fork(run_one, use_many, seeds[0])
    run(use_many(seeds[1]))
    assert child.wait() == 0
    assert guard.value == inside.value == tokens


# Deaths, stops and forks


def test_a_lock_is_taken_over_from_a_holder_that_is_killed_while_it_is_awaited(
    lock: Lock, fork: Fork
) -> None:
    """As the object's own acquire does it, and says so."""
    held = Semaphore(0)

    def hold() -> None:
        lock.acquire()
        held.release()
        signal.pause()

    child = fork(hold)
    held.acquire()

    async def main() -> None:
        face = aio.Lock(lock)
        first, second = (asyncio.create_task(face.acquire()) for _ in range(2))
        await wait_for_the_others()
        child.kill()
        assert await first
        recovered = [lock.recovered]
        assert not second.done()
        face.release()
        assert await second
        recovered.append(lock.recovered)
        assert recovered == [True, False]
        face.release()

    run(main())


def test_the_places_of_a_killed_process_come_back_to_those_who_await_them(
    places: BoundedSemaphore, fork: Fork
) -> None:
    """All three, though its parent has not reaped it."""
    held = Semaphore(0)

    def hold() -> None:
        for _ in range(3):
            places.acquire()
        held.release()
        signal.pause()

    child = fork(hold)
    held.acquire()

    async def main() -> None:
        face = aio.Semaphore(places)
        tasks = [asyncio.create_task(face.acquire()) for _ in range(3)]
        await wait_for_the_others()
        os.kill(child.pid, signal.SIGKILL)
        wait_until_dead(child)
        assert await asyncio.gather(*tasks) == [True] * 3

    run(main())
    child.wait()
    assert places.value == 0


def test_nothing_is_taken_from_a_holder_that_is_stopped(lock: Lock, fork: Fork) -> None:
    """It lives, and gives it back when it goes on; the loop's other tasks run meanwhile."""
    held = Semaphore(0)

    def hold() -> None:
        with lock:
            held.release()
            os.kill(os.getpid(), signal.SIGSTOP)

    child = fork(hold)
    held.acquire()
    os.waitpid(child.pid, os.WUNTRACED)

    async def main() -> None:
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert not taking.done()
        os.kill(child.pid, signal.SIGCONT)
        assert await taking
        lock.release()

    run(main())
    assert child.wait() == 0


@pytest.mark.parametrize("step", ["call", "look", "write"])
def test_a_process_killed_between_its_release_and_its_call_leaves_nobody_waiting(
    lock: Lock, step: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens looks again at the end of a slice."""
    held, waits = Semaphore(0), Semaphore(0)

    def die_instead(*_: object) -> object:
        die()
        raise AssertionError

    def give() -> None:
        lock.acquire()
        held.release()
        waits.acquire()
        if step == "call":
            monkeypatch.setattr(lock._core, "call_listeners", die_instead)
        else:
            monkeypatch.setattr(os, {"look": "readlink", "write": "write"}[step], die_instead)
        lock.release()

    child = fork(give)
    held.acquire()

    async def main() -> None:
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        waits.release()
        assert await taking
        assert not lock.recovered, "it was given back"
        lock.release()

    run(main())
    assert child.wait() == -signal.SIGKILL


def test_a_process_killed_while_it_awaits_costs_one_release_a_look(
    lock: Lock, arena: Arena, fork: Fork, endless_slices: None
) -> None:
    """And the living are served."""
    waits = Semaphore(0)

    async def take() -> None:
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        waits.release()
        await taking
        lock.release()

    lock.acquire()
    children = [fork(run_one, take) for _ in range(2)]
    for _ in children:
        waits.acquire()
    children[0].kill()
    lock.release()
    assert [child.wait() for child in children] == [-signal.SIGKILL, 0]
    arena.sweep()
    assert lock._core._words[at.SLEEPERS] == 0, "nobody is marked as listening"


def test_a_stopped_process_that_was_called_holds_nobody_up(
    lock: Lock, fork: Fork, endless_slices: None
) -> None:
    """It has taken nothing as yet, and so the next who asks does."""
    waits = Semaphore(0)

    async def take() -> None:
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        waits.release()
        await taking
        lock.release()

    lock.acquire()
    child = fork(run_one, take)
    waits.acquire()
    stop(child, signal.SIGSTOP)

    async def main() -> None:
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        lock.release()
        assert await taking
        lock.release()

    run(main())
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0


def test_a_child_forked_by_a_running_loop_awaits_in_a_loop_of_its_own(
    lock: Lock, fork: Fork, endless_slices: None
) -> None:
    """Its parent's listener is closed there, and its parent goes on."""

    async def take_once() -> None:
        async with aio.Lock(lock):
            pass

    def work() -> None:
        loop = asyncio.new_event_loop()
        asyncio._set_running_loop(None)
        loop.run_until_complete(take_once())
        loop.close()

    async def main() -> None:
        lock.acquire()
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        child = fork(work)
        lock.release()
        assert await taking
        lock.release()
        assert child.wait() == 0

    run(main())


def test_a_loop_that_is_closed_with_tasks_in_the_line_leaves_nothing(
    lock: Lock, arena: Arena, endless_slices: None
) -> None:
    """No listener, no token, and the lock serves the next loop."""
    blocks, at_first = arena.statistics().blocks, descriptors()

    def wait_in_vain() -> None:
        loop = asyncio.new_event_loop()
        face = aio.Lock(lock)
        waiting = [loop.create_task(face.acquire()) for _ in range(3)]
        loop.run_until_complete(wait_for_the_others())
        loop.close()
        for task in waiting:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.get_coro().close()

    lock.acquire()
    wait_in_vain()
    gc.collect()
    assert (arena.statistics().blocks, descriptors()) == (blocks, at_first)
    lock.release()

    async def main() -> None:
        async with aio.Lock(lock):
            pass

    run(main())


def test_a_worker_that_got_a_lock_by_pickle_awaits_it(
    arena: Arena, engine: str, fork: Fork, endless_slices: None
) -> None:
    """It was forked before there was a lock."""
    mail, ready = Ring(arena=arena), Semaphore(0)

    def work() -> None:
        theirs: Lock = pickle.loads(mail.get())

        async def take() -> None:
            taking = asyncio.create_task(aio.Lock(theirs).acquire())
            await wait_for_the_others()
            ready.release()
            await taking
            theirs.release()

        run(take())

    worker = fork(work)
    lock = Lock(arena=arena)
    lock.acquire()
    mail.put(pickle.dumps(lock))
    ready.acquire()
    lock.release()
    assert worker.wait() == 0


# The rest


def test_a_release_calls_nobody_once_all_have_gone(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, endless_slices: None
) -> None:
    """The first finds that, and the next does not look."""
    calls = 0
    call = lock._core.call_listeners

    def counted() -> None:
        nonlocal calls
        calls += 1
        call()

    monkeypatch.setattr(lock._core, "call_listeners", counted)

    async def main() -> None:
        lock.acquire()
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        taking.cancel()
        await asyncio.wait([taking])

    run(main())
    lock.release()
    for _ in range(5):
        with lock:
            pass
    assert calls == 1


def test_a_handler_that_raises_in_the_call_leaves_the_lock_given_back(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens hears of it, at the end of a slice at the latest."""

    def interrupted() -> None:
        monkeypatch.undo()
        raise InterruptedError

    async def main() -> None:
        lock.acquire()
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        monkeypatch.setattr(lock._core, "call_listeners", interrupted)
        with pytest.raises(InterruptedError):
            lock.release()
        assert await taking
        lock.release()

    run(main())


def test_a_handler_that_raises_as_a_task_leaves_the_line_stops_nobody_in_it(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, endless_slices: None
) -> None:
    """Who is gone stands in nobody's way."""

    def interrupted(*_: object) -> None:
        raise InterruptedError

    async def main() -> None:
        face = aio.Lock(lock)
        lock.acquire()
        first, second = (asyncio.create_task(face.acquire()) for _ in range(2))
        await wait_for_the_others()
        with monkeypatch.context() as patch:
            patch.setattr(Line, "_leave", interrupted)
            first.cancel()
            said = await asyncio.gather(first, return_exceptions=True)
            assert [type(error) for error in said] == [InterruptedError]
        lock.release()
        assert await second
        lock.release()

    run(main())


def test_those_who_wait_for_a_destroyed_lock_get_the_error(lock: Lock) -> None:
    """At the end of a slice, one after the other."""

    async def main() -> None:
        lock.acquire()
        tasks = [asyncio.create_task(aio.Lock(lock).acquire()) for _ in range(3)]
        await wait_for_the_others()
        lock.destroy()
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in said] == [StaleHandle] * 3

    run(main())


@pytest.mark.parametrize("damage", [2**64 - 1, 1 << 40, 1])
def test_damage_to_what_listeners_share_is_no_crash(lock: Lock, damage: int) -> None:
    """Whatever the words say, a release is a release."""

    async def main() -> None:
        lock.acquire()
        taking = asyncio.create_task(aio.Lock(lock).acquire())
        await wait_for_the_others()
        for word in (at.SLEEPERS, at.LISTENERS, at.CALLS):
            lock._core._words[word] = damage
        lock.release()
        assert await taking
        lock.release()

    run(main())


def test_an_rlock_is_refused(arena: Arena, engine: str) -> None:
    """All tasks of a thread would be its owner."""
    with pytest.raises(TypeError, match="owner of an RLock is a thread"):
        aio.Lock(RLock(arena=arena))  # type: ignore[arg-type]


def test_a_face_says_what_it_stands_for(lock: Lock, places: BoundedSemaphore) -> None:
    """Its repr has its object's."""
    assert repr(aio.Lock(lock)) == f"<ipcmap.aio.Lock: {lock!r}>"
    assert repr(aio.Semaphore(places)) == f"<ipcmap.aio.Semaphore: {places!r}>"
