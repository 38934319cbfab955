"""Orphans: a child dies with its parent, whoever forked it, and not with a thread of it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from children import Fork
from ipcmap import Pipe, Process, Semaphore
from ipcmap._core import libc

# From 3.12 on Python warns of a fork in a process with threads, which is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

_CLONE_NEWPID = 0x20000000

Start = Callable[[Process], None]


def in_this_thread(process: Process) -> None:
    """Start a process from the first thread."""
    process.start()


def in_another_thread(process: Process) -> None:
    """Start a process from a thread that ends at once."""
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()


@pytest.fixture(params=[in_this_thread, in_another_thread])
def start(request: pytest.FixtureRequest) -> Start:
    """Each way to start a process."""
    chosen: Start = request.param
    return chosen


class Line:
    """A pipe that ends when the last process that has its other end is dead."""

    def __init__(self) -> None:
        self.hears, self.speaks = os.pipe()

    def say_and_stay(self) -> NoReturn:
        """Say ``+``, in a process that then waits for its end."""
        os.write(self.speaks, b"+")
        while True:
            signal.pause()

    def hear(self, nbytes: int) -> bytes:
        """Return what was said, and less where all are dead."""
        if self.speaks >= 0:
            os.close(self.speaks)
            self.speaks = -1
        return os.read(self.hears, nbytes)

    def is_over(self) -> bool:
        """Wait for the next word, or for the end."""
        over = self.hear(1) == b""
        os.close(self.hears)
        return over


def be_parent(
    start: Start, target: Callable[[], object], line: Line, kind: type[Process] = Process
) -> None:
    """Start a child and wait for the end."""
    start(kind(target=target))
    os.close(line.speaks)
    signal.pause()


@pytest.mark.usefixtures("kernel")
def test_a_child_dies_when_its_parent_is_killed(start: Start, fork: Fork) -> None:
    """The line is open as long as the child lives."""
    line = Line()

    parent = fork(be_parent, start, line.say_and_stay, line)
    assert line.hear(1) == b"+"
    parent.kill()

    assert line.is_over()


@pytest.mark.usefixtures("kernel")
def test_a_child_dies_when_its_parent_leaves_without_a_word(start: Start, fork: Fork) -> None:
    """As by os._exit, which joins nobody."""
    line = Line()

    go_on = Semaphore(0)

    def start_and_leave() -> None:
        start(Process(target=line.say_and_stay))
        go_on.acquire()
        os._exit(0)

    parent = fork(start_and_leave)
    assert line.hear(1) == b"+"
    go_on.release()
    parent.wait()

    assert line.is_over()
    go_on.destroy()


def orphan_at_birth(start: Start, line: Line) -> None:
    """Be a parent that is dead before the child has looked for it."""
    parent = os.getpid()

    def wait_until_orphaned() -> None:
        while os.getppid() == parent:
            os.sched_yield()

    os.register_at_fork(
        after_in_child=wait_until_orphaned,
        after_in_parent=lambda: os.kill(parent, signal.SIGKILL),
    )
    start(Process(target=line.say_and_stay))


@pytest.mark.usefixtures("kernel")
def test_a_child_whose_parent_died_before_it_looked_does_not_begin(fork: Fork) -> None:
    """The kernel tells of deaths to come only, so the child looks for itself."""
    line = Line()

    parent = fork(orphan_at_birth, in_this_thread, line)

    assert parent.wait() == -signal.SIGKILL
    assert line.is_over()


@pytest.mark.usefixtures("kernel")
def test_a_child_of_a_thread_whose_parent_died_before_it_looked_dies(fork: Fork) -> None:
    """It may have begun before its own thread had the turn."""
    line = Line()

    parent = fork(orphan_at_birth, in_another_thread, line)

    assert parent.wait() == -signal.SIGKILL
    while line.hear(1):
        pass
    assert line.is_over()


@pytest.mark.usefixtures("kernel")
def test_a_child_outlives_the_thread_that_forked_it() -> None:
    """What ends is a thread, and not the parent."""
    ask, answer = Semaphore(0), Semaphore(0)

    def answer_twice() -> None:
        for _ in range(2):
            ask.acquire()
            answer.release()

    def be_asked() -> bool:
        ask.release()
        return answer.acquire(timeout=50)

    process = Process(target=answer_twice)
    answers = []

    def start_and_ask() -> None:
        process.start()
        answers.append(be_asked())

    thread = threading.Thread(target=start_and_ask)
    thread.start()
    thread.join()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        os.sched_yield()
    answers.append(be_asked())
    process.join()

    assert (answers, process.exitcode) == ([True, True], 0)
    process.close()
    ask.destroy()
    answer.destroy()


@pytest.mark.usefixtures("kernel")
def test_a_child_that_closes_all_its_descriptors_dies_with_its_parent(
    start: Start, fork: Fork
) -> None:
    """As daemons do; it dies no sooner either."""
    line = Line()

    def close_all() -> None:
        os.closerange(3, line.speaks)
        os.closerange(line.speaks + 1, 1000)
        line.say_and_stay()

    parent = fork(be_parent, start, close_all, line)
    assert line.hear(1) == b"+"
    parent.kill()

    assert line.is_over()


def test_a_program_that_the_child_became_dies_with_the_parent(fork: Fork) -> None:
    """What the kernel was asked for stays asked for after exec."""
    line = Line()

    def become_another() -> None:
        os.dup2(line.speaks, 1)
        os.execlp("sh", "sh", "-c", "echo; exec sleep 1000")

    parent = fork(be_parent, in_this_thread, become_another, line)
    assert line.hear(1) == b"\n"
    parent.kill()

    assert line.is_over()


# Pid namespaces


def needs_a_namespace(fork: Fork) -> None:
    """Skip where the kernel does not let us make a pid namespace."""

    def leave() -> None:
        unshare = libc._declare("unshare", ctypes.c_int, ctypes.c_int)
        try:
            unshare(_CLONE_NEWPID)
        except PermissionError:
            os._exit(77)

    if fork(leave).wait() == 77:
        pytest.skip("a new pid namespace needs CAP_SYS_ADMIN")


def test_a_parent_may_be_the_first_process_of_its_namespace(fork: Fork) -> None:
    """Its children have the parent 1, and are no orphans."""
    needs_a_namespace(fork)
    program = """
        import os, threading, warnings
        from ipcmap import Pipe, Process, Semaphore
        warnings.simplefilter("ignore", DeprecationWarning)
        assert os.getpid() == 1
        over = Semaphore(0)
        def work():
            over.acquire()
            os._exit(os.getppid() + 40)
        processes = [Process(target=work) for _ in range(2)]
        processes[0].start()
        thread = threading.Thread(target=processes[1].start)
        thread.start()
        thread.join()
        for process in processes:
            over.release()
        for process in processes:
            process.join()
            print(process.exitcode)
    """
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    run = subprocess.run(
        [*inside, sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "41\n41\n", "")


def test_a_child_may_be_the_first_process_of_a_namespace(start: Start, fork: Fork) -> None:
    """It sees no parent, and no signal of its own ends it; it dies with the parent all the same."""
    needs_a_namespace(fork)
    line = Line()

    class Started(Process):
        def start(self) -> None:
            # In the thread that forks: a namespace is for the children of one thread.
            libc._declare("unshare", ctypes.c_int, ctypes.c_int)(_CLONE_NEWPID)
            super().start()

    def be_first() -> None:
        assert (os.getpid(), os.getppid()) == (1, 0)
        line.say_and_stay()

    parent = fork(be_parent, start, be_first, line, Started)
    assert line.hear(1) == b"+"
    parent.kill()

    assert line.is_over()


@pytest.mark.parametrize("ask", ["is_alive", "join", "sentinel"])
def test_a_child_that_watches_its_parent_lives_on_to_see_its_end(start: Start, ask: str) -> None:
    """Forked by either kind of thread, from the first question on."""
    reader, writer = Pipe(duplex=False)

    def watch() -> None:
        parent: Any = multiprocessing.parent_process()
        if ask == "is_alive":
            assert parent.is_alive()
        elif ask == "join":
            parent.join(timeout=0)
        else:
            assert parent.sentinel >= 0
        writer.send("watches")
        parent.join()
        writer.send(parent.is_alive())

    def main() -> None:
        start(Process(target=watch))
        signal.pause()

    parent = Process(target=main)
    parent.start()
    assert reader.recv() == "watches"
    parent.kill()
    parent.join()
    assert reader.recv() is False
    writer.close()
    with pytest.raises(EOFError):  # the child has ended
        reader.recv()
    reader.close()
    parent.close()
