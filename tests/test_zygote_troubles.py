"""A zygote where something is short, or breaks in: none is left behind, nor a stranger taken."""

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
from collections.abc import Iterator
from typing import NoReturn

import pytest

import executors as work
from households import Household, runs, waits
from ipcmap import default_arena, zygote_server
from ipcmap import zygote as zygote_module
from ipcmap._core import liveness
from ipcmap.errors import BusyError
from ipcmap.zygote import Zygote, ZygoteProcess
from ipcmap.zygote_server import ZygoteServer


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
        ZygoteProcess(zygote, signal.pause).start()
    assert dead not in home.children()

    os.kill(home.spare(), signal.SIGSTOP)
    with no_descriptors():
        zygote.close()
    assert not home.children()


def test_a_worker_that_somebody_else_reaps_at_once_leaves_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block either, in which it would have told of its end."""
    take = zygote_module._ZygotePopen._take_pidfd

    def be_late(self: zygote_module._ZygotePopen) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        take(self)

    monkeypatch.setattr(zygote_module._ZygotePopen, "_take_pidfd", be_late)
    zygote = home.zygote()
    before = default_arena().statistics().blocks

    with pytest.raises(OSError, match="somebody else has reaped it"):
        ZygoteProcess(zygote, signal.pause).start()

    assert default_arena().statistics().blocks == before


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
