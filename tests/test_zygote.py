"""A zygote forks workers that are its caller's own children."""

from __future__ import annotations

import atexit
import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import active_children, util
from pathlib import Path

import pytest

import executors as work
from ipcmap import Lock, Process, ProcessPoolExecutor, Ring, prefork
from ipcmap.zygote import Zygote, ZygoteProcess, _early, _forget_early


def say_who(ring: Ring) -> None:
    """Say who one is, and whose child."""
    ring.put(f"{os.getpid()} {os.getppid()} {threading.get_native_id()}".encode())


def take_and_die(lock: Lock, ring: Ring) -> None:
    """Die with a lock in hand."""
    lock.acquire()
    ring.put(b"taken")
    os.kill(os.getpid(), signal.SIGKILL)


def raise_it() -> None:
    """Raise."""
    raise KeyError("last words")


def register(ring: Ring) -> None:
    """Leave what is to be called at the end."""
    util.Finalize(None, ring.put, (b"finalizer",), exitpriority=1)
    atexit.register(ring.put, b"at exit")


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """A zygote without a target."""
    zygote = Zygote()
    yield zygote
    zygote.close()


def test_a_worker_is_a_child_of_the_caller(zygote: Zygote) -> None:
    """It is no child of the zygote, and its thread knows its own number."""
    said = Ring()
    worker = ZygoteProcess(zygote, say_who, (said,))
    worker.start()
    pid, parent, thread = map(int, said.get().split())

    assert (pid, parent, thread) == (worker.pid, os.getpid(), worker.pid)
    worker.join()
    assert worker.exitcode == 0
    assert worker.exit_record is not None
    assert worker.exit_record.cause == "exited"
    worker.close()


def test_a_worker_is_a_process_as_any_other(zygote: Zygote) -> None:
    """It is alive, among the active children, killed, waited for by its sentinel, and closed."""
    worker = ZygoteProcess(zygote, signal.pause, name="one of many")
    worker.start()
    assert worker.is_alive()
    assert worker in active_children()
    assert worker.name == "one of many"

    worker.kill()
    worker.join()

    assert worker.exit_record is not None
    assert worker.exit_record.signal == signal.SIGKILL
    assert not worker.is_alive()
    worker.close()


def test_a_worker_leaves_word_of_what_ended_it(
    zygote: Zygote, capfd: pytest.CaptureFixture[str]
) -> None:
    """The text of its exception is in the record; what it does not find, too."""
    for target, text in ((raise_it, "KeyError: 'last words'"), (None, "AttributeError")):
        late = target or _late()
        worker = ZygoteProcess(zygote, late)
        worker.start()
        worker.join()
        record = worker.exit_record
        worker.close()

        assert record is not None
        assert record.exitcode == 1
        assert record.exception is not None
        assert record.exception.startswith(text)
    capfd.readouterr()


def _late() -> type:
    """Return a class that the zygote, which is there already, has not got."""
    name = "MadeLater"
    made = type(name, (), {"__module__": __name__})
    globals()[name] = made
    return made


def test_a_worker_ends_as_a_process_of_multiprocessing(zygote: Zygote) -> None:
    """Its finalizers are called; and what is registered for its exit, where other children do so."""
    ring = Ring()
    worker = ZygoteProcess(zygote, register, (ring,))
    worker.start()
    worker.join()

    assert ring.get_many() == ([b"at exit"] if sys.version_info >= (3, 13) else []) + [b"finalizer"]
    worker.close()


def test_what_a_dead_worker_held_comes_back(zygote: Zygote) -> None:
    """The kernel tells of its death: its robust list is its own."""
    lock, ring = Lock(), Ring()
    worker = ZygoteProcess(zygote, take_and_die, (lock, ring))
    worker.start()
    ring.get()

    assert lock.acquire(timeout=30)

    assert lock.recovered
    lock.release()
    worker.join()
    worker.close()


