"""A map whose workers have everything by the fork: order, errors, and deaths of workers."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from children import Fork
from ipcmap import Arena, BrokenError, Mapping, Process, WorkerDied, fork_map
from ipcmap._core import processors

pytestmark = pytest.mark.usefixtures("default_engine")


class Awkward(Exception):
    """An exception that is pickled, and cannot be loaded."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("awkward")


class Unloadable:
    """A result that is pickled, and cannot be loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.stat, ("/nowhere at all",)


@pytest.fixture
def counter() -> Iterator[memoryview]:
    """Words that workers count in."""
    mapping = Mapping.anonymous(1 << 16)
    words = mapping.view().cast("Q")
    yield words
    words.release()
    mapping.close()


def be_killed() -> NoReturn:
    """End by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("max_workers", [None, 1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 50, 2000])
def test_results_are_in_order_and_none_is_missing(max_workers: int | None, count: int) -> None:
    """However many workers there are, and whoever was free."""
    squares = fork_map(lambda number: number**2, range(count), max_workers=max_workers)

    assert squares == [number**2 for number in range(count)]


def test_neither_function_nor_items_are_pickled() -> None:
    """A generator, a lock, a lambda: what cannot be sent is there by the fork."""
    lock, factor = threading.Lock(), 3

    def multiply(item: tuple[Any, Callable[[], int]]) -> int:
        with lock:
            return factor * item[1]()

    items = ((threading.Lock(), lambda number=number: number) for number in range(5))

    assert fork_map(multiply, items) == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("nbytes", [1 << 10, 1 << 20, 5 << 20])
def test_results_may_be_larger_than_the_ring(nbytes: int) -> None:
    """The parent takes them while the workers go on."""
    results = fork_map(lambda number: bytes([number]) * nbytes, range(12), max_workers=3)

    assert results == [bytes([number]) * nbytes for number in range(12)]


def test_as_many_workers_as_asked_for_are_at_work_together(counter: memoryview) -> None:
    """Each waits for the others, which nobody can do alone."""

    def meet(place: int) -> int:
        counter[place] = os.getpid()
        while not all(counter[:3]):
            time.sleep(0)
        return counter[place]

    assert len({os.getpid(), *fork_map(meet, range(3), max_workers=3)}) == 4


def test_by_default_there_are_as_many_workers_as_processors(
    monkeypatch: pytest.MonkeyPatch, counter: memoryview
) -> None:
    """Those of the affinity, or of the quota where that is less."""
    assert 1 <= processors.available() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(processors, "_allowed", lambda: 8)
    monkeypatch.setattr(processors, "quota", lambda: 2.5)
    assert processors.available() == 2
    monkeypatch.setattr(processors, "quota", lambda: 0.5)
    assert processors.available() == 1


def test_without_a_worker_nothing_can_be_done() -> None:
    """Nor with less."""
    with pytest.raises(ValueError, match="max_workers=0"):
        fork_map(int, [], max_workers=0)


# Errors


def test_the_error_of_the_first_item_in_order_is_raised(counter: memoryview) -> None:
    """With the worker's traceback as its cause; nothing is begun after it is known."""

    def fail_late(number: int) -> None:
        counter[number] = 1
        if number == 1:
            while not counter[2]:
                time.sleep(0)
            time.sleep(0.01)  # so that the other error comes first
        if number:
            raise ValueError(number)

    with pytest.raises(ValueError, match=r"^1$") as raised:
        fork_map(fail_late, range(8000), max_workers=2)

    assert "in fail_late" in str(raised.value.__cause__)
    assert "forked_map.py" not in str(raised.value.__cause__)
    assert sum(counter) < 8000


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_no_exception_ends_a_worker(error: type[BaseException]) -> None:
    """It is an outcome as any other."""

    def fail(number: int) -> None:
        raise error(number)

    with pytest.raises(error, match=r"^0$"):
        fork_map(fail, range(3), max_workers=1)


def test_exceptions_may_stand_in_the_place_of_results() -> None:
    """Then every item is done."""

    def reciprocal(number: float) -> float:
        return 1 / number

    two, one, none, half = fork_map(reciprocal, [0.5, 1, 0, 2], return_exceptions=True)

    assert [two, one, half] == [2, 1, 0.5]
    assert isinstance(none, ZeroDivisionError)
    assert "in reciprocal" in str(none.__cause__)


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_item() -> None:
    """So is one that cannot be loaded."""
    results = fork_map(
        lambda make: make(), [threading.Lock, Unloadable, int], return_exceptions=True
    )

    assert isinstance(results[0], TypeError)
    assert "pickle" in str(results[0])
    assert isinstance(results[1], FileNotFoundError)
    assert results[2] == 0


def test_an_exception_that_cannot_travel_arrives_as_text() -> None:
    """With the name of its type, and its traceback."""

    class Local(Exception):
        pass

    def fail(error: BaseException) -> None:
        raise error

    results = fork_map(fail, [Local("here"), Awkward(1, 2)], return_exceptions=True)

    for result, text in zip(
        results, ("Local, text='here'", "Awkward, text='awkward'"), strict=True
    ):
        assert isinstance(result, RuntimeError)
        assert text in str(result)
        assert "in fail" in str(result.__cause__)


