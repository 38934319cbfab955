"""A supervisor: who is started again, how often, and what is told of who ended."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from queue import Empty
from typing import Any, NoReturn

import pytest

from ipcmap import (
    Arena,
    BrokenError,
    BusyError,
    ClosedError,
    ExitRecord,
    Lock,
    Process,
    Ring,
    Supervisor,
)
from ipcmap.last_words import LastWords
from ipcmap.restart_budget import RestartBudget

pytestmark = pytest.mark.usefixtures("default_engine")


def everything(ring: Ring) -> list[str]:
    """Return what was said by now, in order."""
    try:
        return [record.decode() for record in ring.get_many(timeout=0)]
    except Empty:
        return []


def fail() -> NoReturn:
    """Raise, as a target does."""
    raise ValueError("no header")


def be_killed() -> NoReturn:
    """End by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


ENDS = [
    pytest.param(lambda: None, 0, id="returns"),
    pytest.param(lambda: os._exit(3), 3, id="exits"),
    pytest.param(fail, 1, id="raises"),
    pytest.param(be_killed, -signal.SIGKILL, id="is killed"),
]


def pids(supervisor: Supervisor) -> list[int | None]:
    """Return the pids of all places."""
    return [worker.pid for worker in supervisor.statistics().workers]


def kill(*victims: int | None) -> None:
    """Kill children, and wait until the kernel has them dead."""
    for pid in victims:
        assert pid
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


# Who is started again


@pytest.mark.parametrize(("end", "exitcode"), ENDS)
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_who_is_started_again_is_what_restart_says(
    restart: Any, end: Callable[[], object], exitcode: int, said: Ring
) -> None:
    """Permanent always, transient where it ended as it should not, temporary never."""

    def work() -> None:
        said.put(b"")
        if said.statistics().puts == 1:
            end()
        else:
            signal.pause()

    supervisor, ends = Supervisor(), list[int | None]()

    @supervisor.on_death
    def note(name: str, record: ExitRecord) -> None:
        ends.append(record.exitcode)

    again = restart == "permanent" or (restart == "transient" and exitcode != 0)
    with supervisor.add(work, restart=restart):
        while supervisor.attend(timeout=0.01) and said.statistics().puts < 2:
            pass
        running = supervisor.statistics().running

    assert ends[0] == exitcode
    assert running == again
    assert said.statistics().puts == 1 + again


def test_run_returns_when_all_have_ended_for_good(said: Ring) -> None:
    """Each of the places had its workers, with its arguments and its name."""

    def work(*args: object, **kwargs: object) -> None:
        said.put(f"{args} {kwargs}".encode())

    supervisor, names = Supervisor(), list[str]()
    supervisor.on_death(lambda name, record: names.append(name))
    supervisor.add(work, ["a"], {"k": 1}, count=2, restart="transient")
    supervisor.add(work, restart="temporary", name="once").run()

    assert sorted(everything(said)) == ["('a',) {'k': 1}"] * 2 + ["() {}"]
    assert sorted(names) == ["once", "work-1", "work-2"]
    assert supervisor.statistics().running == 0


def test_without_workers_it_ends_at_once() -> None:
    """There is nobody to wait for."""
    supervisor = Supervisor()
    supervisor.run()

    assert supervisor.statistics().workers == ()


def test_one_for_one_leaves_the_others_alone() -> None:
    """The pids of two of three stay."""
    with Supervisor().add(signal.pause, count=3) as supervisor:
        before = pids(supervisor)
        kill(before[1])
        supervisor.attend(timeout=0)
        after = pids(supervisor)

    assert [before[0], before[2]] == [after[0], after[2]]
    assert after[1] not in {None, before[1]}
    assert [worker.starts for worker in supervisor.statistics().workers] == [1, 2, 1]


