"""How a supervisor stops: who asks for it, in which stages, and that nothing is left."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from children import Fork
from ipcmap import (
    ClosedError,
    ExitRecord,
    Process,
    Ring,
    Supervisor,
    stopping,
)
from ipcmap.stop_flag import StopFlag

pytestmark = pytest.mark.usefixtures("default_engine")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the handlers of the two signals back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def say_and_wait(said: Ring) -> None:
    """Be a worker that never asks whether it is to stop."""
    said.put(b"ready")
    while True:
        signal.pause()


def say_and_ask(said: Ring) -> None:
    """Be a worker that asks all the time."""
    assert not stopping()
    said.put(b"ready")
    while not stopping(timeout=3600):
        pass
    said.put(b"over")


def ignore_sigterm(said: Ring) -> None:
    """Be a worker that SIGTERM does not end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_and_wait(said)


def ask_once(said: Ring) -> None:
    """Be a worker that looks at the flag too seldom."""
    assert not stopping()
    say_and_wait(said)


def stop_itself(said: Ring) -> None:
    """Be a worker that is stopped, as by Ctrl-Z."""
    said.put(b"ready")
    os.kill(os.getpid(), signal.SIGSTOP)


def started(said: Ring, count: int = 1) -> None:
    """Wait until so many workers have said that they are ready."""
    for _ in range(count):
        assert said.get() == b"ready"


def last_exits(supervisor: Supervisor) -> list[int | None]:
    """Return the exit code of the last worker of each place."""
    exits = [worker.last_exit for worker in supervisor.statistics().workers]
    return [record.exitcode if record else None for record in exits]


# Stages


def test_a_worker_that_asks_ends_by_itself(said: Ring) -> None:
    """It returns from its target, and what comes after its loop is done."""
    with Supervisor(stop_timeout=None).add(say_and_ask, (said,), count=3) as supervisor:
        started(said, 3)

    assert last_exits(supervisor) == [0, 0, 0]
    assert said.get_many() == [b"over"] * 3


def test_a_worker_that_never_asked_is_ended_at_once(said: Ring) -> None:
    """By SIGTERM, though there is no limit to the time it has."""
    with Supervisor(stop_timeout=None).add(say_and_wait, (said,)) as supervisor:
        started(said)

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_a_worker_that_asked_and_does_not_end_gets_sigterm_at_half_time(said: Ring) -> None:
    """It was given its time."""
    with Supervisor(stop_timeout=0.2).add(ask_once, (said,)) as supervisor:
        started(said)

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_a_worker_that_ignores_sigterm_is_killed_in_the_end(said: Ring) -> None:
    """The others are not."""
    supervisor = Supervisor(stop_timeout=0.2).add(ignore_sigterm, (said,))
    with supervisor.add(say_and_wait, (said,)):
        started(said, 2)

    assert last_exits(supervisor) == [-signal.SIGKILL, -signal.SIGTERM]


def test_without_time_all_are_killed(said: Ring) -> None:
    """Zero seconds is no time."""
    supervisor = Supervisor(stop_timeout=0).add(ignore_sigterm, (said,))
    with supervisor.add(ask_once, (said,)):
        started(said, 2)

    assert last_exits(supervisor)[0] == -signal.SIGKILL
    assert last_exits(supervisor)[1] in {-signal.SIGKILL, -signal.SIGTERM}


