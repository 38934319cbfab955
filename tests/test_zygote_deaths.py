"""Who dies around a zygote: itself, its spare, a worker amid its birth. All are reaped."""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import NoReturn

import pytest

import executors as work
from ipcmap import ProcessPoolExecutor, Ring, zygote_server
from ipcmap import zygote as zygote_module
from ipcmap._core import liveness
from ipcmap.errors import BusyError
from ipcmap.zygote import Zygote, ZygoteProcess
from ipcmap.zygote_server import OF_A_SPARE, ZygoteServer
from processes import children, read


def say_so(ring: Ring) -> None:
    """Say that one runs."""
    ring.put(b"%d" % os.getpid())


class Household:
    """The zygotes of a test, and who are our children for them."""

    def __init__(self) -> None:
        self.strangers = pids_of(os.getpid())
        self.zygotes: list[Zygote] = []

    def zygote(self) -> Zygote:
        """Make one, without a target."""
        self.zygotes.append(Zygote())
        return self.zygotes[-1]

    def children(self) -> set[int]:
        """Return who is there, dead or alive, beside the zygotes."""
        known = {zygote.pid for zygote in self.zygotes}
        return pids_of(os.getpid()) - self.strangers - known

    def spare(self) -> int:
        """Wait until there is one; return its pid."""
        work.wait_until(lambda: len(self.children()) == 1)
        (pid,) = self.children()
        return pid

    def close(self) -> None:
        """Close the zygotes; nobody is left."""
        for zygote in self.zygotes:
            zygote.close()
        self.zygotes = []
        assert not self.children()


def pids_of(parent: int) -> set[int]:
    """Return the pids of the children of a process."""
    return {one.pid for one in children(parent) or []}


def runs(zygote: Zygote) -> int:
    """Have a worker forked, see that it does its work and ends well; return its pid."""
    said = Ring()
    worker = ZygoteProcess(zygote, say_so, (said,))
    worker.start()
    pid = int(said.get())
    worker.join()
    assert (pid, worker.exitcode) == (worker.pid, 0)
    worker.close()
    return pid


@pytest.fixture
def home() -> Iterator[Household]:
    """A household, which is closed in the end and leaves nobody."""
    home = Household()
    yield home
    home.close()


def test_a_spare_becomes_the_worker_that_is_asked_for(home: Household) -> None:
    """It is nobody's child process before, for whoever asks multiprocessing."""
    zygote = home.zygote()
    for _ in range(3):
        spare = home.spare()
        assert not active_children()

        assert runs(zygote) == spare


def test_a_spare_that_is_killed_costs_nothing(home: Household) -> None:
    """The next worker is another, and the dead one is reaped."""
    zygote = home.zygote()
    for signal_number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        spare = home.spare()
        work.wait_until(functools.partial(waits, spare))
        os.kill(spare, signal_number)
        work.wait_until(functools.partial(work.is_gone, spare))

        assert runs(zygote) != spare
        assert spare not in home.children()


def waits(pid: int) -> bool:
    """Return whether a spare waits for its request: it has unblocked its signals, and sleeps."""
    status = read(f"/proc/{pid}/status")
    blocked = status.partition("SigBlk:")[2].split()[:1]
    return blocked == ["0" * 16] and "State:\tS" in status


def test_a_spare_goes_with_its_zygote(home: Household) -> None:
    """It ends by itself, and is reaped with the zygote."""
    zygote = home.zygote()
    spare = home.spare()

    os.kill(zygote.pid, signal.SIGKILL)

    work.wait_until(lambda: work.is_gone(spare))
    zygote.close()
    assert not home.children()


def test_a_spare_that_is_stopped_is_ended_with_its_zygote(home: Household) -> None:
    """It cannot end by itself."""
    zygote = home.zygote()
    spare = home.spare()
    os.kill(spare, signal.SIGSTOP)

    zygote.close()

    assert not home.children()


