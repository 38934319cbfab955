"""Events that are awaited: who is let go, and when."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Callable

import pytest

from children import Fork, die
from ipcmap import Arena, CorruptError, Event, Listener, Ring, Semaphore, StaleHandle, aio
from ipcmap._core import room_layout as at
from ipcmap._core.reference_listeners import Listeners
from ipcmap._core.reference_sections import Stalled, inside
from ipcmap._deadline import Deadline
from test_aio import descriptors, run, wait_for_the_others

pytestmark = pytest.mark.usefixtures("collected", "engine")


@pytest.fixture
def event(arena: Arena) -> Event:
    """An event in an arena of the engine."""
    return Event(arena=arena)


def test_thousands_of_tasks_go_on_when_another_process_sets_it(
    event: Event, fork: Fork, endless_timers: None
) -> None:
    """More than it has cells for those who wait otherwise, through one listener."""
    waits, at_first = Semaphore(0), descriptors()

    def set_it() -> None:
        waits.acquire()
        event.set()

    child = fork(set_it)

    async def main() -> None:
        before, face = descriptors(), aio.Event(event)
        tasks = [asyncio.create_task(face.wait()) for _ in range(5000)]
        await wait_for_the_others()
        assert descriptors() == before + 3
        waits.release()
        assert await asyncio.gather(*tasks) == [True] * 5000
        assert await face.wait(), "it is set still"

    run(main())
    assert child.wait() == 0
    assert descriptors() == at_first


def test_all_who_wait_go_on_though_it_is_cleared_at_once_and_who_comes_later_waits(
    event: Event, endless_timers: None
) -> None:
    """Whether or not the loop has looked between two sets."""

    async def main() -> None:
        face = aio.Event(event)
        early = asyncio.create_task(face.wait())
        await wait_for_the_others()
        for _ in range(3):
            event.set()
            event.clear()
            late = asyncio.create_task(face.wait())
            await wait_for_the_others()
            assert await early
            for _ in range(10):
                await asyncio.sleep(0)
            assert not late.done()
            early = late
        event.set()
        assert await early

    run(main())


def test_a_cancelled_wait_and_one_that_runs_out_of_time_hold_nobody_up(
    event: Event, endless_timers: None
) -> None:
    """The others wait on, and are let go."""

    async def main() -> None:
        face = aio.Event(event)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await face.wait()
        first, second = (asyncio.create_task(face.wait()) for _ in range(2))
        await wait_for_the_others()
        first.cancel()
        await wait_for_the_others()
        assert first.cancelled()
        assert not second.done()
        event.set()
        assert await second

    run(main())


def test_tasks_and_threads_wait_beside_each_other(
    event: Event, endless_timers: None, endless_rooms: None
) -> None:
    """A set wakes both kinds."""
    threads = [threading.Thread(target=event.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while event._core.count_waiting() < 3:
        os.sched_yield()

    async def main() -> None:
        waiting = asyncio.create_task(aio.Event(event).wait())
        await wait_for_the_others()
        event.set()
        assert await waiting

    run(main())
    for thread in threads:
        thread.join()


def test_a_worker_that_got_the_event_by_pickle_awaits_it_and_sets_the_answer(
    arena: Arena, fork: Fork, endless_timers: None
) -> None:
    """It was forked before there was an event."""
    mail = Ring(arena=arena)

    def work() -> None:
        asked, answered = pickle.loads(mail.get())

        async def answer() -> None:
            await aio.Event(asked).wait()
            answered.set()

        run(answer())

    worker = fork(work)
    asked, answered = Event(arena=arena), Event(arena=arena)
    mail.put(pickle.dumps((asked, answered)))

    async def main() -> None:
        waiting = asyncio.create_task(aio.Event(answered).wait())
        await wait_for_the_others()
        asked.set()
        assert await waiting

    run(main())
    assert worker.wait() == 0


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("in_the_section", [False, True])
def test_a_signal_handler_sets_it_for_those_who_await_it(
    event: Event, in_the_section: bool
) -> None:
    """Whatever it interrupts; where that is a call of the same event, a timer finds the flag."""

    async def main() -> None:
        waiting = asyncio.create_task(aio.Event(event).wait())
        await wait_for_the_others()
        if in_the_section:
            inside(event._core._section, Deadline(None), signal.raise_signal, signal.SIGUSR1)
        else:
            signal.raise_signal(signal.SIGUSR1)
        assert await waiting

    before = signal.signal(signal.SIGUSR1, lambda *_: event.set())
    try:
        run(main())
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4])
@pytest.mark.usefixtures("short_slices")
def test_a_setter_killed_at_any_step_leaves_nobody_waiting(
    event: Event, step: int, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the flag is set, all who wait see it; before, nothing has happened."""

    def die_instead(*_: object) -> object:
        die()
        raise AssertionError

    def set_it() -> None:
        core = event._core
        if step == 0:
            monkeypatch.setattr(core, "_let_go", die_instead)
        elif step == 1:
            monkeypatch.setattr(core, "_wake", die_instead)
        elif step == 2:
            monkeypatch.setattr(core, "listeners", die_instead)
        elif step == 3:
            monkeypatch.setattr(os, "readlink", die_instead)
        else:
            monkeypatch.setattr(os, "write", die_instead)
        event.set()

    async def main() -> None:
        face = aio.Event(event)
        tasks = [asyncio.create_task(face.wait()) for _ in range(10)]
        await wait_for_the_others()
        assert fork(set_it).wait() == -signal.SIGKILL
        assert await asyncio.gather(*tasks) == [True] * 10
        event.clear()
        again = asyncio.create_task(face.wait())
        await wait_for_the_others()
        event.set()
        assert await again

    run(main())


