"""A pool hangs nobody: whoever is killed, wherever it ends, on every engine."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import executors as work
from children import Fork
from ipcmap import Arena, Pool, ProcessPoolExecutor, Ring, TaskName, WorkerDied


@pytest.fixture
def pool(default_engine: Arena) -> Iterator[Pool]:
    """A pool of two workers."""
    with Pool(2) as pool:
        yield pool


@pytest.fixture
def gate(default_engine: Arena) -> Iterator[Ring]:
    """What workers wait for."""
    ring = Ring()
    yield ring
    ring.destroy()


def test_a_killed_worker_costs_its_call(pool: Pool) -> None:
    """It raises, and the error callback is told; the others are done."""
    told: list[BaseException] = []
    before = [pool.apply_async(work.same, (item,)) for item in range(20)]
    fatal = pool.apply_async(work.die, error_callback=told.append)
    after = [pool.apply_async(work.same, (item,)) for item in range(20)]

    with pytest.raises(WorkerDied) as caught:
        fatal.get()

    assert caught.value.record.signal == signal.SIGKILL
    assert caught.value.task == TaskName(caught.value.task.number, "die")
    assert told == [caught.value]
    assert [result.get() for result in before + after] == [*range(20)] * 2


@pytest.mark.parametrize("fatal", [0, 7, 99])
def test_a_killed_worker_costs_its_item_of_a_map(pool: Pool, said: Ring, fatal: int) -> None:
    """The map raises when all others are done."""
    items = [(said, item, fatal) for item in range(100)]
    with pytest.raises(WorkerDied) as caught:
        pool.starmap(work.record_or_die, items, 1)

    assert caught.value.task.index == fatal
    assert sorted(map(int, said.get_many())) == [item for item in range(100) if item != fatal]
    assert pool.map(work.same, range(100), 1) == list(range(100))


def test_a_killed_worker_costs_its_chunk(pool: Pool) -> None:
    """And no other."""
    results = pool.imap(work.Fatal(12), range(40), 5)
    assert list(itertools.islice(results, 10)) == list(range(10))
    with pytest.raises(WorkerDied, match=r"\(Fatal, item 2\)"):
        next(results)
    assert list(results) == list(range(15, 40))


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
@pytest.mark.parametrize("buffersize", [None, 3])
def test_a_killed_worker_costs_its_item_of_an_imap(
    pool: Pool, name: str, buffersize: int | None
) -> None:
    """In its place, and the next goes on."""
    results = getattr(pool, name)(work.Fatal(12), range(100), buffersize=buffersize)
    found: list[object] = []
    while len(found) < 100:
        try:
            found.append(next(results))
        except WorkerDied as error:
            found.append(error.task.index)
    assert next(results, None) is None
    assert sorted(found, key=str) == sorted(range(100), key=str)


def test_a_worker_killed_while_idle_costs_nothing(pool: Pool) -> None:
    """It is replaced at once, and not only when there is something to do."""
    for _ in range(3):
        pids = {*pool._executor._processes}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        work.wait_until(
            lambda: len({*pool._executor._processes} - pids) == 2  # noqa: B023
        )
        assert pool.map(work.same, range(20), 1) == list(range(20))


def test_the_processes_of_the_dead_can_be_asked(pool: Pool) -> None:
    """As multiprocessing's can, also when they have been replaced."""
    processes = pool._pool
    for process in processes:
        process.kill()
    work.wait_until(lambda: not {*processes} & {*pool._pool} and len(pool._pool) == 2)
    assert [process.is_alive() for process in processes] == [False] * 2
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
    assert not {process.pid for process in processes} & {*pool._executor._processes}


def test_all_workers_killed_over_their_tasks_are_replaced(
    pool: Pool, said: Ring, gate: Ring
) -> None:
    """What waits is done by the next."""
    held = [pool.apply_async(work.say_and_wait, (said, gate)) for _ in range(2)]
    waiting = pool.map_async(work.same, range(50), 1)
    said.get()
    said.get()
    for process in pool._pool:
        os.kill(process.pid, signal.SIGKILL)

    assert waiting.get() == list(range(50))
    for result in held:
        with pytest.raises(WorkerDied):
            result.get()


def test_workers_killed_all_the_time_hang_nobody(pool: Pool) -> None:
    """Each item comes back, or says that its worker died."""
    results = pool.imap_unordered(work.same, range(1000), buffersize=200)
    found: list[int] = []
    lost = 0
    while len(found) < 1000:
        try:
            found.append(next(results))
        except WorkerDied as error:
            found.append(error.task.index)
            lost += 1
        if len(found) % 25 == 0:
            with pool._dispatcher.lock:
                for seat in [*pool._dispatcher.seats.values()]:
                    if seat.ready:
                        seat.process.kill()
    assert sorted(found) == list(range(1000))
    assert lost <= 2 * 40


