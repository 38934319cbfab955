"""joblib's loops on ipcmap's workers: as with joblib's own, but large arrays are copied once."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from glob import glob
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import get_active_backend

import executors
import ipcmap.integrations.joblib as backend
import library_work as work
from ipcmap import Arena, Ring, WorkerDied
from ipcmap.zygote import _forget_early

pytestmark = pytest.mark.integrations

LARGE = 1 << 21  # numbers of 8 bytes: blocks as no ring has them


@pytest.fixture
def arena_in_use(default_engine: Arena) -> Iterator[Arena]:
    """The arena of joblib's workers, two of which are asked for; nothing is left in it."""
    backend.register()
    with parallel_config("ipcmap", n_jobs=2):
        yield default_engine
    backend.shutdown()
    _forget_early()
    gc.collect()
    default_engine.sweep()
    assert default_engine.statistics().blocks == 0


@pytest.fixture
def run(arena_in_use: Arena) -> Any:
    """``Parallel`` on two workers."""
    return Parallel


def blocks_of(arena: Arena, array: Any) -> int:
    """Return how many blocks there are that an array fits into."""
    return sum(one.blocks for one in arena.statistics().classes if one.cell_nbytes == array.nbytes)


def test_calls_come_back_in_order(run: Any) -> None:
    """The first example of joblib."""
    assert run()(delayed(sqrt)(i**2) for i in range(10)) == [float(i) for i in range(10)]


def test_short_calls_are_many_in_a_batch(run: Any) -> None:
    """And none is lost or doubled."""
    parallel = run()
    assert parallel(delayed(abs)(-i) for i in range(3000)) == [*range(3000)]
    assert parallel.n_dispatched_batches < 3000


def test_a_generator_gives_results_as_they_come(run: Any) -> None:
    """In order, or as they are done."""
    calls = [delayed(sqrt)(i**2) for i in range(50)]
    assert list(run(return_as="generator")(calls)) == [float(i) for i in range(50)]
    unordered = run(return_as="generator_unordered")(calls)
    assert sorted(unordered) == [float(i) for i in range(50)]


def test_functions_without_a_name_are_sent(run: Any) -> None:
    """By value."""
    offset = 5
    assert run()(delayed(lambda i: i + offset)(i) for i in range(3)) == [5, 6, 7]


def test_workers_are_kept_for_the_next_call(run: Any) -> None:
    """Until they are shut down, or another number is asked for."""
    before = set(run()(delayed(executors.pid_of)(i) for i in range(20)))
    assert os.getpid() not in before
    assert set(run()(delayed(executors.pid_of)(i) for i in range(20))) <= before
    assert not set(run(n_jobs=3)(delayed(executors.pid_of)(i) for i in range(20))) & before
    backend.shutdown()
    assert all(executors.is_gone(pid) for pid in before)


def test_one_job_needs_no_workers(run: Any) -> None:
    """As with every backend of joblib."""
    assert run(n_jobs=1)(delayed(executors.pid_of)(i) for i in range(2)) == [os.getpid()] * 2


@pytest.mark.parametrize("n_jobs", [0, -1, None])
def test_other_numbers_of_jobs_are_as_joblib_has_them(n_jobs: int | None, run: Any) -> None:
    """None is one, negative ones count from the processors, and zero is an error."""
    if n_jobs == 0:
        with pytest.raises(ValueError, match="no meaning"):
            backend.Backend().effective_n_jobs(0)
    else:
        assert backend.Backend().effective_n_jobs(n_jobs) >= 1


def test_a_loop_in_a_loop_runs_in_threads_of_the_worker(run: Any) -> None:
    """Unless another is asked for."""

    def inner(number: int) -> tuple[str, list[float]]:
        name = type(get_active_backend()[0]).__name__
        return name, Parallel(n_jobs=2)(delayed(sqrt)(i) for i in range(number))

    assert run()(delayed(inner)(2) for _ in range(2)) == [("ThreadingBackend", [0.0, 1.0])] * 2


def test_a_loop_in_a_loop_may_have_workers_of_its_own(run: Any) -> None:
    """Of the worker's, which end with it."""

    def inner() -> tuple[int, set[int]]:
        pids = Parallel(n_jobs=2, backend="ipcmap")(delayed(executors.pid_of)(i) for i in range(4))
        return os.getpid(), set(pids)

    for pid, pids in run()(delayed(inner)() for _ in range(2)):
        assert pid not in pids


