"""An executor does what it is given, and says what came of it, on every engine."""

from __future__ import annotations

import concurrent.futures
import gc
import importlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

import executors as work
from children import Fork
from ipcmap import Arena, ProcessPoolExecutor, Ring
from ipcmap._core import stall_log


def test_a_task_is_done_by_a_worker(executor: ProcessPoolExecutor) -> None:
    """Arguments by place and by name, and the result comes back."""
    assert executor.submit(divmod, 17, 5).result() == (3, 2)
    assert executor.submit(int, "ff", base=16).result() == 255
    assert executor.submit(work.pid_of).result() != os.getpid()


def test_results_of_a_map_come_in_order(executor: ProcessPoolExecutor) -> None:
    """Of several iterables the shortest counts; chunks change nothing."""
    assert list(executor.map(work.add, range(1000), range(5, 2000))) == [
        2 * item + 5 for item in range(1000)
    ]
    assert list(executor.map(work.same, range(100), chunksize=7)) == list(range(100))
    assert list(executor.map(work.same, ())) == []


def test_every_item_is_done_once(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """The workers count what they do."""
    ring = Ring(arena=arena)

    results = list(executor.map(work.record, [ring] * 500, range(500)))

    assert results == list(range(500))
    assert sorted(map(int, ring.get_many())) == results


def test_an_exception_arrives_with_the_traceback_of_the_worker(
    executor: ProcessPoolExecutor,
) -> None:
    """As its cause, as of the standard executor."""
    error = executor.submit(work.fail, KeyError("k")).exception()

    assert isinstance(error, KeyError)
    assert error.args == ("k",)
    assert "in fail" in str(error.__cause__)
    with pytest.raises(ZeroDivisionError):
        list(executor.map(divmod, [1, 2, 3], [1, 0, 1]))


def test_what_cannot_be_pickled_arrives_as_text(executor: ProcessPoolExecutor) -> None:
    """An exception with its type's name; for a result the error of its pickle."""
    error = executor.submit(work.fail, ValueError(threading.Lock)).exception()
    assert isinstance(error, ValueError)

    error = executor.submit(_raise_unpicklable).exception()
    assert isinstance(error, RuntimeError)
    assert "executors.Unpicklable: 1 and 2" in str(error)
    assert "in _raise_unpicklable" in str(error.__cause__)

    error = executor.submit(threading.Lock).exception()
    assert isinstance(error, TypeError)
    assert "pickle" in str(error)


def _raise_unpicklable() -> None:
    raise work.Unpicklable(1, 2)


def test_what_cannot_be_pickled_is_an_exception_of_its_own_task(
    executor: ProcessPoolExecutor,
) -> None:
    """The others of a map are done."""
    assert isinstance(executor.submit(work.same, work.Undumpable()).exception(), ValueError)

    results = executor.map(work.same, [1, work.Undumpable(), 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="not to be dumped"):
        next(results)


def test_what_cannot_be_loaded_breaks_no_worker(executor: ProcessPoolExecutor) -> None:
    """The task, or the result, is said to be broken; the worker is the same as before."""
    for item in (work.Unloadable(), [work.Unloadable()]):
        error = executor.submit(work.same, item).exception()
        assert isinstance(error, BrokenProcessPool)
        assert "cannot be loaded by its worker" in str(error)
        assert isinstance(error.__cause__, ValueError)

    error = executor.submit(work.Unloadable).exception()
    assert isinstance(error, BrokenProcessPool)
    assert "cannot be loaded in this process" in str(error)
    assert executor.submit(work.same, 1).result() == 1
    assert len(executor._processes) == 1


def test_a_function_that_the_workers_do_not_have_is_named(executor: ProcessPoolExecutor) -> None:
    """It was defined after the executor was made."""
    executor.submit(work.same, 1).result()

    def late() -> None: ...

    late.__qualname__ = "late"
    globals()["late"] = late
    try:
        error = executor.submit(late).exception()
    finally:
        del globals()["late"]

    assert isinstance(error, BrokenProcessPool)
    assert "late" in str(error)
    assert "before the executor is made" in str(error)


def test_many_functions_are_kept_apart(executor: ProcessPoolExecutor) -> None:
    """More of them than a worker keeps, each twice."""
    numbers = [*range(300)] * 2

    results = [executor.submit(number.__add__, 1) for number in numbers]

    assert [result.result() for result in results] == [number + 1 for number in numbers]


def test_large_tasks_and_results_arrive(executor: ProcessPoolExecutor) -> None:
    """Longer than any ring; as many as there is room for in the arena."""
    items = [bytes([number]) * (3 << 20) for number in range(20)]

    assert list(executor.map(work.same, items)) == items


@pytest.mark.parametrize(
    "obj",
    [
        None, True, 7, -(1 << 70), 2.5, "text", "\ud800", b"", b"\x80", b"o", (1, [2, {"k": (3,)}]),
        [0] * 100, {1, 2}, "x" * 70_000, bytearray(b"abc"), [[[]]] * 3, {"k": [None, b"\x80\x05"]},
    ],
    ids=lambda obj: repr(obj)[:20],
)  # fmt: skip
def test_objects_of_every_form_go_and_come_back(executor: ProcessPoolExecutor, obj: Any) -> None:
    """Plain or not, long or short, alone, by keyword and in a map."""
    assert executor.submit(work.same, obj).result() == obj
    assert executor.submit(work.same, obj=obj).result() == obj
    assert list(executor.map(work.same, [obj, 1, obj])) == [obj, 1, obj]
    assert list(executor.map(work.same, [obj] * 3, chunksize=2)) == [obj] * 3


def test_what_is_twice_in_an_object_is_one_object_there(executor: ProcessPoolExecutor) -> None:
    """In arguments and in results."""
    one = [1]
    first, second = executor.submit(work.same, (one, one)).result()

    assert first is second
    assert executor.submit(work.are_one, one, one).result()


def test_an_initializer_is_called_first(engine: str, arena: Arena) -> None:
    """In each worker, with its arguments; it needs no pickle."""
    said: list[object] = []
    with ProcessPoolExecutor(
        2, None, lambda *args: said.extend(args), (1, said), arena=arena
    ) as executor:
        assert executor.submit(work.same, 1).result() == 1


@pytest.mark.filterwarnings("ignore")
def test_an_initializer_that_raises_breaks_the_executor(engine: str, arena: Arena) -> None:
    """Every task says so, and no other is taken."""
    with ProcessPoolExecutor(
        2, initializer=work.fail, initargs=(OSError("no"),), arena=arena
    ) as executor:
        tasks = [executor.submit(work.same, item) for item in range(1)]
        for task in tasks:
            with pytest.raises(BrokenProcessPool, match="OSError: no"):
                task.result()
        with pytest.raises(BrokenProcessPool, match="initializer"):
            executor.submit(work.same, 1)


def test_nothing_is_taken_after_a_shutdown(executor: ProcessPoolExecutor) -> None:
    """What was submitted before is done."""
    tasks = [executor.submit(work.same, item) for item in range(20)]
    results = executor.map(work.same, range(20))

    executor.shutdown()

    assert [task.result(0) for task in tasks] == list(results) == list(range(20))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(work.same, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(work.same, [1])


def test_a_shutdown_cancels_what_was_not_begun(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """What was begun is done to its end."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    tasks = [executor.submit(work.say_and_wait, said, gate, item) for item in range(50)]
    begun = {int(said.get()), int(said.get())}
    gate.put_many([b"", b""])

    executor.shutdown(cancel_futures=True)

    assert {item for item, task in enumerate(tasks) if not task.cancelled()} >= begun
    assert sum(task.cancelled() for task in tasks) >= 46
    assert all(task.done() for task in tasks)


def test_an_executor_that_nobody_has_ends_by_itself(engine: str, arena: Arena) -> None:
    """When its tasks are done."""
    executor = ProcessPoolExecutor(2, arena=arena)
    task = executor.submit(work.same, 1)
    manager = executor._dispatcher.manager.thread
    assert manager
    del executor
    gc.collect()
    manager.join()

    assert task.result(0) == 1


def test_futures_are_those_of_the_standard_library(executor: ProcessPoolExecutor) -> None:
    """wait, as_completed and callbacks work, where nobody asks for a result."""
    tasks = [executor.submit(work.same, item) for item in range(50)]
    assert {task.result() for task in concurrent.futures.as_completed(tasks)} == {*range(50)}
    more = [executor.submit(work.same, item) for item in range(50)]
    assert concurrent.futures.wait(more).not_done == set()

    called = threading.Event()
    executor.submit(work.same, 1).add_done_callback(lambda _: called.set())
    called.wait()


def test_a_submit_waits_for_no_callback(arena: Arena) -> None:
    """Though it wants another worker: who submits may hold what the callback waits for."""
    entered, free = threading.Event(), threading.Event()

    def wait_until_free(_: object) -> None:
        entered.set()
        free.wait()

    with ProcessPoolExecutor(2, arena=arena) as executor:
        executor.submit(work.same, 1).add_done_callback(wait_until_free)
        entered.wait()
        tasks = [executor.submit(work.same, item) for item in range(5)]
        free.set()

        assert [task.result() for task in tasks] == [*range(5)]


def test_a_callback_may_submit_and_wait(executor: ProcessPoolExecutor) -> None:
    """It holds nothing that others need."""
    results: list[int] = []
    called = threading.Event()

    def ask_again(task: concurrent.futures.Future[int]) -> None:
        results.append(executor.submit(work.add, task.result(), 1).result())
        called.set()

    executor.submit(work.same, 1).add_done_callback(ask_again)
    called.wait()

    assert results == [2]


def test_many_threads_submit(executor: ProcessPoolExecutor) -> None:
    """Each gets its own results."""

    def ask(begin: int) -> None:
        items = range(begin, begin + 200)
        tasks = [executor.submit(work.same, item) for item in items]
        found[begin] = [task.result() for task in tasks] == list(items)
        found[begin + 1] = list(executor.map(work.same, items)) == list(items)

    found: dict[int, bool] = {}
    threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(found.values()) == [True] * 8


def test_an_iterable_is_taken_as_far_as_the_buffer_goes(executor: ProcessPoolExecutor) -> None:
    """One item more for each result."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = executor.map(work.same, items(), buffersize=5)
    assert taken == [0, 1, 2, 3, 4]
    assert next(results) == 0
    assert taken == [0, 1, 2, 3, 4, 5]
    assert list(results) == list(range(1, 100))


def test_a_map_is_over_in_time_or_says_so(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """The rest of it is given up."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    results = executor.map(work.say_and_wait, [said] * 2, [gate] * 2, timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    gate.put_many([b""] * 2)


def test_a_result_is_waited_for_in_time_or_not_at_all(
    executor: ProcessPoolExecutor, arena: Arena
) -> None:
    """The task goes on."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.submit(work.say_and_wait, said, gate, "it")
    with pytest.raises(TimeoutError):
        task.result(0.01)
    assert not task.done()
    gate.put(b"")
    assert task.result() == "it"


def test_no_result_is_kept(executor: ProcessPoolExecutor) -> None:
    """By the iterator, nor by the executor; nor are arguments, once they were sent."""
    for result in executor.map(_some_object, range(10)):
        reference = weakref.ref(result)
        del result
        assert reference() is None

    gone = threading.Event()
    given = _Some()
    weakref.finalize(given, gone.set)
    executor.submit(given.method)
    del given
    gone.wait()


class _Some:
    def method(self) -> None: ...


def _some_object(_: int) -> _Some:
    return _Some()


def test_a_long_task_holds_up_no_short_ones(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """What was put before its worker, behind it, is given to the other."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    list(executor.map(work.same, range(2000)))

    long = executor.submit(work.say_and_wait, said, gate)
    short = [executor.submit(work.same, item) for item in range(500)]
    assert [task.result() for task in short] == list(range(500))
    assert not long.done()

    gate.put(b"")
    long.result()


def test_a_worker_is_replaced_after_so_many_tasks(engine: str, arena: Arena) -> None:
    """Nothing is lost by it."""
    with ProcessPoolExecutor(1, max_tasks_per_child=3, arena=arena) as executor:
        pids = [executor.submit(work.pid_of).result() for _ in range(9)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]
        assert len(set(executor.map(work.pid_of, range(12)))) == 4


def test_a_worker_that_has_grown_is_replaced(engine: str, arena: Arena) -> None:
    """After the task that it grew by."""
    with ProcessPoolExecutor(1, max_rss=1 << 20, arena=arena) as executor:
        assert len({executor.submit(work.pid_of).result() for _ in range(3)}) == 3


def test_it_belongs_to_the_process_that_made_it(executor: ProcessPoolExecutor, fork: Fork) -> None:
    """A child is told so, and ends without doing any harm, whoever had the lock at the fork."""
    executor.submit(work.same, 1).result()

    def child() -> None:
        with pytest.raises(RuntimeError, match="belongs to the process"):
            executor.submit(work.same, 1)
        with pytest.raises(RuntimeError, match="belongs to the process"):
            executor.statistics()
        assert executor._processes == {}
        executor.shutdown()

    with work.held_by_a_thread(executor._dispatcher.lock):
        process = fork(child)
    assert process.wait() == 0
    assert executor.submit(work.same, 1).result() == 1


def test_a_worker_may_have_an_executor_of_its_own(executor: ProcessPoolExecutor) -> None:
    """Workers are not daemonic."""
    assert executor.submit(_map_inside, 3).result() == [0, 1, 2]


_kept: list[ProcessPoolExecutor] = []


def _keep_one_inside(item: int) -> int:
    _kept.append(ProcessPoolExecutor(1))
    answer: int = _kept[0].submit(work.same, item).result()
    return answer


def _map_inside(count: int) -> list[int]:
    with ProcessPoolExecutor(1) as executor:
        return list(executor.map(work.same, range(count)))


def test_a_worker_ends_whose_own_executor_was_not_shut_down(engine: str, arena: Arena) -> None:
    """It ends the workers of its own first, and does not wait for them for ever."""
    with ProcessPoolExecutor(1, arena=arena) as executor:
        assert executor.submit(_keep_one_inside, 3).result() == 3


def test_as_many_workers_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the process may use; and no fewer than one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr("ipcmap._core.processors.quota", lambda: 2.5)
    with ProcessPoolExecutor() as executor:
        assert executor._max_workers == 2
    monkeypatch.setattr("ipcmap._core.processors.quota", lambda: 0.5)
    with ProcessPoolExecutor() as executor:
        assert executor._max_workers == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_workers": 0}, "max_workers must be greater than 0"),
        ({"max_tasks_per_child": 0}, "max_tasks_per_child must be 1 or more"),
        ({"max_rss": -1}, "max_rss must be 1 or more"),
        ({"retries": -1}, "retries must not be negative"),
    ],
)
def test_a_number_out_of_range_is_refused(options: dict[str, int], said: str) -> None:
    """Before anything is forked."""
    with pytest.raises(ValueError, match=said):
        ProcessPoolExecutor(**options)  # type: ignore[arg-type]


def test_bad_arguments_of_a_call_are_refused(executor: ProcessPoolExecutor) -> None:
    """With the rule and the value."""
    with pytest.raises(ValueError, match="chunksize must be 1 or more"):
        executor.map(work.same, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize must be 1 or more"):
        executor.map(work.same, [1], buffersize=0)
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        executor.with_options(timeout=0)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        ProcessPoolExecutor(initializer=3)  # type: ignore[arg-type]


def test_nothing_is_left_of_it(engine: str, arena: Arena) -> None:
    """No block in the arena, whether it had work or not."""
    arena.sweep()
    blocks = arena.statistics().blocks
    for count in (0, 100):
        with ProcessPoolExecutor(3, arena=arena) as executor:
            list(executor.map(work.same, range(count)))
        assert arena.statistics().blocks == blocks


def test_the_manager_of_an_idle_executor_sleeps(executor: ProcessPoolExecutor) -> None:
    """It takes next to no processor time."""
    executor.submit(work.same, 1).result()
    work.wait_until(lambda: executor._dispatcher.manager.asleep)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25


def test_it_says_what_its_workers_do(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """Each with its task, since when, and what it has done."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    begun = time.time()
    executor.submit(work.same, 1).result()
    tasks = [executor.submit(work.say_and_wait, said, gate, item) for item in range(5)]
    said.get()
    said.get()

    seen = executor.statistics()

    assert (seen.tasks, len(seen.workers)) == (5, 2)
    assert {worker.pid for worker in seen.workers} == set(executor._processes)
    for worker in seen.workers:
        assert worker.state == "works"
        assert worker.task is not None
        assert worker.task.function == "say_and_wait"
        assert begun - 1 < worker.since < time.time() + 1
        assert worker.rss > 1 << 20
    assert sum(worker.tasks_done for worker in seen.workers) == 1
    os.kill(seen.workers[0].pid, signal.SIGSTOP)
    work.wait_until(lambda: executor.statistics().workers[0].state == "stopped")
    os.kill(seen.workers[0].pid, signal.SIGCONT)
    gate.put_many([b""] * 5)
    assert [task.result() for task in tasks] == list(range(5))
    work.wait_until(lambda: {w.state for w in executor.statistics().workers} == {"waits"})
    assert all(worker.busy > 0 and worker.wait > 0 for worker in executor.statistics().workers)


def test_a_stalled_executor_says_what_its_workers_do(
    executor: ProcessPoolExecutor,
    arena: Arena,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, until something comes."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.submit(work.say_and_wait, said, gate)
    said.get()
    monkeypatch.setattr(stall_log, "SECONDS", 0.05)
    while not (lines := [record.getMessage() for record in caplog.records]):
        time.sleep(0.01)
    gate.put(b"")
    task.result()

    assert len(lines) == 1
    (pid,) = executor._processes
    assert f"pid {pid} works, task 1 (say_and_wait) for " in lines[0]
    assert "1 tasks, 0 of them given to nobody" in lines[0]


def test_progress_is_drawn_by_whoever_takes_the_results(executor: ProcessPoolExecutor) -> None:
    """The results are the same."""
    assert list(executor.map(work.same, range(20), progress=True)) == list(range(20))


def test_progress_without_rich_and_tqdm_is_refused(
    executor: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ModuleNotFoundError, match=r"ipcmap\[cli\]"):
        executor.map(work.same, range(20), progress=True)


def test_lambdas_and_closures_travel_by_value(executor: ProcessPoolExecutor) -> None:
    """As functions, as arguments and as results, with cloudpickle."""
    factor = 3
    assert executor.submit(lambda item: factor * item, 2).result() == 6
    assert list(executor.map(lambda item: factor * item, range(5))) == [0, 3, 6, 9, 12]
    assert executor.submit(_twice, lambda item: item + factor, 1).result() == 7
    assert executor.submit(_adder, 4).result()(1) == 5


def _twice(function: Callable[[int], int], item: int) -> int:
    return function(function(item))


def _adder(one: int) -> Callable[[int], int]:
    return lambda other: one + other


def test_without_cloudpickle_a_lambda_is_refused_with_the_way_out(
    executor: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is pickle's, and a note says what to install."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    error = executor.submit(lambda: 1).exception()
    assert error is not None
    assert "install ipcmap[cloudpickle]" in error.__notes__[0]


def test_the_threads_of_a_blas_are_counted(engine: str, arena: Arena) -> None:
    """Workers that each have a part of the processors take no more threads than that."""
    with ProcessPoolExecutor(64, arena=arena) as executor:
        found = executor.submit(_blas_threads).result()
    assert found
    assert set(found) == {1}


def _blas_threads() -> list[int]:
    import numpy as np

    threadpoolctl = importlib.import_module("threadpoolctl")

    np.linalg.inv(np.eye(3))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