@pytest.mark.parametrize("of", [None, signal.SIGKILL, signal.SIGSTOP])
def test_a_spare_that_its_zygote_had_not_told_of_is_reaped(
    of: signal.Signals | None, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of it as well, its pid is known before it runs."""
    answer = ZygoteServer._answer

    def die_before_that(self: ZygoteServer, number: int, pid: int) -> None:
        if number == OF_A_SPARE:
            if of is not None:
                os.kill(pid, of)
            os.kill(os.getpid(), signal.SIGKILL)
        answer(self, number, pid)

    monkeypatch.setattr(ZygoteServer, "_answer", die_before_that)
    zygote = home.zygote()
    spare = home.spare()
    work.wait_until(lambda: work.is_gone(zygote.pid))

    zygote.close()

    assert work.is_gone(spare)
    assert not home.children()


def test_a_worker_whose_zygote_dies_as_it_hands_over_is_there(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says so itself."""
    answer = ZygoteServer._answer

    def die_before_that(self: ZygoteServer, number: int, pid: int) -> None:
        if number != OF_A_SPARE and pid != os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)
        answer(self, number, pid)

    monkeypatch.setattr(ZygoteServer, "_answer", die_before_that)

    runs(home.zygote())


def test_a_worker_that_dies_before_it_takes_its_request_is_a_dead_worker(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller has it, and hears how it ended."""
    monkeypatch.setattr(ZygoteServer, "_work", lambda self, birth, channel: os._exit(7))
    stopped = ZygoteServer._be_a_spare

    def stop_first(self: ZygoteServer, *sockets: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)  # else it would be gone before it is asked
        stopped(self, *sockets)  # type: ignore[arg-type]

    monkeypatch.setattr(ZygoteServer, "_be_a_spare", stop_first)
    zygote = home.zygote()
    spare = home.spare()
    work.wait_until(lambda: "State:\tT" in read(f"/proc/{spare}/status"))
    worker = ZygoteProcess(zygote, say_so)
    worker.start()
    assert worker.pid == spare
    worker.resume()
    worker.join()

    assert worker.exitcode == 7
    worker.close()


def test_a_zygote_all_of_whose_children_die_says_so(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some, which are reaped; and so does an executor."""
    forked = ZygoteServer._forked

    def see_it_dead(self: ZygoteServer) -> tuple[int, socket.socket]:
        pid, channel = forked(self)
        assert not channel.recv(1)
        return pid, channel

    monkeypatch.setattr(ZygoteServer, "_be_a_spare", lambda self, *sockets: os._exit(7))
    monkeypatch.setattr(ZygoteServer, "_forked", see_it_dead)
    zygote = home.zygote()

    for _ in range(2):
        with pytest.raises(ChildProcessError, match="die before they are ready"):
            runs(zygote)
    zygote.close()

    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(Exception, match=r"no worker can be forked.*die before they are ready"),
    ):
        executor.submit(work.same, 1).result()


PROGRAM = """
from ipcmap.zygote import Zygote
import os, signal
zygote = Zygote()
print(os.getpid(), flush=True)
signal.pause()
"""


def test_a_spare_dies_with_its_parent(tmp_path: Path) -> None:
    """Of a SIGKILL, as all of the family."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()
        work.wait_until(lambda: len(pids_of(parent.pid)) == 2)
        family = pids_of(parent.pid)
        parent.kill()

    work.wait_until(lambda: all(map(work.is_gone, family)))


def test_a_zygote_that_can_fork_no_spare_sleeps(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries once after each request, and not for ever: there may be no room for days."""
    tried = mmap.mmap(-1, 8)

    def find_no_room(self: ZygoteServer) -> NoReturn:
        struct.pack_into("Q", tried, 0, struct.unpack_from("Q", tried)[0] + 1)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(ZygoteServer, "_forked", find_no_room)
    monkeypatch.setattr(zygote_server, "_REST", 0)
    zygote = home.zygote()
    for _ in range(50):
        with pytest.raises(BlockingIOError):
            runs(zygote)
    zygote.close()

    (times,) = struct.unpack_from("Q", tried)
    tried.close()
    assert 50 <= times <= 101


UNREAD = """
from ipcmap.zygote import Zygote
import os, socket, sys
zygote = Zygote()
zygote._socket.recv(1, socket.MSG_PEEK)
os.execv(sys.executable, [sys.executable, "-c", "import os; os.wait(), os.wait()"])
"""


def test_a_zygote_ends_without_a_word_when_its_parent_has_not_read_all(tmp_path: Path) -> None:
    """Nor does the spare say anything, of which nobody has heard."""
    program = tmp_path / "program.py"
    program.write_text(UNREAD)

    ended = subprocess.run([sys.executable, str(program)], capture_output=True, check=True)

    assert (ended.stdout, ended.stderr) == (b"", b"")


