"""A worker that dies costs its own task, and nothing else, on every engine."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest

import executors as work
from children import Fork
from ipcmap import Arena, BusyError, CorruptError, ProcessPoolExecutor, Ring, TaskName, WorkerDied
from ipcmap._deadline import Deadline
from ipcmap.seats import Seat
from ipcmap.tasks import Task, TaskFuture
from ipcmap.zygote import ZygoteProcess


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_dead_worker_costs_its_task(executor: ProcessPoolExecutor, number: int) -> None:
    """The future says how the worker ended and which task it was; the others are done."""
    before = [executor.submit(work.same, item) for item in range(20)]
    task = executor.submit(work.die, number)
    after = [executor.submit(work.same, item) for item in range(20)]

    error = task.exception()

    assert isinstance(error, WorkerDied)
    assert isinstance(error, BrokenProcessPool)
    assert error.record.signal == number
    assert error.task == TaskName(error.task.number, "die")
    assert f"task {error.task.number} (die), pid={error.record.pid}" in str(error)
    assert [one.result() for one in before + after] == [*range(20)] * 2


def test_a_worker_that_exits_costs_its_task(executor: ProcessPoolExecutor) -> None:
    """With its exit code."""
    error = executor.submit(work.exit_at_once, 3).exception()

    assert isinstance(error, WorkerDied)
    assert (error.record.exitcode, error.record.signal) == (3, None)


@pytest.mark.parametrize("fatal", [0, 1, 77, 499])
def test_a_kill_costs_one_item_of_a_map(
    executor: ProcessPoolExecutor, arena: Arena, fatal: int
) -> None:
    """Every other is done once, and its result is there."""
    list(executor.map(work.same, range(1000)))
    ring = Ring(arena=arena)
    tasks = [
        executor.submit(work.record, ring, item) if item != fatal else executor.submit(work.die)
        for item in range(500)
    ]

    outcomes = [task.exception() or task.result() for task in tasks]

    assert isinstance(outcomes.pop(fatal), WorkerDied)
    assert outcomes == [item for item in range(500) if item != fatal]
    assert sorted(map(int, ring.get_many())) == outcomes


def test_the_iterator_of_a_map_raises_at_the_item_that_was_lost(
    executor: ProcessPoolExecutor,
) -> None:
    """With the number of the item."""
    results = executor.map(work.die_on, range(100), [50] * 100)
    assert [next(results) for _ in range(50)] == list(range(50))
    with pytest.raises(WorkerDied) as raised:
        next(results)
    assert raised.value.task.index == 50


def test_a_chunk_that_is_lost_is_told_of_by_the_name_of_its_function(
    executor: ProcessPoolExecutor,
) -> None:
    """And by its number; what was put around the function is not what the caller knows."""
    results = executor.map(functools.partial(work.die_on, fatal=7), range(20), chunksize=5)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(WorkerDied, match=r"\(die_on, item 1\)"):
        next(results)


def test_a_task_is_done_again(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """As often as it was asked for, and not once more."""
    ring = Ring(arena=arena)
    patient = executor.with_options(retries=3)
    ring.put_many([b""] * 3)
    assert patient.submit(work.die_once, ring, 7).result() == 7
    ring.put_many([b""] * 4)
    assert isinstance(patient.submit(work.die_once, ring, 7).exception(), WorkerDied)
    ring.put_many([b""] * 20)
    assert list(executor.with_options(retries=20).map(work.die_once, [ring] * 40, range(40))) == [
        *range(40)
    ]


def test_a_task_over_its_time_costs_one_worker(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """And no other task."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    hasty = executor.with_options(timeout=0.1)
    slow = hasty.submit(work.say_and_wait, said, gate)
    others = [executor.submit(work.same, item) for item in range(100)]

    error = slow.exception()

    assert isinstance(error, TimeoutError)
    assert "timeout=0.1 s" in str(error)
    assert [task.result() for task in others] == list(range(100))


