"""Run the files of tests side by side: one lane for each processor, each a process of its own.

The tests are collected once; then each lane is forked off, takes one file after the other, and
sends what it has to report to pytest, which counts and prints as ever. A file stays in one lane, in
its order, with the fixtures that it shares; those of the session are set up for each file that asks
for them. The list of files is a pipe: whoever reads a number from it has that file.

Why not pytest-xdist: a thread of its own reads the orders in each of its processes. Here nearly
every test forks. Python 3.12 and later warn of each fork beside a thread, and what is tested would
be another thing: a process with one thread is what the zygote asks for, and what signals go to.

A lane has its own watchdog and its own check for leftovers, which say for themselves what they
begin anew in it (the hook below). If it dies, by the watchdog or by what it tests, the test that
was in it has failed, and the run ends when the tests in the other lanes have ended.

One lane, and nothing of all this, is for who looks closer: ``--lanes 1``, ``-s``, a debugger.
Not told from lane to run: warnings, which are errors in this suite.
"""

from __future__ import annotations

import mmap
import os
import sys
import traceback
from collections.abc import Iterator
from itertools import groupby
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import pytest

STOP = 0  # the index of the shared word that is 1 when no lane shall begin another test
NUMBER = 2  # bytes of the number of a file


class Hooks:
    """What other plugins may want to know."""

    def pytest_lane_start(self, config: pytest.Config) -> None:
        """Begin anew, in a process that was forked from the one where tests were collected."""

    def pytest_lane_finish(self) -> None:
        """End what was begun in this lane: it exits without any more ado."""


class Lane:
    """The half in pytest of one lane."""

    def __init__(self, pid: int, reports: Connection, word: int) -> None:
        self.pid = pid
        self.reports = reports
        self.word = word  # the index of its shared word
        self.pidfd = os.pidfd_open(pid)
        self.over = False

    def close(self) -> None:
        """Close what belongs to it."""
        os.close(self.pidfd)
        self.reports.close()

    def reap(self) -> int:
        """Wait for its end and return its exit code."""
        _, status = os.waitpid(self.pid, 0)
        self.close()
        self.over = True
        return os.waitstatus_to_exitcode(status)


