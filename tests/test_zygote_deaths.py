"""Who dies around a zygote: itself, its spare, a worker amid its birth. All are reaped."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path

import pytest

import executors as work
from households import Household, pids_of, runs, say_so, waits
from ipcmap import ProcessPoolExecutor
from ipcmap.zygote import ZygoteProcess
from ipcmap.zygote_server import OF_A_SPARE, ZygoteServer
from processes import read


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


def test_a_zygote_that_is_stopped_is_not_waited_for(home: Household) -> None:
    """It is killed, and whoever wants a worker hears that it is dead."""
    zygote = home.zygote()
    home.spare()
    os.kill(zygote.pid, signal.SIGSTOP)

    with pytest.raises(BrokenPipeError, match="zygote is dead"):
        ZygoteProcess(zygote, say_so).start()

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


def test_an_executor_all_of_whose_zygotes_die_says_so(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some, which are reaped."""
    monkeypatch.setattr(ZygoteServer, "_serve", lambda self: os._exit(7))

    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(Exception, match=r"no worker can be forked.*zygote is dead"),
    ):
        executor.submit(work.same, 1).result()

    assert not home.children()


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