def test_a_dead_zygote_says_so(zygote: Zygote) -> None:
    """And its workers go on."""
    worker = ZygoteProcess(zygote, signal.pause)
    worker.start()
    os.kill(zygote.pid, signal.SIGKILL)
    work.wait_until(lambda: not zygote.usable)

    with pytest.raises(BrokenPipeError, match="zygote is dead"):
        ZygoteProcess(zygote, signal.pause).start()
    assert worker.is_alive()
    worker.kill()
    worker.join()
    worker.close()


@pytest.fixture
def beside_a_thread() -> Iterator[threading.Event]:
    """Another thread, which ends with the test."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="the other one")
    thread.start()
    yield over
    over.set()
    thread.join()


def test_an_executor_beside_threads_names_them(beside_a_thread: threading.Event) -> None:
    """It works all the same."""
    with pytest.warns(RuntimeWarning, match="the other one"):
        executor = ProcessPoolExecutor(1)
    with executor:
        assert executor.submit(work.same, 1).result() == 1


def test_a_zygote_that_was_made_early_is_used_beside_threads() -> None:
    """No warning is given; initializer and arguments travel by pickle."""
    prefork()
    prefork()
    (early,) = _early
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                with ProcessPoolExecutor(2, initializer=abs, initargs=(1,)) as executor:
                    assert executor._dispatcher.workforce._zygote is early
                    assert list(executor.map(work.same, range(50))) == list(range(50))
    finally:
        over.set()
        thread.join()
        _forget_early()


def test_executors_that_share_a_zygote_each_replace_it_when_it_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever comes later finds it closed."""
    monkeypatch.setattr(ProcessPoolExecutor, "_early", True)
    prefork()
    (early,) = _early
    try:
        with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(1) as other:
            os.kill(early.pid, signal.SIGKILL)
            work.wait_until(lambda: not early.usable)

            assert one.submit(work.same, 1).result() == 1
            assert other.submit(work.same, 2).result() == 2
    finally:
        _forget_early()


def test_a_child_lets_go_of_the_zygote_that_it_has_inherited() -> None:
    """It has one of its own, and the parent keeps the other."""
    prefork()
    (early,) = _early
    inherited = early._pidfd, early._socket.fileno()
    child = Process(target=prefork_anew, args=(inherited,))
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()

    assert early.usable
    _forget_early()


def prefork_anew(inherited: tuple[int, int]) -> None:
    """Have a zygote of one's own, in place of what one has inherited."""
    targets = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in inherited]
    prefork()
    assert _early[0].usable
    _forget_early()
    for descriptor, target in zip(inherited, targets, strict=True):
        with contextlib.suppress(FileNotFoundError):
            assert os.readlink(f"/proc/self/fd/{descriptor}") != target


PROGRAM = """
import ipcmap, os, threading, time

def wait():
    os.write(1, b"%d\\n" % os.getpid())  # in one piece
    time.sleep(3600)

def begin():
    global executor
    executor = ipcmap.ProcessPoolExecutor(2)
    executor.submit(wait)
    executor.submit(wait)

if __name__ == "__main__":
    {begin}
    executor.submit(int).result()
"""


def test_workers_of_a_thread_outlive_it_and_die_with_the_process(tmp_path: Path) -> None:
    """Where the executor was made by a thread that is over."""
    program = tmp_path / "program.py"
    begin = "thread = threading.Thread(target=begin); thread.start(); thread.join()"
    program.write_text(PROGRAM.format(begin=begin))
    command = [sys.executable, "-W", "ignore", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert not any(map(work.is_gone, pids))
        parent.kill()

    work.wait_until(lambda: all(map(work.is_gone, pids)))


def test_a_ctrl_c_at_a_terminal_ends_the_program_with_one_traceback(tmp_path: Path) -> None:
    """Its own; the workers get the signal too, and say nothing."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(begin="begin()"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, str(program)], {**os.environ, "NO_COLOR": "1"})
    said = b""
    while said.count(b"\n") < 2:
        said += os.read(terminal, 1 << 12)
    pids = [int(line) for line in said.split()]
    os.write(terminal, b"\x03")
    while True:
        try:
            said += os.read(terminal, 1 << 12)
        except OSError:  # the last one has closed it
            break
    os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGINT
    assert said.count(b"Traceback") == 1
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    assert all(map(work.is_gone, pids))
