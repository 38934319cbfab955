"""How one tells that a process is dead: what ended, what is somebody else, what went away."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from children import Child, Fork
from families import Place
from ipcmap._core import libc, liveness
from ipcmap._core import slot_layout as at
from ipcmap._core.liveness import Death, Region

_CLONE_NEWPID = 0x20000000
_SYS_EXIT = {"x86_64": 60, "aarch64": 93, "riscv64": 93}


def refuse(number: int) -> Callable[..., NoReturn]:
    """Return a call that fails as in a system that has not got it."""

    def refused(*arguments: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture(params=["pidfd", "proc", "no call"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every behaviour with pidfds, where the kernel lacks them, and where Python does."""
    if request.param == "proc":
        monkeypatch.setattr(os, "pidfd_open", refuse(errno.ENOSYS))
    elif request.param == "no call":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc that shows nothing."""
    monkeypatch.setattr(liveness, "proc_is_ours", lambda: False)


class Member:
    """A child that has a slot and waits for its end."""

    def __init__(self, place: Place, fork: Fork, then: Callable[[], object] = signal.pause) -> None:
        def live() -> None:
            place.table.slot()
            place.shared[0] = 1
            then()

        self.place = place
        place.shared[0] = 0
        self.child: Child = fork(live)
        self.pid = self.child.pid
        place.wait_for(0)

    def examine(self) -> Death | None:
        """Ask whether it is dead, as a sweep does."""
        (slot,) = [slot for slot in self.place.table.members() if slot.pid == self.pid]
        table = self.place.table
        return liveness.examine(slot.pid, slot.started, table._region)


@pytest.fixture
def place() -> Place:
    """A fresh table."""
    return Place()


@pytest.fixture
def member(place: Place, fork: Fork, way: None) -> Iterator[Member]:
    """A living member, ended with its test."""
    member = Member(place, fork)
    yield member
    with contextlib.suppress(ProcessLookupError):
        os.kill(member.pid, signal.SIGCONT)


def test_a_living_process_is_alive(member: Member, place: Place) -> None:
    """Nothing is taken from it, nor from the one who asks."""
    place.table.slot()

    assert member.examine() is None
    assert place.table.sweep() == 0


def test_a_zombie_is_dead_and_its_end_is_known(member: Member) -> None:
    """It has ended, whether or not its parent has looked."""
    os.kill(member.pid, signal.SIGTERM)
    os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)

    assert member.examine() == Death(at.KILLED, signal.SIGTERM)


def test_a_zombie_of_another_parent_shows_its_end_too(place: Place, fork: Fork) -> None:
    """As long as nobody has reaped it; a plain 0 could as well be a refusal."""

    def parent(code: int) -> None:
        pid = os.fork()
        if not pid:
            place.table.slot()
            os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        place.shared[0] = 1
        signal.pause()

    for code in (5, 0, -signal.SIGTERM):
        place.shared[0] = 0
        fork(parent, code)
        place.wait_for(0)

    assert place.table.sweep() == 3
    assert [(d.cause, d.status) for d in place.table.deaths()] == [
        (at.EXITED, 5),
        (at.UNKNOWN, 0),
        (at.KILLED, signal.SIGTERM),
    ]


def test_a_reaped_process_is_dead(member: Member) -> None:
    """Its pid is nobody's."""
    member.child.kill()

    assert member.examine() == Death(at.UNKNOWN, 0)


def test_a_stopped_process_is_alive(member: Member) -> None:
    """It delays others; nothing is taken from it."""
    os.kill(member.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, member.pid, os.WSTOPPED | os.WNOWAIT)

    assert member.examine() is None


def test_a_pid_that_is_used_again_is_dead(member: Member, place: Place) -> None:
    """The start time tells one owner of a pid from the next."""
    place.words[at.SLOT + at.STARTED] += 1

    assert member.examine() == Death(at.UNKNOWN, 0)


def test_a_zombie_that_has_the_pid_again_lends_it_no_cause(member: Member, place: Place) -> None:
    """How somebody else ended is no news of the dead one."""
    place.words[at.SLOT + at.STARTED] += 1
    os.kill(member.pid, signal.SIGTERM)
    os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)

    assert member.examine() == Death(at.UNKNOWN, 0)


def test_a_thread_that_has_the_pid_again_is_not_the_process(place: Place, way: None) -> None:
    """Pids and thread ids are the same numbers."""
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        assert thread.native_id
        assert liveness.examine(thread.native_id, 1, Region(0, 0, None)) == Death(at.UNKNOWN, 0)
    finally:
        go_on.set()
        thread.join()


