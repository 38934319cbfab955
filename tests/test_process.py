"""A process as in multiprocessing, and how it ended: by itself, by an exception, by a signal."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, NoReturn

import pytest

from children import Fork
from ipcmap import Arena, ExitRecord, Process, Semaphore, default_arena


@pytest.fixture
def paused() -> Iterator[Process]:
    """A child that waits for a signal."""
    process = Process(target=signal.pause)
    process.start()
    yield process
    process.kill()
    process.join()
    process.close()


def ended(target: Callable[..., object], *args: Any) -> ExitRecord:
    """Run a function in a child, and return how that ended."""
    process = Process(target=target, args=args)
    process.start()
    process.join()
    record = process.exit_record
    assert record
    assert (record.pid, record.exitcode) == (process.pid, process.exitcode)
    process.close()
    return record


def fail(text: str) -> NoReturn:
    """Raise, as a target does."""
    raise ValueError(text)


def kill_oneself(number: int) -> None:
    """Die at once."""
    os.kill(os.getpid(), number)


# As in multiprocessing


def test_the_child_knows_itself_and_its_parent() -> None:
    """Name, pid and parent are multiprocessing's."""
    seen = Semaphore(0)

    def look() -> None:
        seen.acquire()
        me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
        assert parent
        assert (me.name, me.pid, parent.pid) == ("Ada", os.getpid(), os.getppid())
        assert isinstance(me, Process)
        assert me.is_alive()
        assert parent.is_alive()
        assert me.exit_record is None

    process = Process(None, look, "Ada", (), {}, daemon=True)
    process.start()
    assert process in multiprocessing.active_children()
    seen.release()
    process.join()
    seen.destroy()

    assert process.daemon
    assert process.exitcode == 0
    assert process not in multiprocessing.active_children()


def test_a_class_with_its_own_run() -> None:
    """As one does with threads; the arguments are passed by name and by place."""

    class Adder(Process):
        def run(self) -> None:
            sys.exit(self.summand + 1)

        summand = 4

    adder = Adder()
    adder.start()
    adder.join()
    by_keyword = Process(target=lambda a, b: sys.exit(a + b), args=(1,), kwargs={"b": 2})
    by_keyword.start()
    by_keyword.join()

    assert (adder.exitcode, by_keyword.exitcode) == (5, 3)


@pytest.mark.usefixtures("kernel")
def test_a_join_returns_after_its_timeout_and_a_sentinel_tells_of_the_end() -> None:
    """None while it runs, and then at once."""
    over = Semaphore(0)
    process = Process(target=over.acquire)
    process.start()

    process.join(0)
    process.join(0.02)
    assert (process.is_alive(), process.exitcode, process.exit_record) == (True, None, None)
    assert connection.wait([process.sentinel], 0) == []

    over.release()
    assert connection.wait([process.sentinel]) == [process.sentinel]
    process.join(10)
    assert (process.is_alive(), process.exitcode) == (False, 0)
    process.close()
    over.destroy()


def test_a_grandchild_that_lives_on_does_not_hold_up_the_sentinel() -> None:
    """It has all that the child had open, and still the child has ended."""
    over = Semaphore(0)

    def fork_and_exit() -> None:
        if os.fork() == 0:
            over.acquire()
            os._exit(0)

    process = Process(target=fork_and_exit)
    process.start()
    process.join(50)
    exitcode = process.exitcode
    over.release()

    assert exitcode == 0
    over.destroy()


def test_several_threads_may_wait_for_one_process(paused: Process) -> None:
    """All of them return, and all know how it ended."""
    records: list[ExitRecord | None] = []

    def wait(timeout: float | None) -> None:
        paused.join(timeout)
        records.append(paused.exit_record)

    threads = [threading.Thread(target=wait, args=(timeout,)) for timeout in (None, 50, None)]
    for thread in threads:
        thread.start()
    paused.terminate()
    for thread in threads:
        thread.join()

    assert [record and record.signal for record in records] == [signal.SIGTERM] * 3


def test_a_process_is_closed_once_it_has_ended(paused: Process) -> None:
    """Then its record is what is left of it."""
    with pytest.raises(ValueError, match="still running"):
        paused.close()
    closed = Process(target=int)
    closed.start()
    closed.join()
    closed.close()

    assert closed.exit_record
    assert closed.exit_record.exitcode == 0
    with pytest.raises(ValueError, match="closed"):
        _ = closed.exitcode