def test_a_killed_waiter_costs_one_set_a_look(
    event: Event, arena: Arena, fork: Fork, endless_timers: None
) -> None:
    """Its block is the sweep's, and the living are called."""
    waits = Semaphore(0)

    def wait() -> None:
        async def main() -> None:
            waiting = asyncio.create_task(aio.Event(event).wait())
            await wait_for_the_others()
            waits.release()
            await waiting

        run(main())

    children = [fork(wait) for _ in range(3)]
    for _ in children:
        waits.acquire()
    children[0].kill()
    arena.sweep()
    event.set()
    assert [child.wait() for child in children] == [-signal.SIGKILL, 0, 0]
    assert event._core._words[at.MARK] == 0


@pytest.mark.parametrize("damage", [2**64 - 1, 1 << 40, 1])
def test_damage_to_what_listeners_share_is_no_crash(event: Event, damage: int) -> None:
    """Whatever the words say, a set is a set."""

    async def main() -> None:
        waiting = asyncio.create_task(aio.Event(event).wait())
        await wait_for_the_others()
        words = event._core._words
        for word in (at.MARK, at.LISTENERS, at.CALLS):
            words[word] = damage
        event.set()
        assert await waiting

    run(main())


def test_a_destroyed_event_is_stale_for_those_who_come(event: Event) -> None:
    """As for its own calls."""
    event.destroy()

    async def main() -> None:
        with pytest.raises(StaleHandle):
            await aio.Event(event).wait()

    run(main())


@pytest.mark.parametrize("leaves", ["set", "cancel"])
def test_nothing_is_left_when_all_have_gone(event: Event, leaves: str, arena: Arena) -> None:
    """No block, and no descriptor."""
    blocks, at_first = arena.statistics().blocks, descriptors()
    ways: dict[str, Callable[[asyncio.Task[bool]], object]] = {
        "set": lambda _: event.set(),
        "cancel": lambda task: task.cancel(),
    }

    async def main() -> None:
        waiting = asyncio.create_task(aio.Event(event).wait())
        await wait_for_the_others()
        ways[leaves](waiting)
        await asyncio.wait([waiting])

    run(main())
    assert (arena.statistics().blocks, descriptors()) == (blocks, at_first)


def test_it_says_what_it_stands_for(event: Event) -> None:
    """Its repr has its object's."""
    assert repr(aio.Event(event)) == f"<ipcmap.aio.Event: {event!r}>"


@pytest.mark.usefixtures("short_slices")
def test_damage_while_tasks_wait_is_an_error_of_theirs(event: Event) -> None:
    """And no work for the loop, over and over."""

    async def main() -> None:
        errors = list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda _, said: errors.append(said))
        tasks = [asyncio.create_task(aio.Event(event).wait()) for _ in range(3)]
        await wait_for_the_others()
        event._core._words[at.FLAG] = 2
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in said] == [CorruptError] * 3
        assert not errors

    run(main())


@pytest.mark.usefixtures("short_slices")
def test_a_set_that_comes_before_the_listener_is_armed_again_is_seen_though_cleared(
    event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited then goes on; the flag was set as the listener was to be armed."""

    async def main() -> None:
        arm = Listener._arm
        left = [event.set, event.clear]

        def armed(listener: Listener, seen: int | None) -> None:
            if len(left) == 2:
                left.pop(0)()
                arm(listener, seen)
                left.pop()()
            else:
                arm(listener, seen)

        face = aio.Event(event)
        first = asyncio.create_task(face.wait())
        await wait_for_the_others()
        first.cancel()
        await wait_for_the_others()
        event.set()  # so that none is armed
        event.clear()
        monkeypatch.setattr(Listener, "_arm", armed)
        assert await face.wait()

    run(main())


@pytest.mark.usefixtures("short_slices")
def test_a_set_that_comes_while_nobody_could_arm_is_seen_though_cleared(
    event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody was stopped in the section when the task came to wait."""

    def stalled(*_: object) -> bool:
        raise Stalled

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Listeners, "arm", stalled)
            waiting = asyncio.create_task(aio.Event(event).wait())
            await wait_for_the_others()
        event.set()
        event.clear()
        assert await waiting

    run(main())
