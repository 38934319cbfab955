"""After each test, see that it left nothing: no process, descriptor, thread or /dev/shm name.

What is there before the first fixture is set up is compared with what is there after the last, in
the innermost wrappers of these two hooks: around all fixtures, within pytest's capturing. What a
fixture of wider scope (class, module, session) opens in its set-up is no leftover; what it opens
later is one, so start what lives as long as the run (multiprocessing's resource tracker) there.

A leftover is an error in the teardown of the test. If the test has raised already, that is what to
read, and its traceback keeps its variables alive: what it left does not count again, and is shown
beside it (unless set-up failed: pytest does not show teardown then). Either way the processes are
killed and reaped, children of children unmentioned; threads, descriptors and names are left alone,
since somebody may still use them; and the next test starts from what is there then.

This costs each test less than a millisecond. To look for orphans, every process of the machine has
to be read, which takes several; so first it is asked whether there can be any (`has_heirs`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Generator
from glob import glob
from time import monotonic  # bound here, since a test may replace time.monotonic

import pytest

from processes import Process, children, facts, family, read, target

NAME = "the leftovers of each test"
GRACE = 1.0  # seconds for what is about to go: processes that exit
GRACE_OF_NAMES = 20.0  # seconds for shm names, which may be another lane's or another program's
SHM = "/dev/shm"
Wrapper = Generator[None, object, object]
Inventory = dict[tuple[str, object], str]  # by kind and identity: one line of facts


class Leftovers:
    """Compare what is there before and after each test."""

    def __init__(self) -> None:
        """Open the pipe by which orphans are known, before anything forks."""
        self.pid = os.getpid()  # a forked copy of pytest has nothing to check
        self.item: pytest.Item | None = None
        self.raised = False
        self.before: Inventory = {}
        self.read_end, self.fd = os.pipe()
        self.pipe = target(self.pid, self.fd)
        self.null = os.open(os.devnull, os.O_RDONLY)

    def pytest_collection_finish(self) -> None:
        """Set what is there for good aside, or each collection of garbage would take 20 ms."""
        if "TSAN_OPTIONS" in os.environ:
            # That sanitizer starts a thread of its own beside the first other one.
            thread = threading.Thread(target=bool)
            thread.start()
            thread.join()
        gc.collect()
        gc.freeze()

    def pytest_unconfigure(self) -> None:
        """Put all back in its place."""
        gc.unfreeze()
        self.close()

    def close(self) -> None:
        """Close what orphans are known by."""
        for fd in (self.read_end, self.fd, self.null):
            os.close(fd)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapper:
        """Take stock before the first fixture."""
        self.item, self.raised, self.before = item, False, self.inventory()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Wrapper:
        """Count what a fixture of wider scope opens as if it had been there before the test."""
        if fixturedef.scope == "function":
            return (yield)
        known = self.inventory()
        result = yield
        self.before |= added(known, self.inventory())
        return result

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """Note whether the test has raised."""
        skipped = pytest.skip.Exception
        self.raised |= call.excinfo is not None and not call.excinfo.errisinstance(skipped)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Wrapper:
        """Check after the last fixture."""
        try:
            return (yield)
        except BaseException:
            self.raised = True
            raise
        finally:
            mine = (item, os.getpid()) == (self.item, self.pid)
            text = "\n".join(self.check()) if mine else ""
            if text and self.raised:
                item.add_report_section("teardown", "leftovers", text)
            elif text:
                pytest.fail(f"test is over, but not all that it started:\n{text}", pytrace=False)

    def check(self) -> list[str]:
        """Return a line for each leftover; end those that are processes."""
        garbage = collect_garbage()
        begun = monotonic()
        while left := added(self.before, self.inventory()):
            only_names = {kind for kind, _ in left} == {"name"}
            if monotonic() > begun + (GRACE_OF_NAMES if only_names else GRACE):
                break
            time.sleep(0.01)
        # A child's children become orphans when it dies, and are found in the next round.
        while new := [p for p in self.relatives() if ("process", p.pid) not in self.before]:
            for process in new:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(process.pid, signal.SIGKILL)
                    if process.ppid == self.pid:
                        os.waitpid(process.pid, 0)
            time.sleep(0.01)
        return garbage + list(left.values())

    def relatives(self) -> list[Process]:
        """Return our children, zombies too, and our orphans."""
        if not self.has_heirs() and (found := children(self.pid)) is not None:
            return found
        members = family(self.pid, self.fd, self.pipe)[1:]
        return [p for p in members if p.ppid not in {member.pid for member in members}]

    def has_heirs(self) -> bool:
        """Tell whether anybody has our end of the pipe besides us: all that we forked, mostly."""
        os.dup2(self.null, self.fd, inheritable=False)  # the number is never free meanwhile
        poll = select.poll()
        poll.register(self.read_end, 0)
        nobody_writes = poll.poll(0)
        again = os.open(f"/proc/self/fd/{self.read_end}", os.O_WRONLY)
        os.dup2(again, self.fd, inheritable=False)
        os.close(again)
        return not nobody_writes

    def inventory(self) -> Inventory:
        """Return all there is now that a test can leave behind."""
        found: Inventory = {("process", p.pid): f"process: {facts(p)}" for p in self.relatives()}
        for fd in map(int, os.listdir("/proc/self/fd")):
            if file := target(self.pid, fd):  # not for the listing's own, closed by now
                found["descriptor", (fd, file)] = f"descriptor: {fd} -> {file}"
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        for tid in map(int, os.listdir("/proc/self/task")):
            name = names.get(tid) or read(f"/proc/self/task/{tid}/comm").strip() + ", not Python's"
            found["thread", tid] = f"thread: {name} (tid {tid})"
        return found | {("name", p): f"name: {p}" for p in glob(f"{SHM}/*", include_hidden=True)}


def added(before: Inventory, after: Inventory) -> Inventory:
    """Return what is in the second only."""
    return {key: text for key, text in after.items() if key not in before}


def collect_garbage() -> list[str]:
    """Collect cycles; return what finalizers raised, which pytest would blame on the next test."""
    said: list[str] = []
    previous = sys.unraisablehook
    sys.unraisablehook = lambda u: said.append(f"garbage: {u.exc_value!r} in {u.object!r}")
    gc.collect()
    sys.unraisablehook = previous
    return said


def pytest_configure(config: pytest.Config) -> None:
    """Start looking."""
    config.pluginmanager.register(Leftovers(), NAME)


@pytest.hookimpl(optionalhook=True)
def pytest_lane_start(config: pytest.Config) -> None:
    """Start looking at what is left in the process of a lane."""
    of_the_run = config.pluginmanager.unregister(name=NAME)
    assert isinstance(of_the_run, Leftovers)
    of_the_run.close()
    pytest_configure(config)