def test_a_process_that_went_away_by_exec_is_dead(place: Place, fork: Fork, way: None) -> None:
    """It lives, but it will never give back what it holds."""
    ready, end = os.pipe()
    program = "import os, time; os.write(1, b'.'); time.sleep(60)"

    def go_away() -> None:
        os.dup2(end, 1)
        os.execv(sys.executable, [sys.executable, "-I", "-c", program])

    member = Member(place, fork, go_away)
    os.read(ready, 1)
    os.close(ready)
    os.close(end)

    assert member.examine() == Death(at.EXECED, 0)
    assert place.table.sweep() == 1
    assert place.pids() == []


@pytest.mark.skipif(os.uname().machine not in _SYS_EXIT, reason="needs the number of exit(2)")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_process_whose_first_thread_ended_is_alive(place: Place, fork: Fork, way: None) -> None:
    """It looks like a zombie, and its other threads go on."""

    def end_the_first_thread() -> None:
        threading.Thread(target=signal.pause).start()
        ctypes.CDLL(None).syscall(_SYS_EXIT[os.uname().machine], 0)

    member = Member(place, fork, end_the_first_thread)
    while (stat := liveness.read_stat(member.pid)) and stat.state != "Z":
        os.sched_yield()

    assert member.examine() is None
    member.child.kill()
    assert member.examine() == Death(at.UNKNOWN, 0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EPERM, errno.EINVAL])
def test_what_cannot_be_found_out_counts_as_alive(
    place: Place, fork: Fork, monkeypatch: pytest.MonkeyPatch, hidden: None, number: int
) -> None:
    """Only ESRCH is an answer."""
    member = Member(place, fork)
    monkeypatch.setattr(os, "pidfd_open", refuse(number))
    monkeypatch.setattr(os, "kill", refuse(errno.EPERM))

    assert member.examine() is None


def test_without_proc_the_pidfd_alone_decides(member: Member, hidden: None) -> None:
    """Nothing that a hidden /proc says is believed."""
    assert member.examine() is None
    member.child.kill()
    assert member.examine() == Death(at.UNKNOWN, 0)


def test_a_process_on_its_way_out_is_alive(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maps are empty already; its end will be known in a moment."""
    monkeypatch.setattr(libc, "process_vm_readv", refuse(errno.ESRCH))
    monkeypatch.setattr(liveness, "mapped_at", lambda pid, address: None)

    assert member.examine() is None


def test_a_proc_of_another_pid_namespace_is_not_believed(fork: Fork) -> None:
    """There, pid 2 is somebody else, with another start time."""

    def inner() -> None:
        assert not liveness.proc_is_ours()
        place = Place()
        pid = os.fork()
        if not pid:
            place.table.slot()
            place.shared[0] = 1
            time.sleep(60)
        place.wait_for(0)
        assert place.table.sweep() == 0
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert place.table.sweep() == 1

    def outer() -> None:
        try:
            libc._declare("unshare", ctypes.c_int, ctypes.c_int)(_CLONE_NEWPID)
        except PermissionError:
            os._exit(77)
        init = os.fork()
        if not init:
            code = 1
            try:
                inner()
                code = 0
            finally:
                os._exit(code)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]))

    code = fork(outer).wait()
    if code == 77:
        pytest.skip("a new pid namespace is not permitted here")

    assert code == 0


def test_where_one_may_not_look_into_a_process_its_maps_decide(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal (as by Yama's ptrace_scope) is no answer."""
    monkeypatch.setattr(libc, "process_vm_readv", refuse(errno.EPERM))

    assert member.examine() is None


def test_a_region_is_known_by_its_word(member: Member, place: Place) -> None:
    """Another program may have something else at the address."""
    region = place.table._region

    assert liveness.has_word(member.pid, region)
    assert not liveness.has_word(member.pid, region._replace(word=1))
    assert not liveness.has_word(member.pid, region._replace(address=4096))
    assert not liveness.has_word(2**22, region)


def test_what_is_mapped_at_an_address(place: Place) -> None:
    """The region, another, nothing, or no answer."""
    here = liveness.mapped_at("self", place.section)

    assert here
    assert here == liveness.mapped_at(os.getpid(), place.table._region.address)
    assert here != liveness.mapped_at("self", id(here))
    assert liveness.mapped_at("self", 4096) == ""
    assert liveness.mapped_at("self", 2**64 - 1) == ""
    assert liveness.mapped_at("nobody", 4096) is None


@pytest.mark.parametrize(
    ("cause", "status", "valid"),
    [
        (at.UNKNOWN, 0, True),
        (at.UNKNOWN, 1, False),
        (at.EXITED, 255, True),
        (at.EXITED, 256, False),
        (at.KILLED, 0, False),
        (at.KILLED, 64, True),
        (at.KILLED, 65, False),
        (at.EXECED, 0, True),
        (at.LEFT, 0, True),
        (at.LEFT, 1, False),
        (5, 0, False),
    ],
)
def test_only_a_death_that_can_be_is_valid(cause: int, status: int, valid: bool) -> None:
    """What shared memory says is checked before it is told."""
    assert liveness.valid(Death(cause, status)) is valid