def test_an_exception_comes_with_the_traceback_of_its_worker(run: Any) -> None:
    """And the next call is a fresh one."""
    with pytest.raises(ValueError, match="bad item") as caught:
        run()(delayed(work.raise_at)(i, 5) for i in range(10))
    assert caught.value.args == ("bad item", 5)
    assert "raise_at" in str(caught.value.__cause__)
    assert run()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_what_cannot_be_pickled_is_an_error_and_no_wait(run: Any) -> None:
    """Also where a thread of the backend finds it, long after the call began."""
    calls: list[Any] = [delayed(abs)(-1)] * 40 + [delayed(abs)(threading.Lock())]
    with pytest.raises((TypeError, pickle.PicklingError)):
        run(batch_size=1)(calls)


def test_a_worker_that_dies_is_told(run: Any) -> None:
    """With how it died, and of what it was about."""
    with pytest.raises(WorkerDied) as caught:
        run()(delayed(executors.die_on)(i, 3) for i in range(10))
    assert caught.value.record.signal == signal.SIGKILL
    assert any("die_on" in note for note in caught.value.__notes__)


def test_a_batch_whose_worker_died_is_done_again(run: Any, said: Ring) -> None:
    """As often as is asked for."""
    said.put_many([b"crash"] * 2)
    with parallel_config("ipcmap", n_jobs=2, retries=2):
        results = Parallel()(delayed(executors.die_once)(said, i) for i in range(20))
    assert results == [*range(20)]


def test_a_failure_kills_what_still_runs(run: Any, said: Ring) -> None:
    """Nobody waits for tasks whose results nobody will get."""
    gate = Ring()
    calls = [delayed(executors.say_and_wait)(said, gate), delayed(wait_and_raise)(said)]
    with pytest.raises(ValueError, match="it is enough"):
        run(batch_size=1)(calls)
    gate.destroy()


def wait_and_raise(said: Ring) -> None:
    """Wait until another task has begun, then raise."""
    said.get()
    raise ValueError("it is enough")


def test_a_timeout_kills_what_still_runs(run: Any, said: Ring) -> None:
    """As joblib has it."""
    gate = Ring()
    with pytest.raises(multiprocessing.TimeoutError):
        run(timeout=0.1)(delayed(executors.say_and_wait)(said, gate) for _ in range(3))
    gate.destroy()


def test_a_context_keeps_its_workers_through_a_failure(run: Any) -> None:
    """Others take the place of those that were killed."""
    with run(batch_size=1) as parallel:
        assert parallel(delayed(abs)(-i) for i in range(5)) == [*range(5)]
        with pytest.raises(ValueError, match="bad item"):
            parallel([delayed(work.raise_at)(0, 0)])
        assert parallel(delayed(abs)(-i) for i in range(5)) == [*range(5)]


def test_threads_of_a_worker_are_limited(run: Any) -> None:
    """By the variables that the numeric libraries read."""
    with parallel_config("ipcmap", n_jobs=2, inner_max_num_threads=3):
        assert Parallel()([delayed(work.variable)("OMP_NUM_THREADS")] * 2) == ["3"] * 2