def test_a_task_is_charged_with_its_own_time_alone(
    engine: str, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is held up while it begins has not taken the time since the last task."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    parent, clock = os.getpid(), time.monotonic_ns

    def slow_clock() -> int:
        if os.getpid() != parent:
            said.put(b"asked")
            gate.get()
        return clock()

    monkeypatch.setattr("ipcmap.worker.time", SimpleNamespace(monotonic_ns=slow_clock))
    with ProcessPoolExecutor(1, arena=arena) as executor:
        task = executor.with_options(timeout=60).submit(work.same, 7)
        said.get()
        workforce = executor._dispatcher.workforce
        looks, look = list[None](), workforce.look_at_the_clock

        def counted() -> None:
            look()
            looks.append(None)

        monkeypatch.setattr(workforce, "look_at_the_clock", counted)
        work.wait_until(lambda: len(looks) > 2)
        gate.put_many([b""] * 2)

        assert task.result() == 7


def test_a_task_over_its_time_is_done_again(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """Where that was asked for."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.with_options(timeout=0.3, retries=1).submit(work.say_and_wait, said, gate, 7)
    said.get()
    said.get()
    gate.put(b"")
    assert task.result() == 7


def test_a_task_is_cancelled_while_it_runs(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """Its worker is killed and replaced; no other task is lost."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.submit(work.say_and_wait, said, gate)
    others = [executor.submit(work.same, item) for item in range(100)]
    said.get()
    assert task.running()

    assert task.cancel()

    assert task.cancelled()
    assert not task.running()
    assert [one.result() for one in others] == list(range(100))
    assert executor.submit(work.same, 1).result() == 1


def test_a_task_that_was_given_up_is_cancelled_however_late(
    executor: ProcessPoolExecutor, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The death of its worker, which others may notice first, is not its outcome."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.submit(work.say_and_wait, said, gate)
    said.get()
    (pid,) = (seat.process.pid for seat in executor._dispatcher.seats.values() if seat.held)
    drop = executor._dispatcher.drop

    def drop_slowly(given: Task) -> bool:
        dropped = drop(given)
        work.wait_until(lambda: pid not in executor._processes)
        executor._dispatcher.settle()
        return dropped

    monkeypatch.setattr(executor._dispatcher, "drop", drop_slowly)

    assert task.cancel()
    assert task.cancelled()


def test_a_task_that_is_done_is_not_cancelled(executor: ProcessPoolExecutor) -> None:
    """And costs no worker."""
    pid = executor.submit(work.pid_of).result()
    task = executor.submit(work.same, 1)
    assert task.result() == 1
    assert not task.cancel()
    assert pid in executor._processes


def test_a_task_that_waits_is_cancelled(executor: ProcessPoolExecutor, arena: Arena) -> None:
    """No worker ever begins it."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    busy = [executor.submit(work.say_and_wait, said, gate, item) for item in range(2)]
    waiting = executor.submit(work.say_and_wait, said, gate, "never")
    said.get()
    said.get()
    assert waiting.cancel()
    gate.put_many([b""] * 3)

    assert [task.result() for task in busy] == [0, 1]
    assert waiting.cancelled()
    executor.shutdown()
    assert len(said) == 0


def test_a_worker_whose_only_task_is_cancelled_gets_another(engine: str, arena: Arena) -> None:
    """It had not taken it yet, and so has nothing to answer."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    with ProcessPoolExecutor(
        1, initializer=work.say_and_wait, initargs=(said, gate), arena=arena
    ) as executor:
        task = executor.submit(work.same, 1)
        said.get()

        assert task.cancel()
        after = executor.submit(work.same, 2)
        gate.put(b"")

        assert after.result() == 2


def test_whoever_is_killed_while_idle_is_replaced(executor: ProcessPoolExecutor) -> None:
    """It costs no task at all."""
    for _ in range(3):
        pid = executor.submit(work.pid_of).result()
        os.kill(pid, signal.SIGKILL)
        assert executor.submit(work.same, 1).result() == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_zygote_is_forked_where_one_dies_or_is_stopped(
    how: signal.Signals, executor: ProcessPoolExecutor
) -> None:
    """The workers that there are go on."""
    pid = executor.submit(work.pid_of).result()
    assert executor._dispatcher.workforce._zygote
    os.kill(executor._dispatcher.workforce._zygote.pid, how)
    assert executor.submit(work.pid_of).result() == pid
    assert isinstance(executor.submit(work.die).exception(), WorkerDied)

    assert executor.submit(work.same, 1).result() == 1


def test_workers_that_cannot_be_forked_are_not_tried_for_all_the_time(
    executor: ProcessPoolExecutor, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that there are go on; after a while it is tried again, unasked."""
    gate = Ring(arena=arena)
    waiting = executor.submit(gate.get)
    manager, workforce = executor._dispatcher.manager, executor._dispatcher.workforce
    tries = []

    def find_no_room(self: ZygoteProcess) -> None:
        tries.append(self.name)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patched:
        patched.setattr("ipcmap.workforce._PAUSE", 1e6)
        patched.setattr(ZygoteProcess, "start", find_no_room)
        second = executor.submit(work.pid_of)
        work.wait_until(lambda: manager._rounds > 20)
        assert len(tries) == 1
    workforce._pause = Deadline(0)

    assert second.result() != os.getpid()
    gate.put(b"on")
    assert waiting.result() == b"on"


def test_an_object_that_kills_its_worker_costs_its_task(executor: ProcessPoolExecutor) -> None:
    """Where it is loaded, the task has begun."""
    error = executor.submit(work.same, work.Loud()).exception()
    assert isinstance(error, WorkerDied)
    assert error.task.function == "same"


@pytest.mark.parametrize("most", [None, 1])
def test_a_callback_may_wait_for_a_task_whose_worker_dies(
    engine: str, arena: Arena, most: int | None
) -> None:
    """Though it runs in the thread that buries workers, and has others forked in their place."""
    outcomes: list[object] = []
    called = threading.Event()

    def ask(_: object) -> None:
        outcomes.append(executor.submit(work.die).exception())
        outcomes.append(executor.submit(work.same, 1).result())
        called.set()

    with ProcessPoolExecutor(1, max_tasks_per_child=most, arena=arena) as executor:
        executor.submit(work.same, 0).add_done_callback(ask)
        called.wait()

    assert isinstance(outcomes[0], WorkerDied)
    assert outcomes[1:] == [1]


def test_workers_that_are_never_ready_break_the_executor(engine: str, arena: Arena) -> None:
    """After a few; nobody waits for ever."""
    with ProcessPoolExecutor(1, initializer=os._exit, initargs=(5,), arena=arena) as executor:
        error = executor.submit(work.same, 1).exception()
        assert isinstance(error, BrokenProcessPool)
        assert "die before they are ready" in str(error)


def test_workers_that_are_killed_while_they_start_are_replaced(engine: str, arena: Arena) -> None:
    """However many, while another is ready: that is no fault of the initializer."""
    gate, said, hold = Ring(arena=arena), Ring(arena=arena), Ring(arena=arena)
    gate.put(b"")
    with ProcessPoolExecutor(2, initializer=gate.get, arena=arena) as executor:
        long = executor.submit(work.say_and_wait, said, hold, 7)
        said.get()
        other = executor.submit(work.same, 1)
        killed = set[int]()
        while len(killed) < 5:
            for worker in executor.statistics().workers:
                if worker.state == "starts" and worker.pid not in killed:
                    os.kill(worker.pid, signal.SIGKILL)
                    killed.add(worker.pid)
        gate.put(b"")
        hold.put(b"")

        assert (long.result(), other.result()) == (7, 1)


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_workers_are_ended(executor: ProcessPoolExecutor, arena: Arena, how: str) -> None:
    """What they had in hand is lost, and the rest is cancelled."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    tasks = [executor.submit(work.say_and_wait, said, gate, item) for item in range(4)]
    begun = {int(said.get()), int(said.get())}

    getattr(executor, how)()

    for item, task in enumerate(tasks):
        assert task.done()
        if item in begun:
            assert isinstance(task.exception(), WorkerDied)
        else:
            assert task.cancelled()


def test_a_child_of_the_parent_takes_nothing_away(
    executor: ProcessPoolExecutor, arena: Arena, fork: Fork
) -> None:
    """Forked while tasks are under way, it neither ends the workers nor takes tasks or answers."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    tasks = [executor.submit(work.say_and_wait, said, gate, item) for item in range(4)]
    said.get()
    said.get()

    def child() -> None:
        with pytest.raises(RuntimeError, match="belongs to the process"):
            tasks[0].result()
        assert not any(task.cancel() or task.running() for task in tasks)
        with pytest.raises(SystemExit), executor:
            sys.exit()

    assert fork(child).wait() == 0
    gate.put_many([b""] * 4)
    assert [task.result() for task in tasks] == list(range(4))


def test_a_worker_that_is_stopped_is_ended_by_sigterm(
    executor: ProcessPoolExecutor,
) -> None:
    """It is made to go on, or would never take it."""
    task = executor.submit(signal.raise_signal, signal.SIGSTOP)
    work.wait_until(lambda: any(one.state == "stopped" for one in executor.statistics().workers))

    executor.terminate_workers()

    assert task.done()
    assert not executor._processes


def test_a_signal_handler_does_not_wait_for_what_it_interrupted(
    executor: ProcessPoolExecutor, arena: Arena, engine: str
) -> None:
    """It would wait for itself; it is told so, and the wait goes on.

    In the reference engine the main thread waits for another, and so may the handler.
    """
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task, other = executor.submit(work.say_and_wait, said, gate, 7), executor.submit(work.same, 1)
    refused: list[bool] = []

    def handle(number: int, frame: object) -> None:
        # Whether or not it came while answers were waited for.
        last = executor.submit(work.same, 1)
        try:
            last.result()
        except BusyError:
            refused.append(True)
        if refused or engine == "reference":
            signal.setitimer(signal.ITIMER_REAL, 0)
            gate.put(b"")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        assert task.result() == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert refused or engine == "reference"
    assert other.result() == 1


def test_an_interrupt_does_not_break_off_a_burial(
    executor: ProcessPoolExecutor, arena: Arena, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dead worker held is done, or lost, all the same."""
    dispatcher, said, gate = executor._dispatcher, Ring(arena=arena), Ring(arena=arena)
    clear = Seat.clear

    def clear_and_interrupt(seat: Seat) -> object:
        cleared = clear(seat)
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("from a signal handler")
        return cleared

    monkeypatch.setattr(Seat, "clear", clear_and_interrupt)
    tasks = [executor.submit(work.say_and_wait, said, gate) for _ in range(2)]
    others = [executor.submit(work.same, item) for item in range(50)]
    said.get()
    said.get()
    pids = list(executor._processes)
    me = threading.get_ident()

    def leads() -> bool:
        dispatcher.led += 1  # or the manager would lead, which sees nobody else do it
        return engine == "reference" or dispatcher._leader == me  # where it never leads

    def kill() -> None:
        work.wait_until(leads)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert [type(task.exception(20)) for task in tasks] == [WorkerDied] * 2
        assert [one.result(20) for one in others] == list(range(50))
    except BaseException:
        executor._dispatcher.tasks.clear()  # or its end would wait for what is nowhere
        raise
    finally:
        killer.join()


def test_an_interrupt_does_not_leave_a_condemned_worker_alive(
    executor: ProcessPoolExecutor, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would do nothing any more, and keep what it has in hand."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.submit(work.say_and_wait, said, gate)
    said.get()
    kill = ZygoteProcess.kill

    def interrupt_or_kill(process: ZygoteProcess) -> None:
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("from a signal handler")
        kill(process)

    monkeypatch.setattr(ZygoteProcess, "kill", interrupt_or_kill)
    with pytest.raises(RuntimeError, match="from a signal handler"):
        task.cancel()
    try:
        assert isinstance(task.exception(20), WorkerDied)
    finally:
        monkeypatch.undo()
        executor.kill_workers()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_damaged_ring_of_answers_breaks_the_executor(engine: str, arena: Arena) -> None:
    """Every future says so, and no worker stays."""
    executor = ProcessPoolExecutor(2, arena=arena)
    dispatcher, said, gate = executor._dispatcher, Ring(arena=arena), Ring(arena=arena)
    tasks = [executor.submit(work.say_and_wait, said, gate) for _ in range(3)]
    said.get()
    said.get()
    pids = list(executor._processes)
    dispatcher.results = DamagedRing(dispatcher.results)  # type: ignore[assignment]

    done, waiting = wait(tasks, 20)

    assert not waiting
    assert [type(task.exception()) for task in done] == [BrokenProcessPool] * 3
    executor.shutdown()
    assert all(map(work.is_gone, pids))


class DamagedRing:
    """A ring whose every call finds it damaged."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def put(self, data: object, timeout: float | None = None) -> None:
        raise CorruptError("ring is damaged")

    def get_many(self, most: int | None, timeout: float | None = None) -> list[bytes]:
        raise CorruptError("ring is damaged")

    def __len__(self) -> int:
        raise CorruptError("ring is damaged")

    def destroy(self) -> None:
        self._ring.destroy()
        raise CorruptError("ring is damaged")


def test_an_executor_ends_where_the_kernel_reaps_its_workers(engine: str, arena: Arena) -> None:
    """Nobody learns their exit codes then."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(2, arena=arena) as executor:
            assert list(executor.map(work.same, range(20))) == list(range(20))
            pids = [*executor._processes]
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert pids
    assert all(map(work.is_gone, pids))


def test_nobody_waits_in_what_is_given_back(
    executor: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end has the lead; who takes it afterwards finds nothing to wait for."""
    dispatcher = executor._dispatcher
    workforce = dispatcher.workforce
    give_back, led = workforce.give_back, []

    def look_and_give_back() -> None:
        led.append(dispatcher.lead.locked())
        give_back()

    monkeypatch.setattr(workforce, "give_back", look_and_give_back)
    assert executor.submit(work.same, 1).result() == 1

    executor.shutdown()
    dispatcher.collect()
    dispatcher.pull(lambda: False, threading.Condition(), Deadline(0))

    assert led == [True]


PARENT = """
import os, signal, sys, time
import ipcmap

def wait():
    os.write(1, b"%d\\n" % os.getpid())  # in one piece
    time.sleep(3600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    executor = ipcmap.ProcessPoolExecutor(2)
    os.write(1, b"%d\\n" % executor._dispatcher.workforce._zygote.pid)
    tasks = [executor.submit(wait) for _ in range(2)]
    {end}
"""


def _run(tmp_path: Path, end: str) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(PARENT.format(end=end))
    return subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Neither the zygote nor a worker."""
    with _run(tmp_path, "time.sleep(3600)") as parent:
        assert parent.stdout
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        parent.kill()

    work.wait_until(lambda: all(map(work.is_gone, pids)))


def test_a_program_that_is_interrupted_ends_with_one_traceback(tmp_path: Path) -> None:
    """The whole group gets the signal, as from a terminal; no worker says anything."""
    program = tmp_path / "program.py"
    program.write_text(PARENT.format(end="tasks[0].result()"))
    with subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate()

    assert said.count("Traceback") == 1
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert all(map(work.is_gone, pids))


def test_a_task_that_was_not_begun_is_not_lost(engine: str, arena: Arena) -> None:
    """Its worker is stopped before it takes it, and killed."""
    with ProcessPoolExecutor(1, arena=arena) as executor:
        pid = executor.submit(work.pid_of).result()
        os.kill(pid, signal.SIGSTOP)
        tasks = [executor.submit(work.same, item) for item in range(5)]
        os.kill(pid, signal.SIGKILL)

        assert [task.result() for task in tasks] == list(range(5))


def test_a_worker_is_condemned_for_the_task_it_has_in_hand_alone(
    executor: ProcessPoolExecutor, arena: Arena
) -> None:
    """Not for one that it has done, and not for one that it has not begun."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    done = executor.submit(work.same, 1)
    done.result()
    running = executor.submit(work.say_and_wait, said, gate)
    said.get()
    assert isinstance(done, TaskFuture)
    assert isinstance(running, TaskFuture)
    assert running._task is not None
    seat = running._task.seat
    before = Task(done._task.number, b"", done, 0) if done._task else None
    assert before is not None

    assert not seat.condemn(before)
    assert not seat.condemn(Task(10**6, b"", done, 0))
    assert not seat.condemned

    gate.put(b"")
    assert running.result() == b"begun"