def test_one_for_all_starts_all_again_in_their_order(said: Ring) -> None:
    """But none that is temporary; and one that had returned belongs to all."""

    def say(word: str, stay: bool = True) -> None:
        said.put(word.encode())
        if stay:
            signal.pause()

    supervisor = Supervisor(strategy="one_for_all")
    supervisor.add(say, ("a", False), restart="transient", name="a").add(say, ("b",), name="b")
    supervisor.add(say, ("c",), restart="temporary", name="c")
    ended: list[str] = []
    supervisor.on_death(lambda name, record: ended.append(name))
    with supervisor:
        while supervisor.statistics().workers[0].pid or said.statistics().puts < 3:
            supervisor.attend(timeout=0.01)
        kill(pids(supervisor)[1])
        supervisor.attend(timeout=0)
        restarted = supervisor.statistics()

    assert ended[:3] == ["a", "b", "c"]
    assert [worker.starts for worker in restarted.workers] == [2, 2, 1]
    assert restarted.restarts == 1
    assert restarted.workers[2].pid is None


def test_deaths_at_the_same_moment_are_all_seen_to() -> None:
    """Three of four are dead before the supervisor looks."""
    with Supervisor().add(signal.pause, count=4) as supervisor:
        before = pids(supervisor)
        kill(*before[:3])
        supervisor.attend(timeout=0)
        after = pids(supervisor)

    assert before[3] == after[3]
    assert not {None, *before[:3]} & set(after)


def test_with_one_for_all_deaths_at_the_same_moment_are_one_restart() -> None:
    """The others' ends are part of the stop."""
    with Supervisor(strategy="one_for_all", intensity=1).add(signal.pause, count=4) as supervisor:
        kill(*pids(supervisor)[:3])
        supervisor.attend(timeout=0)

        assert supervisor.statistics().running == 4
        assert supervisor.statistics().restarts == 1


def test_what_a_dead_worker_held_is_free_before_another_is_started() -> None:
    """The arenas are swept before the callbacks are called."""
    lock, supervisor = Lock(), Supervisor()

    def work() -> None:
        lock.acquire()
        be_killed()

    free: list[bool] = []

    @supervisor.on_death
    def look(name: str, record: ExitRecord) -> None:
        free.append(lock.acquire(timeout=0))
        lock.release()
        if len(free) == 2:
            supervisor.stop()

    supervisor.add(work).run()

    assert free == [True, True]
    lock.destroy()


@pytest.mark.usefixtures("no_pidfds")
def test_it_works_without_pidfds() -> None:
    """The sentinel is a pipe then."""
    with Supervisor().add(signal.pause, count=2) as supervisor:
        first, second = pids(supervisor)
        kill(first)
        while pids(supervisor)[0] == first:
            supervisor.attend(timeout=0.01)

        assert pids(supervisor)[1] == second


# The budget


@pytest.mark.parametrize(("end", "exitcode"), ENDS)
@pytest.mark.parametrize("intensity", [0, 2])
def test_who_ends_again_and_again_ends_the_run(
    intensity: int, end: Callable[[], object], exitcode: int
) -> None:
    """The error has the exit records of all the restarts were for, and the others are stopped."""
    supervisor = Supervisor(intensity=intensity, period=3600)
    supervisor.add(signal.pause, name="idle").add(end, name="victim")

    with pytest.raises(BrokenError, match=f"intensity={intensity}.*name='victim'") as raised:
        supervisor.run()

    assert [record.exitcode for record in raised.value.deaths] == [exitcode] * (intensity + 1)
    assert len(raised.value.__notes__) == intensity + 1
    assert (raised.value.__cause__ is not None) == (end is fail)
    assert ("restart='transient'" in str(raised.value)) == (exitcode == 0)
    idle, victim = supervisor.statistics().workers
    assert (idle.pid, idle.starts, victim.pid, victim.starts) == (None, 1, None, intensity + 1)


def test_the_cause_of_the_error_is_the_traceback_of_the_worker() -> None:
    """Which names the line that raised."""
    with pytest.raises(BrokenError) as raised:
        Supervisor(intensity=0).add(fail).run()

    assert 'raise ValueError("no header")' in str(raised.value.__cause__)