def test_a_stopped_worker_is_continued_to_end(said: Ring) -> None:
    """SIGTERM alone would wait with it until somebody continues it."""
    with Supervisor(stop_timeout=None).add(stop_itself, (said,)) as supervisor:
        started(said)
        pid = supervisor.statistics().workers[0].pid
        assert pid
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_a_worker_gets_sigterm_though_the_parent_handles_or_blocks_it(
    said: Ring, handlers: None
) -> None:
    """What a child inherits is not what its parent's thread is about."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with Supervisor(stop_timeout=None).add(say_and_wait, (said,)) as supervisor:
            started(said)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_workers_that_are_all_started_again_are_not_asked_to_stop(said: Ring) -> None:
    """The flag is cleared once all have ended."""

    def fail_once() -> None:
        if said.statistics().puts < 2:
            said.put(b"ready")
            started(said, 2)
            os._exit(1)
        signal.pause()

    supervisor = Supervisor(strategy="one_for_all", stop_timeout=None)
    supervisor.add(say_and_ask, (said,)).add(fail_once)
    with supervisor:
        while supervisor.statistics().restarts < 1 or said.statistics().puts < 3:
            supervisor.attend(timeout=0.01)
        flags = [said.get(), said.get()]
        assert supervisor.statistics().running == 2

    assert flags == [b"over", b"ready"]


def test_a_death_during_the_stop_of_all_is_a_part_of_it(said: Ring) -> None:
    """It is no second restart, and all begin anew."""

    def die_when_stopped() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        say_and_wait(said)

    supervisor = Supervisor(strategy="one_for_all", intensity=1, stop_timeout=None)
    supervisor.add(die_when_stopped, count=2).add(say_and_wait, (said,))
    with supervisor:
        started(said, 3)
        pid = supervisor.statistics().workers[2].pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        while not supervisor.statistics().restarts:
            supervisor.attend(timeout=0.01)
        started(said, 3)
        starts = [worker.starts for worker in supervisor.statistics().workers]
        ends = last_exits(supervisor)

    assert starts == [2, 2, 2]
    assert ends == [9, 9, -signal.SIGKILL]


# Asking


def test_out_of_a_supervisor_nobody_asks(fork: Fork) -> None:
    """The wait is a sleep then."""
    assert not stopping()
    assert not stopping(timeout=0.001)
    assert not stopping(timeout=-1)
    with pytest.raises(ValueError, match="nan"):
        stopping(timeout=float("nan"))


def test_a_child_of_a_worker_may_ask_too(said: Ring) -> None:
    """And does not speak for the worker."""

    def fork_one() -> None:
        child = Process(target=say_and_ask, args=(said,))
        child.start()
        child.join()

    with Supervisor(stop_timeout=None).add(fork_one) as supervisor:
        started(said)

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_whoever_outlives_the_supervisor_is_asked_to_stop() -> None:
    """The flag is gone with it."""
    flag = StopFlag(1)
    flag.take(0)
    try:
        assert not stopping()
        flag._event.destroy()
        assert stopping()
    finally:
        StopFlag._mine = None


# Who stops it


def test_a_callback_stops_it(said: Ring) -> None:
    """Nobody is started again after that."""
    supervisor = Supervisor().add(say_and_wait, (said,), count=2).add(os._exit, (1,), name="third")
    supervisor.on_death(lambda name, record: supervisor.stop())
    supervisor.run()

    assert [worker.starts for worker in supervisor.statistics().workers] == [1, 1, 1]


def test_another_thread_stops_it(said: Ring) -> None:
    """More than once is once."""
    supervisor = Supervisor().add(say_and_wait, (said,))

    def stop() -> None:
        started(said)
        supervisor.stop()
        supervisor.stop()

    with supervisor:
        thread = threading.Thread(target=stop)
        thread.start()
        assert not supervisor.attend()
    thread.join()

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_a_worker_stops_it(said: Ring) -> None:
    """Though what it has is a copy."""
    supervisor = Supervisor()

    def stop() -> None:
        supervisor.stop()
        signal.pause()

    supervisor.add(stop).add(say_and_wait, (said,)).run()

    assert last_exits(supervisor) == [-signal.SIGTERM] * 2


def test_a_stop_before_the_beginning_is_not_forgotten(said: Ring) -> None:
    """The thread that runs it may have been slower."""
    supervisor = Supervisor().add(say_and_wait, (said,))
    supervisor.stop()
    supervisor.run()
    supervisor.stop()

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_a_handler_stops_it(said: Ring, handlers: None) -> None:
    """Of any signal."""
    supervisor = Supervisor()
    before = signal.signal(signal.SIGUSR1, lambda *_: supervisor.stop())
    try:
        supervisor.add(os.kill, (os.getpid(), signal.SIGUSR1), restart="temporary")
        supervisor.add(say_and_wait, (said,)).run()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert last_exits(supervisor)[1] == -signal.SIGTERM


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_it_runs_in_another_thread(said: Ring) -> None:
    """Without signal handlers, which only the first thread may set."""
    supervisor = Supervisor(stop_timeout=None).add(say_and_wait, (said,), count=2)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    started(said, 2)
    supervisor.stop()
    thread.join()

    assert last_exits(supervisor) == [-signal.SIGTERM] * 2


@pytest.mark.parametrize("previous", [signal.SIG_DFL, lambda *_: None])
def test_sigterm_stops_it_and_the_handler_is_put_back(
    previous: Any, said: Ring, handlers: None
) -> None:
    """Workers that ask end by themselves."""
    signal.signal(signal.SIGTERM, previous)
    parent, supervisor = os.getpid(), Supervisor(stop_timeout=None)

    def end_the_parent() -> None:
        started(said, 2)
        os.kill(parent, signal.SIGTERM)

    supervisor.add(say_and_ask, (said,), count=2).add(end_the_parent, restart="temporary")
    supervisor.run()

    assert last_exits(supervisor)[:2] == [0, 0]
    assert signal.getsignal(signal.SIGTERM) is previous


def test_ctrl_c_stops_it_and_is_raised_afterwards(said: Ring, handlers: None) -> None:
    """When run() is left, nobody is left."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent, supervisor = os.getpid(), Supervisor(stop_timeout=None)

    def interrupt() -> None:
        started(said)
        os.kill(parent, signal.SIGINT)

    supervisor.add(say_and_ask, (said,)).add(interrupt, restart="temporary")
    with pytest.raises(KeyboardInterrupt):
        supervisor.run()

    assert last_exits(supervisor)[0] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_ends_the_workers_at_once(said: Ring, handlers: None) -> None:
    """Whatever time they would have had."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent, supervisor = os.getpid(), Supervisor(stop_timeout=None)

    def insist() -> None:
        stopping()  # so that it has time to insist
        started(said)
        os.kill(parent, signal.SIGTERM)
        stopping(timeout=None)
        os.kill(parent, signal.SIGTERM)

    supervisor.add(ask_once, (said,)).add(insist, restart="temporary").run()

    assert last_exits(supervisor)[0] == -signal.SIGKILL


def test_a_signal_that_comes_just_before_the_sleep_is_handled(
    said: Ring, handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler cannot run until poll(2) returns, which nothing else makes it do."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    supervisor = Supervisor(stop_timeout=None).add(say_and_wait, (said,))

    class Poll:
        """A poll during which a signal has come that is seen when it returns."""

        def __init__(self) -> None:
            self.real = poll()
            self.register = self.real.register

        def poll(self, milliseconds: int) -> list[tuple[int, int]]:
            ready = self.real.poll(milliseconds)
            if not signals:
                signals.append(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
            return ready

    poll, signals = select.poll, list[int]()
    monkeypatch.setattr(select, "poll", Poll)
    supervisor.run()

    assert last_exits(supervisor) == [-signal.SIGTERM]
    assert signals == [signal.SIGTERM]


def test_signals_that_are_ignored_or_handled_otherwise_stay_so(handlers: None) -> None:
    """SIG_IGN is somebody's wish, and so is a handler of SIGINT."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seen: list[object] = []
    supervisor = Supervisor().add(int, restart="temporary")

    @supervisor.on_death
    def look(name: str, record: ExitRecord) -> None:
        seen.extend([signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)])

    supervisor.run()

    assert seen == [signal.SIG_IGN, signal.SIG_IGN]


