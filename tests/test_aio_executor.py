"""An executor in asyncio: by its own asubmit, and as the executor of a loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

import executors as work
from ipcmap import Arena, ProcessPoolExecutor, Semaphore, WorkerDied
from test_aio import run


@pytest.fixture
def executor(engine: str, arena: Arena) -> Iterator[ProcessPoolExecutor]:
    """An executor of two workers."""
    with ProcessPoolExecutor(2, arena=arena) as executor:
        yield executor


def hold(begun: Semaphore) -> None:
    """Say that it has begun, and never end."""
    begun.release()
    signal.pause()


def test_hundreds_of_tasks_await_their_results(executor: ProcessPoolExecutor) -> None:
    """Each gets its own; arguments by place and by name."""

    async def main() -> None:
        results = await asyncio.gather(
            *(executor.asubmit(work.add, n, other=1) for n in range(500))
        )
        assert results == [*range(1, 501)]

    run(main())


def test_an_exception_and_a_death_are_raised_where_they_are_awaited(
    executor: ProcessPoolExecutor,
) -> None:
    """And cost nobody else anything."""

    async def main() -> None:
        said = await asyncio.gather(
            executor.asubmit(work.fail, KeyError("k")),
            executor.asubmit(work.die),
            executor.asubmit(work.same, 1),
            return_exceptions=True,
        )
        assert [type(one) for one in said] == [KeyError, WorkerDied, int]

    run(main())


def test_a_function_that_raises_stop_iteration_ends_the_wait_for_it(
    executor: ProcessPoolExecutor,
) -> None:
    """No coroutine can raise it, so it is the cause of what is raised."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration") as raised:
            await executor.asubmit(next, iter([]))
        assert isinstance(raised.value.__cause__, StopIteration)

    run(main())


@pytest.mark.parametrize("by", ["cancel", "timeout"])
def test_a_cancelled_task_ends_what_a_worker_does_for_it(
    executor: ProcessPoolExecutor, arena: Arena, by: str
) -> None:
    """Both workers are busy for ever, and yet the next tasks are done."""
    begun = Semaphore(0, arena=arena)

    async def main() -> None:
        tasks = [asyncio.create_task(executor.asubmit(hold, begun)) for _ in range(2)]
        for _ in tasks:
            await asyncio.to_thread(begun.acquire)
        if by == "cancel":
            for task in tasks:
                task.cancel()
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.gather(*tasks)
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert await executor.asubmit(work.same, 7) == 7

    run(main())


def test_it_is_the_executor_of_a_loop(executor: ProcessPoolExecutor) -> None:
    """As asyncio's run_in_executor wants it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *(loop.run_in_executor(executor, work.add, n, 1) for n in range(100))
        )
        assert results == [*range(1, 101)]
        with pytest.raises(WorkerDied):
            await loop.run_in_executor(executor, work.die)
        assert await loop.run_in_executor(executor, work.same, "still there") == "still there"

    run(main())


def test_an_executor_that_is_shut_down_refuses_what_is_awaited(engine: str, arena: Arena) -> None:
    """As submit does."""
    executor = ProcessPoolExecutor(1, arena=arena)
    executor.shutdown()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="shut"):
            await executor.asubmit(work.same, 1)

    run(main())