# Deaths


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("end", "exitcode"),
    [(be_killed, -signal.SIGKILL), (lambda: os._exit(0), 0), (lambda: os._exit(3), 3)],
)
def test_a_worker_that_dies_costs_its_item_only(
    end: Callable[[], object], exitcode: int, workers: int, default_engine: Arena
) -> None:
    """The error says which item, and of what the worker died."""

    def square(number: int) -> int:
        if number % 10 == 7:
            end()
        return number**2

    results = fork_map(square, range(30), max_workers=workers, return_exceptions=True)

    died = {index: result for index, result in enumerate(results) if index % 10 == 7}
    assert [*died] == [7, 17, 27]
    for index, error in died.items():
        assert isinstance(error, WorkerDied)
        assert (error.task, error.record.exitcode) == (index, exitcode)
        assert f"item={index}, pid={error.record.pid}" in str(error)
        results[index] = index**2
    assert results == [number**2 for number in range(30)]
    default_engine.sweep()
    assert default_engine.statistics().blocks == 0


def test_the_death_of_a_worker_is_raised_at_its_item() -> None:
    """As an error of the function is."""
    with pytest.raises(WorkerDied, match="item=1") as raised:
        fork_map(lambda number: be_killed() if number else None, range(4), max_workers=1)

    assert raised.value.record.signal == signal.SIGKILL


def test_a_worker_killed_before_it_began_costs_nothing(
    counter: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took and did not note is handed out again."""
    from ipcmap.forked_map import _Crew

    work = _Crew._work

    def lose_one(crew: _Crew, place: int, tasks: Any) -> None:
        counter[0] += 1
        if counter[0] == 1:
            tasks.get()
            be_killed()
        work(crew, place, tasks)

    monkeypatch.setattr(_Crew, "_work", lose_one)

    assert fork_map(abs, range(20), max_workers=1) == [*range(20)]
    assert counter[0] == 3


def test_workers_that_all_die_before_they_begin_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Instead of a call that never ends."""
    from ipcmap.forked_map import _Crew

    monkeypatch.setattr(_Crew, "_work", lambda *_: be_killed())
    with pytest.raises(BrokenError, match="SIGKILL") as raised:
        fork_map(abs, range(20), max_workers=2)

    assert len(raised.value.deaths) == 11


def test_items_have_one_outcome_each_though_workers_are_killed_all_the_time(
    chance: random.Random, counter: memoryview
) -> None:
    """By a timer, at any moment: a result, or the death of the worker that had it in hand."""
    seed = chance.randrange(2**32)

    def work(number: int) -> int:
        counter[number] += 1
        generator = random.Random(seed + number)
        if generator.random() < 0.2:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, 2e-4))
        return -number

    results = fork_map(work, range(500), max_workers=4, return_exceptions=True)

    died = [result for result in results if isinstance(result, WorkerDied)]
    for number, result in enumerate(results):
        if isinstance(result, WorkerDied):
            assert (result.task, result.record.signal) == (number, signal.SIGALRM)
            assert counter[number] <= 1
        else:
            assert (result, counter[number]) == (-number, 1)
    assert 0 < len(died) < 400
    assert len({error.record.pid for error in died}) == len(died)


def test_where_no_process_can_be_forked_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the kernel's."""
    start, left = Process.start, [1]

    def refuse(process: Process) -> None:
        if not left[0]:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left[0] -= 1
        start(process)

    monkeypatch.setattr(Process, "start", refuse)
    with pytest.raises(OSError, match="unavailable"):
        fork_map(time.sleep, [3600] * 3, max_workers=3)


def test_ctrl_c_ends_it_and_its_workers(fork: Fork, counter: memoryview) -> None:
    """The exception is the caller's; that nobody is left is seen after each test."""

    def work(number: int) -> None:
        counter[0] = 1
        signal.pause()

    def call() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            fork_map(work, range(3), max_workers=2)

    caller = fork(call)
    while not counter[0]:
        os.sched_yield()
    os.kill(caller.pid, signal.SIGINT)

    assert caller.wait() == 0


def test_it_may_be_called_within_itself() -> None:
    """Workers may have workers."""

    def row(number: int) -> list[int]:
        return fork_map(lambda factor: number * factor, range(3), max_workers=2)

    assert fork_map(row, range(3)) == [[0, 0, 0], [0, 1, 2], [0, 2, 4]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_other_threads_are_named_in_a_warning() -> None:
    """They are what goes wrong in forked workers."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="the other one")
    thread.start()
    try:
        with pytest.warns(RuntimeWarning, match="the other one") as warned:
            assert fork_map(abs, [-1]) == [1]
    finally:
        over.set()
        thread.join()

    assert warned[0].filename == __file__
