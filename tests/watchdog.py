"""On a hang, show every stack of every process of the family, then end the run.

pytest-timeout decides the limits (its ``timeout`` setting and marker). This plugin answers its two
hooks, and a second process, ``watcher.py``, keeps the time, because:

- A timer thread in pytest would make every ``os.fork`` warn from Python 3.12 on.
- An alarm shows pytest's own stack, and the process that hangs is mostly another one. It also
  needs the GIL, which a test of a C core may hold for ever; faulthandler's C handler does not.

Every fork inherits that handler, the memory file it writes to, and the pipe to the watcher, by
which orphans are known. One process after the other has to dump, and the watcher prints it. The
whole family is killed in the end, pytest with it.

Not promised: a stack of a process that exec'ed, blocks the signal or closed its descriptors (the
facts in ``/proc`` are shown instead); the summary of what failed before, which dies with pytest.
While pytest runs, the watcher is a child of it: wait for children by pid, not for any.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import sys
from time import monotonic  # bound here, since a test may replace time.monotonic
from typing import Protocol

import pytest

import watcher

NAME = "the watchdog of this run"


class Settings(Protocol):
    """What is used here of pytest-timeout's settings of one test."""

    timeout: float
    func_only: bool
    disable_debugger_detection: bool | None


class Watchdog:
    """The half in pytest: start the watcher, tell it about each test."""

    def __init__(self, config: pytest.Config) -> None:
        """Start while capturing is suspended: descriptor 2 is still the real one."""
        self.config = config
        self.pid = os.getpid()  # a forked copy of pytest must not speak for it
        self.item: pytest.Item | None = None
        self.settings: Settings | None = None
        self.deadline = 0.0
        self.armed = False
        self.dumps = os.memfd_create("dumps")
        faulthandler.register(watcher.DUMP_SIGNAL, self.dumps, all_threads=True, chain=False)
        commands, self.pipe = os.pipe()
        # Isolated and without site: nothing of what is tested runs in the watcher.
        program = "import sys; sys.path.append({!r}); import watcher; watcher.watch({}, {})"
        program = program.format(os.path.dirname(watcher.__file__), self.pid, self.pipe)
        argv = [sys.executable, "-I", "-S", "-c", program]
        actions = [(os.POSIX_SPAWN_DUP2, commands, 0), (os.POSIX_SPAWN_DUP2, self.dumps, 1)]
        # A process group of its own, out of reach of Ctrl-C and of tests that signal a group.
        self.watcher = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setpgroup=0)
        os.close(commands)

    def pytest_unconfigure(self) -> None:
        """Send the watcher home; closing the pipe would not do while a forked child holds it."""
        if os.getpid() == self.pid:
            with contextlib.suppress(BrokenPipeError, ChildProcessError):
                self.send("quit")
                os.waitpid(self.watcher, 0)
            faulthandler.unregister(watcher.DUMP_SIGNAL)
            os.close(self.pipe)
            os.close(self.dumps)

    @pytest.hookimpl(optionalhook=True)
    def pytest_lane_finish(self) -> None:
        """Do the same at the end of a lane."""
        self.pytest_unconfigure()

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Settings) -> bool:
        """Start the time of a test, in place of pytest-timeout's own timers."""
        self.item, self.settings = item, settings
        self.deadline = monotonic() + settings.timeout
        self.arm()
        return True

    def pytest_timeout_cancel_timer(self) -> bool:
        """End the time of a test, in place of pytest-timeout's own timers."""
        self.disarm()
        return True

    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector) -> None:
        """Arm again: pytest-timeout disarms at each failure, but the teardown may hang as well."""
        debugging = self.config.getoption("usepdb", default=False)
        if node is self.item and self.settings and not self.settings.func_only and not debugging:
            self.arm()

    def pytest_enter_pdb(self) -> None:
        """Give a person all the time they want."""
        if self.settings and not self.settings.disable_debugger_detection:
            self.disarm()

    def arm(self) -> None:
        """Set the limit, unless a debugger is at work and shall not be disturbed."""
        assert self.item is not None
        assert self.settings is not None
        timeout_plugin = self.config.pluginmanager.getplugin("timeout")
        assert timeout_plugin is not None, "pytest-timeout has just called"
        if self.settings.disable_debugger_detection or not timeout_plugin.is_debugging():
            self.armed = True
            self.send([self.item.nodeid, self.settings.timeout, self.deadline])

    def disarm(self) -> None:
        """Lift the limit; if it has passed, stay here until killed.

        The dump signal may have ended the hang (it interrupts a system call), and pytest could
        then pass the test and exit with 0 before the watcher has come round to killing it.
        """
        if self.armed and os.getpid() == self.pid:
            if monotonic() >= self.deadline:
                poll = select.poll()
                poll.register(self.pipe, 0)
                poll.poll()  # returns only if the watcher is gone: then the next line raises
            self.armed = False
            self.send(None)

    def send(self, message: object) -> None:
        """Write one line to the watcher."""
        if os.getpid() == self.pid:
            os.write(self.pipe, json.dumps(message).encode() + b"\n")


def pytest_configure(config: pytest.Config) -> None:
    """Start watching."""
    config.pluginmanager.register(Watchdog(config), NAME)


@pytest.hookimpl(optionalhook=True)
def pytest_lane_start(config: pytest.Config) -> None:
    """Start watching the process of a lane: it has tests of its own, and a family."""
    of_the_run = config.pluginmanager.unregister(name=NAME)
    assert isinstance(of_the_run, Watchdog)
    os.close(of_the_run.pipe)
    os.close(of_the_run.dumps)
    pytest_configure(config)