# Initializers


def test_an_initializer_that_raises_breaks_the_pool(default_engine: Arena) -> None:
    """Every call says so; multiprocessing's own forks for ever."""
    with Pool(2, work.fail, (ValueError("no good"),)) as pool:
        for call in (
            lambda: pool.apply(abs, (1,)),
            lambda: pool.map(abs, [1]),
            lambda: next(pool.imap(abs, [1])),
            lambda: next(pool.imap_unordered(abs, itertools.count())),
        ):
            with pytest.raises(BrokenProcessPool, match="no good"):
                call()


def test_workers_that_are_never_ready_break_the_pool(default_engine: Arena) -> None:
    """After a few."""
    with Pool(2, os._exit, (5,)) as pool:
        with pytest.raises(BrokenProcessPool, match="die before they are ready"):
            pool.apply(abs, (1,))
        with pytest.raises(BrokenProcessPool, match="die before they are ready"):
            next(pool.imap(abs, itertools.count()))


def test_a_reader_is_told_of_a_broken_pool(pool: Pool) -> None:
    """Though its iterable waits, and so nothing more is ever fed."""
    gate: queue.SimpleQueue[int] = queue.SimpleQueue()
    results = pool.imap(work.same, iter(gate.get, None))
    gate.put(1)
    assert next(results) == 1

    def break_it() -> None:
        with pool._dispatcher.lock:
            pool._dispatcher.break_down("broken by a test", None)

    breaker = threading.Timer(0.05, break_it)
    breaker.start()
    with pytest.raises(BrokenProcessPool, match="broken by a test"):
        next(results)
    breaker.join()
    gate.put(None)  # type: ignore[arg-type]
    work.wait_until(lambda: not pool._feeders)