def test_a_process_that_cannot_be_forked_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the kernel comes out, and signals are let in again."""

    def fork() -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before, pipes, pipe = default_arena().statistics().blocks, list[int](), os.pipe

    def noted_pipe() -> tuple[int, int]:
        ends = pipe()
        pipes.extend(ends)
        return ends

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(os, "pipe", noted_pipe)
    process = Process(target=int)
    with pytest.raises(BlockingIOError):
        process.start()
    for fd in pipes:  # multiprocessing leaves them open
        os.close(fd)

    assert default_arena().statistics().blocks == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert process.exit_record is None


# How it ended


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (int, (), (0, None, "exited")),
        (sys.exit, (3,), (3, None, "exited")),
        (sys.exit, ("a message",), (1, None, "exited")),
        (os._exit, (4,), (4, None, "exited")),
        (kill_oneself, (signal.SIGKILL,), (-9, 9, "killed")),
        (kill_oneself, (signal.SIGTERM,), (-15, 15, "killed")),
    ],
)
def test_the_record_of_a_process_that_left_no_word(
    target: Callable[..., object], args: tuple[object, ...], expected: tuple[object, ...]
) -> None:
    """Exit code, signal and cause are there, and no text."""
    record = ended(target, *args)

    assert (record.exitcode, record.signal, record.cause) == expected
    assert record.exception is record.traceback is None
    assert record.seen_at > 0


@pytest.mark.usefixtures("kernel")
def test_terminate_and_kill_are_told_apart() -> None:
    """Each by its signal; a second one hits nobody."""
    for end, number in ((Process.terminate, signal.SIGTERM), (Process.kill, signal.SIGKILL)):
        process = Process(target=signal.pause)
        process.start()
        end(process)
        process.join()
        end(process)

        assert process.exit_record
        assert process.exit_record.signal == number


def test_an_exception_comes_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """In the record, and on stderr as ever."""
    record = ended(fail, "what is wrong")

    assert (record.exitcode, record.cause) == (1, "exited")
    assert record.exception == "ValueError: what is wrong"
    assert record.traceback
    assert record.traceback.startswith("Traceback (most recent call last):\n")
    assert record.traceback.endswith(
        "in fail\n    raise ValueError(text)\n" + record.exception + "\n"
    )
    assert "ValueError: what is wrong" in capfd.readouterr().err


def test_a_process_forked_by_the_target_leaves_no_word_of_its_own() -> None:
    """It comes up the same stack, but it is another."""

    def fork_and_fail() -> None:
        pid = os.fork()
        if pid == 0:
            fail("the grandchild's")
        os.waitpid(pid, 0)

    assert ended(fork_and_fail).exception is None


def test_the_record_of_a_child_of_a_process_that_c_forked(fork: Fork) -> None:
    """Python has not noticed that fork; the record is right all the same."""

    def look() -> None:
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            record = ended(fail, "deep down")
            os._exit(7 if record.exception == "ValueError: deep down" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    assert fork(look).wait() == 0


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("ask", ["join", "exitcode", "exit_record", "is_alive"])
def test_arenas_know_of_what_a_child_died(ask: str) -> None:
    """They are swept before it is reaped: all that are open, whoever asks first."""
    mine, done = Arena(1 << 20, max_processes=8), Semaphore(0)

    def use() -> None:
        for arena in (mine, default_arena()):
            arena.allocate(1)
        done.release()
        os._exit(3)

    process = Process(target=use)
    process.start()
    done.acquire()
    os.waitid(os.P_PID, process.pid or 0, os.WEXITED | os.WNOWAIT)
    if ask == "join":
        process.join()
    elif ask == "is_alive":
        assert not process.is_alive()
    else:
        assert getattr(process, ask) is not None

    for arena in (mine, default_arena()):
        [death] = [record for record in arena.deaths() if record.pid == process.pid]
        assert (death.exitcode, death.cause) == (3, "exited")
    process.close()
    mine.close()
    done.destroy()


# Where somebody else reaps


@pytest.mark.usefixtures("kernel")
def test_a_process_that_somebody_else_reaped_has_ended_nobody_knows_how() -> None:
    """No call hangs, and the exit code is None as in multiprocessing."""
    process = Process(target=int)
    process.start()
    os.waitpid(process.pid or 0, 0)

    process.join()
    process.join(50)
    assert process.exitcode is None
    assert not process.is_alive()
    assert process.exit_record
    assert (process.exit_record.cause, process.exit_record.exitcode) == ("unknown", None)
    process.terminate()
    process.close()
    assert process.exit_record.cause == "unknown"


@pytest.mark.usefixtures("kernel")
def test_where_the_kernel_reaps_by_itself_a_process_ends_all_the_same() -> None:
    """SIGCHLD is ignored; what the child said of its exception is still there."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = Process(target=fail, args=("heard",))
        process.start()
        process.join()
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert process.exit_record
    assert (process.exit_record.cause, process.exit_record.exception) == (
        "unknown",
        "ValueError: heard",
    )
    process.close()


def test_a_forked_copy_of_the_parent_does_not_take_the_child_for_ended(
    paused: Process, fork: Fork
) -> None:
    """The child is not its own, so it knows nothing of it."""

    def look() -> None:
        assert (paused.exitcode, paused.exit_record) == (None, None)

    assert fork(look).wait() == 0
    assert paused.is_alive()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_copy_of_the_parent_does_not_wait_for_a_thread_that_it_has_not_got(
    paused: Process, fork: Fork
) -> None:
    """The thread was about to look at the child when it was forked."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        assert paused._popen
        with paused._popen._lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = fork(multiprocessing.active_children)

    assert child.wait() == 0
    over.set()
    thread.join()