def test_an_exception_of_a_handler_comes_out_when_all_have_ended(
    said: Ring, handlers: None
) -> None:
    """As that of a SIGINT handler of one's own."""

    def refuse(number: int, frame: FrameType | None) -> None:
        raise LookupError

    signal.signal(signal.SIGINT, refuse)
    supervisor = Supervisor().add(say_and_wait, (said,))
    supervisor.add(os.kill, (os.getpid(), signal.SIGINT), restart="temporary")
    with pytest.raises(LookupError):
        supervisor.run()

    assert supervisor.statistics().running == 0


def test_an_exception_in_the_block_stops_it(said: Ring) -> None:
    """And comes out of it."""

    def leave() -> None:
        started(said)
        raise LookupError

    supervisor = Supervisor().add(say_and_wait, (said,))
    with pytest.raises(LookupError), supervisor:
        leave()

    assert last_exits(supervisor) == [-signal.SIGTERM]


# Families


def test_a_process_forked_meanwhile_leaves_the_workers_alone(said: Ring, fork: Fork) -> None:
    """It may leave the block, and nothing ends but its copy."""
    supervisor = Supervisor().add(say_and_wait, (said,))

    def leave() -> None:
        with pytest.raises(ClosedError, match="this process"):
            supervisor.attend()
        supervisor.__exit__(None, None, None)

    with supervisor:
        started(said)
        assert fork(leave).wait() == 0
        assert supervisor.attend(timeout=0)
        assert supervisor.statistics().workers[0].starts == 1

    assert last_exits(supervisor) == [-signal.SIGTERM]