def test_a_spare_waits_though_sockets_have_a_timeout_by_default(home: Household) -> None:
    """Theirs are to wait as long as nobody asks."""
    socket.setdefaulttimeout(0.0)
    try:
        zygote = home.zygote()
    finally:
        socket.setdefaulttimeout(None)
    for _ in range(2):
        spare = home.spare()
        work.wait_until(functools.partial(waits, spare))

        assert runs(zygote) == spare


def interrupt(*args: object, **kwargs: object) -> NoReturn:
    """Be a signal handler that raises, or what one interrupts."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["_is_readable", "_hear", "_reap"])
def test_a_close_that_is_broken_off_is_done_again(
    step: str, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a signal handler that raises: nobody is left, nor any descriptor."""
    zygote = home.zygote()
    home.spare()
    where = zygote_module if step == "_is_readable" else Zygote
    with monkeypatch.context() as patched:
        patched.setattr(where, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            zygote.close()

    zygote.close()

    assert work.is_gone(zygote.pid)
    assert not home.children()


@contextlib.contextmanager
def no_descriptors(but: int = 0) -> Iterator[None]:
    """Let this process open so many files more, and no others."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(but):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_spare_is_reaped_where_there_is_no_room_for_a_descriptor(home: Household) -> None:
    """Neither a dead one is forgotten, nor one that is stopped, and cannot end by itself."""
    zygote = home.zygote()
    dead = home.spare()
    os.kill(dead, signal.SIGKILL)
    work.wait_until(functools.partial(work.is_gone, dead))
    with no_descriptors(), pytest.raises(OSError, match="no pidfd"):
        ZygoteProcess(zygote, say_so).start()
    assert dead not in home.children()

    os.kill(home.spare(), signal.SIGSTOP)
    with no_descriptors():
        zygote.close()
    assert not home.children()


def test_a_zygote_takes_the_room_of_what_it_needs_to_begin(home: Household) -> None:
    """With room for less it is not forked."""
    for room in range(3):
        with no_descriptors(but=room), pytest.raises(OSError, match="Too many open files"):
            Zygote()
        assert not home.children()

    with no_descriptors(but=3):
        home.zygote()


def test_a_handler_that_raises_as_a_zygote_begins_leaves_nobody(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor any descriptor."""
    pidfd_open = liveness.pidfd_open

    def be_interrupted(pid: int) -> int:
        if pid != os.getpid():  # the zygote's
            work.wait_until(lambda: len(home.children()) == 2)
            os.kill(os.getpid(), signal.SIGUSR1)
        return pidfd_open(pid)

    monkeypatch.setattr(liveness, "pidfd_open", be_interrupted)
    usual = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            Zygote()
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert not home.children()


def test_a_fork_that_is_broken_off_leaves_no_worker(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the zygote's to end, since nobody else knows of it; the zygote goes on."""
    zygote = home.zygote()
    spare = home.spare()
    request = pickle.dumps(("name", (1,), None, pickle.dumps((signal.pause, ()))))
    with monkeypatch.context() as patched:
        patched.setattr(Zygote, "_hear", interrupt)
        with pytest.raises(KeyboardInterrupt):
            zygote.fork(request)

    assert runs(zygote) != spare
    assert spare in home.children()
    zygote.close()
    assert not home.children()


def test_a_handler_that_forks_amid_a_fork_is_told_so(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would have the answer that the other waits for."""
    hear = Zygote._hear
    told: list[str] = []

    def fork_as_well(self: Zygote) -> tuple[int, int]:
        with pytest.raises(BusyError, match="in use by the code") as caught:
            runs(self)
        told.append(str(caught.value))
        return hear(self)

    zygote = home.zygote()
    with monkeypatch.context() as patched:
        patched.setattr(Zygote, "_hear", fork_as_well)
        runs(zygote)

    assert told


def test_another_child_with_the_pid_of_a_spare_is_left_alone(home: Household) -> None:
    """Who waits for all children may have reaped the spare, and begun another."""
    zygote = home.zygote()
    spare = home.spare()
    zygote._hear()
    stat = liveness.read_stat(spare)
    assert stat is not None
    assert zygote._spares == {spare: stat.started}
    home.strangers.add(other := os.posix_spawnp("sleep", ["sleep", "3600"], {}))
    zygote._spares[other] = stat.started - 1

    runs(zygote)
    zygote.close()

    assert not work.is_gone(other)
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