class Lanes:
    """The loop over all tests, in place of pytest's own."""

    def __init__(self, most: int) -> None:
        self.most = most

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run all files, unless one lane is enough, or pytest will not run any."""
        files = [list(items) for _, items in groupby(session.items, key=lambda item: item.path)]
        most = min(self.most, len(files))
        if most < 2 or session.testsfailed or session.config.option.collectonly:
            return None
        terminal = session.config.pluginmanager.getplugin("terminalreporter")
        if terminal:
            terminal.showfspath = False  # of several files at a time
        Run(session, files).run(most)
        return True


class Run:
    """All that the lanes of a run have in common."""

    def __init__(self, session: pytest.Session, files: list[list[pytest.Item]]) -> None:
        self.session = session
        self.files = files
        self.lanes: list[Lane] = []
        # The word at STOP, then one for each lane: the index of the test that is in it, from 1.
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self.todo, fill = os.pipe()
        for number in range(len(files)):
            os.write(fill, number.to_bytes(NUMBER))
        os.close(fill)

    def run(self, most: int) -> None:
        """Start the lanes, and hear what they have to say until the last has ended."""
        # All lanes put their folders into one.
        self.session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        try:
            for word in range(1, most + 1):
                self.lanes.append(self.start(word))
            while running := [lane for lane in self.lanes if not lane.over]:
                ready = wait([place for lane in running for place in (lane.reports, lane.pidfd)])
                for lane in running:
                    told = lane.reports in ready and self.hear(lane)
                    if not told and (lane.reports in ready or lane.pidfd in ready):
                        self.end(lane)
        finally:
            self.words[STOP] = 1
            for lane in self.lanes:
                if not lane.over:
                    lane.reap()
            os.close(self.todo)
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if self.session.shouldstop:
            raise self.session.Interrupted(self.session.shouldstop)

    def start(self, word: int) -> Lane:
        """Fork a lane."""
        receiver, sender = Pipe(duplex=False)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                receiver.close()
                for lane in self.lanes:  # or it would not be told that pytest has gone
                    lane.close()
                self.work(word, sender)
                code = 0
            except KeyboardInterrupt:
                pass  # which pytest has had as well
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        sender.close()
        return Lane(pid, receiver, word)

    def hear(self, lane: Lane) -> bool:
        """Pass on the reports of one test, if there are any to come."""
        config = self.session.config
        try:
            nodeid, location, reports = lane.reports.recv()
        except (EOFError, OSError):
            return False
        hook = config.hook.pytest_report_from_serializable
        self.tell(nodeid, location, [hook(config=config, data=data) for data in reports])
        return True

    def tell(
        self,
        nodeid: str,
        location: tuple[str, int | None, str],
        reports: list[pytest.TestReport],
    ) -> None:
        """Tell pytest of one test; it may have enough then."""
        hook = self.session.config.hook
        hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        if self.session.shouldfail or self.session.shouldstop:
            self.words[STOP] = 1
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)

    def end(self, lane: Lane) -> None:
        """See how a lane has ended; if not by itself, that is a failure of the test in it."""
        code = lane.reap()
        if code:
            self.session.shouldfail = f"a lane of the run has ended with exit code {code}"
            self.words[STOP] = 1
        if code and (index := self.words[lane.word]):
            item = self.session.items[index - 1]
            how = f"its process ended with exit code {code} before it had told how the test did"
            report = pytest.TestReport(item.nodeid, item.location, {}, "failed", how, "call")
            self.tell(item.nodeid, item.location, [report])

    # What follows runs in the lane.

    def work(self, word: int, sender: Connection) -> None:
        """Run files until none is left."""
        config = self.session.config
        manager = config.pluginmanager
        manager.unregister(name="terminalreporter")
        capture: Any = manager.getplugin("capturemanager")
        capture.stop_global_capturing()  # into files that all forks would share
        capture.start_global_capturing()
        capture.suspend_global_capture()
        collector = Collector(config)
        manager.register(collector)
        config.hook.pytest_lane_start(config=config)
        try:
            for index, item, following in self.taken():
                self.words[word] = index
                config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if os.getpid() != collector.pid:
                    os._exit(1)  # a child that a test forked, and that came out of the test
                sender.send((item.nodeid, item.location, collector.taken()))
                self.words[word] = 0
        finally:
            if os.getpid() == collector.pid:
                # Where all went well, nothing is set up any more.
                config.hook.pytest_sessionfinish(session=self.session, exitstatus=0)
                config.hook.pytest_lane_finish()

    def taken(self) -> Iterator[tuple[int, pytest.Item, pytest.Item | None]]:
        """Take one file after the other: each test's index from 1, the test, and the one after."""
        indices = {item: index for index, item in enumerate(self.session.items, 1)}
        while number := os.read(self.todo, NUMBER):
            items = self.files[int.from_bytes(number)]
            for item, following in zip(items, [*items[1:], None], strict=True):
                if self.words[STOP]:
                    return
                yield indices[item], item, following


class Collector:
    """Keep the reports of a test in a lane, in a form that can be sent."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.pid = os.getpid()
        self.reports: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep one."""
        hook = self.config.hook
        data = hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.append(data)

    def taken(self) -> list[dict[str, Any]]:
        """Return what there is since the last call."""
        reports, self.reports = self.reports, []
        return reports


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the number of lanes be chosen."""
    parser.addoption(
        "--lanes", type=int, help="processes that run files of tests (default: the processors)"
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make the hooks known."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Take the loop over, where several lanes are wanted."""
    option = config.option
    closely = option.capture == "no" or option.usepdb or getattr(option, "trace", False)
    lanes = option.lanes or (1 if closely else len(os.sched_getaffinity(0)))
    if lanes > 1:
        config.pluginmanager.register(Lanes(lanes), "the lanes of this run")