def test_a_process_forked_meanwhile_has_the_handlers_from_before(
    said: Ring, handlers: None
) -> None:
    """SIGTERM ends it, and does not stop the supervisor it was forked from."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    supervisor, statuses = Supervisor(), list[int]()

    @supervisor.on_death
    def fork_one(name: str, record: ExitRecord) -> None:
        if name == "starter":
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            assert not supervisor._stop_asked
            supervisor.stop()

    supervisor.add(int, name="starter", restart="temporary").add(say_and_wait, (said,)).run()

    assert statuses == [-signal.SIGTERM]


def test_a_supervisor_within_a_worker_stops_with_it(said: Ring, handlers: None) -> None:
    """Each of its workers ends as it wishes; none is left."""

    def supervise() -> None:
        inner = Supervisor(stop_timeout=None)
        inner.add(say_and_ask, (said,), count=2).add(say_and_wait, (said,)).run()
        said.put(b"inner")

    with Supervisor(stop_timeout=None).add(supervise) as supervisor:
        started(said, 3)

    assert last_exits(supervisor) == [0]
    assert said.get_many() == [b"over", b"over", b"inner"]


@pytest.mark.parametrize("within", [False, True], ids=["workers", "workers of workers"])
def test_workers_die_with_a_killed_supervisor(within: bool, said: Ring, fork: Fork) -> None:
    """The pipe ends when the last of them is dead."""
    hears, speaks = os.pipe()

    def supervise(target: Callable[..., object], *args: Any) -> None:
        Supervisor().add(target, args, count=2).run()

    work = (supervise, say_and_wait, said) if within else (say_and_wait, said)
    parent = fork(supervise, *work)
    os.close(speaks)
    started(said, 4 if within else 2)
    parent.kill()

    assert os.read(hears, 1) == b""
    os.close(hears)


def test_ctrl_c_in_a_terminal_ends_it_with_one_traceback() -> None:
    """The one of the program; the exit code is that of an interrupted one."""
    program = """
        import signal, time
        from ipcmap import Supervisor, stopping
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def polite():
            while not stopping():
                time.sleep(0.001)
        def sleepy():
            print("ready", flush=True)
            time.sleep(1000)
        Supervisor(stop_timeout=None).add(sleepy, count=2).add(polite, count=2).run()
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(program)])
    screen = b""
    while screen.count(b"ready") < 2:
        screen += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    try:
        while chunk := os.read(terminal, 1024):
            screen += chunk
    except OSError:  # EIO: the last of them is gone
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT
    assert screen.count(b"Traceback") == 1
    assert b"KeyboardInterrupt" in screen.splitlines()[-1]  # perhaps in colour


def test_a_worker_that_fails_at_the_stop_is_told_of() -> None:
    """Its traceback is the only one on stderr."""
    program = """
        import os
        from ipcmap import Event, Supervisor, stopping
        begun = Event()
        def fail():
            while not stopping(): begun.set()
            raise ValueError("too late")
        with Supervisor().add(fail):
            begun.wait()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.count("Traceback") == 1
    assert re.match(r"worker ended: name='fail', pid=\d+, ValueError: too late\n", ended.stderr)