def test_restarts_that_are_long_past_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two within ten seconds may be, and a third when the first is ten seconds old."""
    now, record = 1000.0, ExitRecord(1, -9, 9)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = RestartBudget(2, 10)

    budget.spend("a", record)
    now = 1009.0
    budget.spend("a", record)
    now = 1010.0
    budget.spend("a", record)
    now = 1018.9
    with pytest.raises(BrokenError) as raised:
        budget.spend("b", record)

    assert budget.count == 3
    assert len(raised.value.deaths) == 3


# What is told


def test_workers_print_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """What there is to say is said by the parent."""
    with pytest.raises(BrokenError):
        Supervisor().add(fail).run()

    assert capfd.readouterr().err == ""


def test_a_worker_whose_traceback_has_no_room_prints_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better there than nowhere."""
    monkeypatch.setattr(LastWords, "write", lambda *_: False)
    with pytest.raises(BrokenError):
        Supervisor(intensity=0).add(fail).run()

    assert "ValueError: no header" in capfd.readouterr().err


@pytest.mark.parametrize(("restart", "level"), [("transient", "INFO"), ("temporary", "WARNING")])
def test_an_end_that_should_not_be_is_logged(
    restart: Any, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each; the traceback loudly where no error will tell it."""
    caplog.set_level(logging.INFO, "ipcmap")
    supervisor = Supervisor(intensity=1).add(fail, name="reader", restart=restart)
    if restart == "temporary":
        supervisor.run()
    else:
        with pytest.raises(BrokenError):
            supervisor.run()

    line, traceback = caplog.records[:2]
    assert line.levelname == "WARNING"
    assert "name='reader', pid=" in line.getMessage()
    assert line.getMessage().endswith("ValueError: no header")
    assert traceback.levelname == level
    assert traceback.getMessage().startswith("Traceback")


def test_an_end_as_it_should_be_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither one that returned nor one that was stopped."""
    caplog.set_level(logging.INFO, "ipcmap")
    supervisor = Supervisor().add(signal.pause).add(int, restart="transient")
    supervisor.on_death(lambda name, record: supervisor.stop())
    supervisor.run()

    assert caplog.records == []


def test_a_callback_hears_of_each_end_before_the_place_is_used_again() -> None:
    """Those that a stop ended, too."""
    supervisor, heard = Supervisor(), list[tuple[str, int | None, int]]()

    @supervisor.on_death
    def hear(name: str, record: ExitRecord) -> None:
        heard.append((name, record.exitcode, supervisor.statistics().running))

    with supervisor.add(signal.pause, count=2, name="w"):
        kill(pids(supervisor)[0])
        supervisor.attend(timeout=0)

    assert heard[0] == ("w-1", -signal.SIGKILL, 1)
    assert sorted(name for name, *_ in heard[1:]) == ["w-1", "w-2"]
    assert [exitcode for _, exitcode, _ in heard[1:]] == [-signal.SIGTERM] * 2


def test_what_a_callback_raises_comes_out_when_all_have_ended() -> None:
    """The first time it raises; it is called for the others all the same."""
    supervisor, heard = Supervisor(), list[str]()

    @supervisor.on_death
    def refuse(name: str, record: ExitRecord) -> None:
        heard.append(name)
        raise LookupError(len(heard))

    supervisor.add(be_killed, name="victim").add(signal.pause, count=2, name="other")
    with pytest.raises(LookupError, match=r"^1$"):
        supervisor.run()

    assert sorted(heard) == ["other-1", "other-2", "victim"]
    assert supervisor.statistics().running == 0


def test_statistics_say_what_was() -> None:
    """They do not change afterwards."""
    supervisor = Supervisor().add(signal.pause, name="one")
    before = supervisor.statistics()
    with supervisor:
        during = supervisor.statistics()
    after = supervisor.statistics()

    assert (before.running, during.running, after.running) == (0, 1, 0)
    assert [w.workers[0].starts for w in (before, during, after)] == [0, 1, 1]
    assert [w.workers[0].last_exit is None for w in (before, during)] == [True, True]
    last = after.workers[0].last_exit
    assert last
    assert (last.pid, last.signal) == (during.workers[0].pid, signal.SIGTERM)


# Misuse


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Supervisor(strategy="one"),  # type: ignore[arg-type]
        lambda: Supervisor(intensity=-1),
        lambda: Supervisor(period=0),
        lambda: Supervisor(period=float("nan")),
        lambda: Supervisor(stop_timeout=-1),
        lambda: Supervisor(stop_timeout=float("nan")),
        lambda: Supervisor().add(int, restart="never"),  # type: ignore[arg-type]
        lambda: Supervisor().add(int, count=0),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: Callable[[], object]) -> None:
    """The message names the argument and what was given."""
    with pytest.raises(ValueError, match="="):
        wrong()