# Arrays


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_copied_once_for_all_its_tasks(
    order: Any, run: Any, arena_in_use: Arena
) -> None:
    """They read it, and it is given back."""
    array = np.ones((LARGE // 512, 512), order=order)

    def see(given: Any, layout: str) -> tuple[Any, ...]:
        return *work.facts(given)[:2], bool(given.flags[f"{layout}_CONTIGUOUS"])

    results = run()(delayed(see)(array, order) for _ in range(8))
    assert results == [(False, float(LARGE), True)] * 8
    executors.wait_until(lambda: not blocks_of(arena_in_use, array))


def test_one_copy_serves_all_tasks(run: Any, said: Ring, arena_in_use: Arena) -> None:
    """There is one block while many tasks are under way."""
    array, gate = np.ones(LARGE), Ring()

    def count(given: Any) -> float:
        executors.say_and_wait(said, gate)
        return float(given.sum())

    calls = run(return_as="generator", batch_size=1)(delayed(count)(array) for _ in range(6))
    said.get(), said.get()
    assert blocks_of(arena_in_use, array) == 1
    gate.put_many([b""] * 6)
    assert list(calls) == [float(LARGE)] * 6
    said.get_many()
    gate.destroy()


def test_what_a_worker_keeps_is_not_taken_from_it(run: Any, arena_in_use: Arena) -> None:
    """Its array stays what it was, while other arrays come and go."""
    ours, theirs = np.full(LARGE, 7.0), np.zeros(LARGE)
    run()([delayed(work.keep)(ours)])
    expected = {0.0, ours.sum()}
    for _ in range(3):
        run()([delayed(work.facts)(theirs)] * 4)
        assert set(run()([delayed(work.sum_of_kept)()] * 8)) <= expected
    assert blocks_of(arena_in_use, ours) == 1
    backend.shutdown()
    assert blocks_of(arena_in_use, ours) == 0


def test_an_array_that_is_gone_gives_its_block_back_at_once(run: Any, arena_in_use: Arena) -> None:
    """A long loop over arrays that are made one by one needs room for a few."""
    most = 0

    def calls() -> Iterator[Any]:
        nonlocal most
        for number in range(20):
            array = np.full(LARGE, float(number))
            yield delayed(work.facts)(array)
            most = max(most, blocks_of(arena_in_use, array))

    results = run(batch_size=1, pre_dispatch=4)(calls())
    assert [total for _, total, _ in results] == [float(LARGE * i) for i in range(20)]
    assert 0 < most < 12


def test_what_a_call_has_changed_is_lent_anew(run: Any) -> None:
    """The copy is that of one call."""
    array = np.ones(LARGE)
    for number in (1.0, 2.0):
        array[:] = number
        assert {total for _, total, _ in run()([delayed(work.facts)(array)] * 2)} == {
            number * LARGE
        }


@pytest.mark.parametrize(("mode", "writeable"), [("r", False), ("c", True), (None, True)])
def test_the_mode_says_what_a_task_may_do(mode: Any, writeable: bool, run: Any) -> None:
    """Read, or have a copy of its own."""
    results = run(mmap_mode=mode)([delayed(work.facts)(np.ones(LARGE))] * 2)
    assert [facts[:2] for facts in results] == [(writeable, float(LARGE))] * 2


def test_tasks_may_write_for_each_other(run: Any) -> None:
    """Where the mode says so; the parent's own array stays as it is."""
    array = np.ones(LARGE)
    with run(mmap_mode="r+", batch_size=1) as parallel:
        generator = [delayed(work.fill)(array, 5.0), delayed(abs)(0)]
        assert parallel(generator) == [None, 0]
    assert array.sum() == LARGE


def test_arrays_of_objects_and_small_ones_go_by_value(run: Any, arena_in_use: Arena) -> None:
    """Only bytes can be shared."""
    objects = np.full(LARGE, "x", dtype=object)
    assert run()([delayed(len)(objects), delayed(len)(np.ones(10))]) == [LARGE, 10]


def test_a_large_result_comes_as_a_copy(run: Any) -> None:
    """Which is the caller's to write."""
    first, second = run()(delayed(np.full)(LARGE, number) for number in (1.0, 2.0))
    assert (first.sum(), second.sum()) == (LARGE, 2 * LARGE)
    assert first.flags.writeable


def test_a_task_may_return_what_it_was_given(run: Any) -> None:
    """A window of a block comes back as bytes."""
    array = np.arange(float(LARGE))
    for back in run()([delayed(executors.same)(array)] * 3):
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("window", [np.s_[:], np.s_[3:-2], np.s_[::-2, 1:], np.s_[:, ::3]])
def test_a_window_of_a_file_is_sent_by_its_name(window: Any, run: Any, tmp_path: Path) -> None:
    """What tasks write is in the file, of which no byte was sent."""
    file: Any = np.memmap(tmp_path / "numbers", dtype="f8", mode="w+", shape=(64, 512), offset=8)
    file[:] = np.arange(64 * 512.0).reshape(64, 512)
    part = file[window]
    expected = float(part.sum())
    assert {facts[:2] for facts in run()([delayed(work.facts)(part)] * 3)} == {(True, expected)}
    run()([delayed(work.fill)(part, -1.0)])
    assert part.sum() == -part.size


def test_a_private_window_of_a_file_is_sent_as_it_is(run: Any, tmp_path: Path) -> None:
    """Its bytes are not those of the file."""
    (tmp_path / "numbers").write_bytes(bytes(800))
    private: Any = np.memmap(tmp_path / "numbers", dtype="f8", mode="c")
    private[:] = 1.0
    assert {facts[1] for facts in run()([delayed(work.facts)(private)] * 2)} == {100.0}


def test_nothing_keeps_the_array_of_the_caller(run: Any) -> None:
    """It goes when the caller lets it go."""
    array = np.ones(LARGE)
    alive = weakref.ref(array)
    run()([delayed(work.facts)(array)] * 2)
    del array
    gc.collect()
    assert alive() is None


def test_the_benchmark_compares_with_joblibs_own_workers() -> None:
    """And leaves none of their semaphores, whose names outlive who is killed."""
    command = [sys.executable, "-m", "ipcmap", "bench", "executor", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, check=True, text=True)
    (row,) = json.loads(run.stdout)["rows"]
    assert row["failures"] == []
    assert "loky" in {result["peer"] for result in row["points"][0]["results"]}

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
        executors.wait_until(lambda: glob("/dev/shm/sem.loky-*"))
        bench.terminate()

    assert glob("/dev/shm/sem.loky-*") == []