def test_a_pool_without_processes_is_none(
    default_engine: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves nothing, and says why."""

    def refuse(*_: object) -> int:
        raise OSError(11, "no process to be had")

    monkeypatch.setattr("ipcmap.zygote.Zygote.fork", refuse)
    with pytest.raises(BrokenProcessPool, match="no process to be had"):
        Pool(2)


# Its end


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_a_pool_is_terminated_while_an_iterable_waits(pool: Pool, name: str) -> None:
    """Neither terminate nor join nor the reader waits for it."""
    gate: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    results = getattr(pool, name)(work.same, iter(gate.get, None))
    gate.put(1)
    assert next(results) == 1
    read: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def read_on() -> None:
        try:
            next(results)
        except BaseException as error:
            read.put(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    pool.terminate()
    pool.join()
    reader.join()

    error = read.get()
    assert isinstance(error, CancelledError)
    assert "terminated" in str(error)
    assert list(results) == []  # who skips what has failed comes to an end
    gate.put(7)  # nobody takes it any more
    work.wait_until(lambda: not pool._feeders)


def test_join_ends_where_another_thread_terminates(pool: Pool) -> None:
    """It waits for a feeder, which waits for ever."""
    gate: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    pool.imap(work.same, iter(gate.get, None))
    pool.close()
    joiner = threading.Thread(target=pool.join)
    joiner.start()
    joiner.join(0.05)
    assert joiner.is_alive()
    pool.terminate()
    joiner.join()
    gate.put(None)
    work.wait_until(lambda: not pool._feeders)


def test_a_pool_is_terminated_while_a_feeder_waits_for_its_reader(pool: Pool) -> None:
    """Its results that were there may be read, and then it is said."""
    results = pool.imap(work.same, itertools.count(), buffersize=3)
    assert next(results) == 0
    work.wait_until(lambda: not pool._dispatcher.tasks and len(results._stream.answers) == 3)
    pool.terminate()
    pool.join()
    assert not pool._feeders
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(CancelledError):
        next(results)
    assert list(results) == []


def test_running_calls_are_ended_by_terminate(pool: Pool, said: Ring, gate: Ring) -> None:
    """What they are of raises; nobody waits for the rest."""
    running = [pool.apply_async(work.say_and_wait, (said, gate)) for _ in range(2)]
    waiting = pool.map_async(time.sleep, [3600] * 1000, 1)
    said.get()
    said.get()
    pids = [*pool._executor._processes]

    pool.terminate()
    pool.join()

    assert all(map(work.is_gone, pids))
    for result in running:
        with pytest.raises(WorkerDied):
            result.get()
    with pytest.raises(CancelledError):
        waiting.get()
    pool.terminate()


@pytest.mark.parametrize("how", ["task", "initializer"])
def test_who_does_not_end_of_sigterm_is_killed(
    default_engine: Arena, said: Ring, gate: Ring, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whether it has a task in hand, or is not ready yet; of an executor, too."""
    monkeypatch.setattr("ipcmap.workforce._GRACE", 0.05)
    if how == "task":
        pool = Pool(1)
        result = pool.apply_async(work.ignore_and_wait, (said, gate))
        executor = ProcessPoolExecutor(1)
        executor.submit(work.ignore_and_wait, said, gate)
    else:
        pool = Pool(1, work.ignore_and_wait, (said, gate))
        result = pool.apply_async(abs, (1,))
        executor = ProcessPoolExecutor(1, initializer=work.ignore_and_wait, initargs=(said, gate))
        executor.submit(abs, 1)
    said.get()
    said.get()

    pool.terminate()
    executor.terminate_workers()

    with pytest.raises((WorkerDied, CancelledError)):
        result.get()
    assert pool._pool == []


def test_a_signal_handler_terminates_the_pool_that_is_waited_for(
    pool: Pool, said: Ring, gate: Ring
) -> None:
    """As programs do at SIGTERM: the wait ends, and so does the pool."""
    result = pool.apply_async(work.say_and_wait, (said, gate))
    said.get()
    before = signal.signal(signal.SIGALRM, lambda *_: pool.terminate())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(WorkerDied):
            result.get()
        pool.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert pool._pool == []


@pytest.mark.parametrize("how", ["apply", "map", "imap"])
def test_ctrl_c_ends_a_wait(pool: Pool, said: Ring, gate: Ring, how: str) -> None:
    """And the pool can be used on, or ended."""
    waits: dict[str, Callable[[], object]] = {
        "apply": lambda: pool.apply(work.say_and_wait, (said, gate)),
        "map": lambda: pool.map(work.Waiter(said, gate), range(1)),
        "imap": lambda: next(pool.imap(work.Waiter(said, gate), range(1))),
    }

    def interrupt() -> None:
        said.get()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        waits[how]()
    thread.join()
    gate.put(b"")
    assert pool.map(work.same, range(20), 1) == list(range(20))


def test_a_callback_may_terminate_the_pool(pool: Pool) -> None:
    """Whichever thread calls it."""
    ended = threading.Event()

    def end(_: object) -> None:
        pool.terminate()
        ended.set()

    pool.apply_async(abs, (-1,), callback=end)
    ended.wait()
    pool.join()
    with Pool(1) as other:
        assert other.apply_async(abs, (-1,), callback=lambda _: other.terminate()).get() == 1
        other.join()


def test_a_child_of_the_parent_takes_nothing_away(
    pool: Pool, said: Ring, gate: Ring, fork: Fork
) -> None:
    """Forked while calls are under way, it can neither end the pool nor use it."""
    result = pool.apply_async(work.say_and_wait, (said, gate, 5))
    said.get()

    def child() -> None:
        with pytest.raises(RuntimeError, match="belongs to the process"):
            result.get()
        with pytest.raises(RuntimeError, match="belongs to the process"):
            pool.apply(abs, (1,))
        pool.terminate()
        pool.join()

    assert fork(child).wait() == 0
    gate.put(b"")
    assert result.get() == 5


def test_a_child_waits_for_no_lock_that_a_thread_had(pool: Pool, fork: Fork) -> None:
    """Whatever it calls raises, or does nothing."""

    def child() -> None:
        for name in ("apply", "map", "imap"):
            for items in ([], [1]):
                with pytest.raises(RuntimeError, match="belongs to the process"):
                    getattr(pool, name)(abs, items)
        assert "state=RUN" in repr(pool)
        pool.close()
        assert "state=RUN" in repr(pool)
        pool.terminate()
        pool.join()

    with work.held_by_a_thread(pool._dispatcher.lock):
        process = fork(child)
    assert process.wait() == 0


PARENT = """
import os, signal, time
import ipcmap

def wait(_=None):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(3600)

def items():
    yield 1
    yield 2
    time.sleep(3600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    pool = ipcmap.Pool(2)
    results = pool.imap(wait, items())
    {end}
"""


@pytest.mark.parametrize("end", ["", "pool.close()", "raise SystemExit(0)", "results.next()"])
def test_a_program_ends_with_what_its_pool_does(tmp_path: Path, end: str) -> None:
    """Without waiting for it, as with multiprocessing's; the last is interrupted by Ctrl-C."""
    waits = "time.sleep(0.1 * bool(os.write(2, b'.')))\n    "
    program = tmp_path / "program.py"
    program.write_text(PARENT.format(end="pool.apply_async(abs)\n    " + waits + end))
    with subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout
        if "next" in end:
            pids = [int(parent.stdout.readline()) for _ in range(2)]
            os.killpg(parent.pid, signal.SIGINT)
            _, said = parent.communicate()
            assert said.count("Traceback") == 1
            assert said.rstrip().endswith("KeyboardInterrupt")
        else:
            output, said = parent.communicate()
            pids = [int(line) for line in output.split()]
            assert "Traceback" not in said
            assert parent.returncode == 0
    assert all(map(work.is_gone, pids))