def test_it_runs_once() -> None:
    """While it runs no worker is added; afterwards another is to be made."""
    supervisor = Supervisor().add(signal.pause)
    with pytest.raises(ClosedError, match="run"):
        supervisor.attend()
    with supervisor:
        with pytest.raises(BusyError, match="before"):
            supervisor.add(int)
        with pytest.raises(BusyError, match="already"):
            supervisor.run()
    with pytest.raises(ClosedError, match="another"):
        supervisor.run()
    with pytest.raises(ClosedError, match="run"):
        supervisor.attend()


def test_a_callback_cannot_attend() -> None:
    """It is being attended."""
    supervisor = Supervisor().add(int, restart="transient")
    supervisor.on_death(lambda name, record: supervisor.attend())
    with pytest.raises(BusyError, match="one at a time"):
        supervisor.run()


@pytest.mark.parametrize("successes", [0, 1, 3])
def test_where_no_process_can_be_forked_none_is_left(
    successes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning, and at a restart."""
    start, left = Process.start, [successes]

    def refuse(process: Process) -> None:
        if not left[0]:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left[0] -= 1
        start(process)

    monkeypatch.setattr(Process, "start", refuse)
    supervisor = Supervisor().add(signal.pause, count=2).add(be_killed)
    with pytest.raises(OSError, match="unavailable"):
        supervisor.run()

    assert supervisor.statistics().running == 0
    assert sum(worker.starts for worker in supervisor.statistics().workers) == successes


def test_nothing_shared_is_left(default_engine: Arena) -> None:
    """The flag and the last words of workers were in blocks."""
    with pytest.raises(BrokenError):
        Supervisor().add(fail).add(signal.pause).run()

    default_engine.sweep()
    assert default_engine.statistics().blocks == 0


# A storm


def test_tasks_are_all_done_though_workers_are_killed_all_the_time(
    said: Ring, chance: random.Random
) -> None:
    """Each of 300 tasks at least once, with somebody in every place at the end."""
    tasks = Ring()
    tasks.put_many(b"%d" % number for number in range(300))

    def work() -> None:
        while True:
            with tasks.lease() as task:
                said.put(bytes(task))

    supervisor, done, kills = Supervisor(intensity=1000), set[str](), 0
    with supervisor.add(work, count=4):
        while len(done) < 300 or kills < 30:
            victims = [pid for pid in pids(supervisor) if pid]
            for victim in chance.sample(victims, chance.randrange(4)):
                with contextlib.suppress(ProcessLookupError):  # it has ended, and was reaped
                    os.kill(victim, chance.choice([signal.SIGKILL, signal.SIGHUP]))
                    kills += 1
            supervisor.attend(timeout=chance.random() / 100)
            done |= set(everything(said))
        supervisor.attend(timeout=0)
        running = supervisor.statistics().running

    assert sorted(done, key=int) == [str(number) for number in range(300)]
    assert running == 4
    assert 0 < supervisor.statistics().restarts <= kills
    tasks.destroy()
