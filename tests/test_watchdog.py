"""The watchdog, seen from outside: each test runs a pytest of its own, which hangs or does not.

A limit here covers the test function alone (``func_only``), and the family is there before that
starts: so limits are short, and still nothing depends on how fast processes start.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import processes

HELPERS = """
import ctypes, os, signal, subprocess, time
from pathlib import Path
import pytest

limit = pytest.mark.timeout(0.3, func_only=True)

def fork(target, *args):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)    # should the plugin fail, nothing stays for ever
        try:
            target(*args)
        finally:
            os._exit(0)
    return pid

def hang_in_pytest():
    while True:
        signal.pause()

class Place:
    '''Where the processes of a test say that they are where they shall be.'''

    def __init__(self):
        self.read_end, self.write_end = os.pipe()

    def arrive(self):
        os.write(self.write_end, f"{os.getpid():8}".encode())

    def wait(self):
        return int(os.read(self.read_end, 8))

@pytest.fixture
def place():
    return Place()
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a test suite under the watchdog, with a limit that no test reaches."""
    pytester.makeconftest('pytest_plugins = ["watchdog"]')
    pytester.makeini(f"""
        [pytest]
        pythonpath = {Path(__file__).parent}
        addopts = --import-mode=importlib --strict-markers --strict-config
        filterwarnings = error
        timeout = 600
    """)
    return pytester


def run(suite: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run a test module in which all helpers are at hand."""
    suite.makepyfile(HELPERS + source)
    return suite.runpytest_subprocess()


def living(pid: int) -> bool:
    """Tell whether a process has not ended."""
    return any(p.pid == pid and p.state not in "ZX" for p in processes.processes())


def test_a_hang_shows_the_stacks_of_pytest_its_child_and_its_grandchild(
    suite: pytest.Pytester,
) -> None:
    """One look at the output tells who waits where, and the marker's limit beats the ini's."""
    result = run(
        suite,
        """
def hang_in_grandchild(place):
    place.arrive()
    signal.pause()

def hang_in_child(place):
    os.waitpid(fork(hang_in_grandchild, place), 0)

@pytest.fixture
def child(place):
    fork(hang_in_child, place)
    place.wait()

@limit
def test_it(child):
    hang_in_pytest()
""",
    )

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines(
        [
            "+++ watchdog: *.py::test_it is over its limit of 0.3 s: the stacks of 3 processes",
            "--- pid *pytest*",
            "*in hang_in_pytest",
            "--- pid *",
            "*in hang_in_child",
            "--- pid *",
            "*in hang_in_grandchild",
            "+++ watchdog: *.py::test_it is over its limit of 0.3 s: the run is killed",
        ]
    )


def test_an_orphan_is_shown_and_killed(suite: pytest.Pytester) -> None:
    """A process whose parent has died still belongs to the family."""
    result = run(
        suite,
        """
def hang_in_orphan(place):
    place.arrive()
    signal.pause()

@pytest.fixture
def orphan(place):
    child = fork(fork, hang_in_orphan, place)
    os.waitpid(child, 0)
    Path("orphan").write_text(str(place.wait()))

@limit
def test_it(orphan):
    hang_in_pytest()
""",
    )
    orphan = int((suite.path / "orphan").read_text())

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines([f"--- pid {orphan}, *", "*in hang_in_orphan"])
    assert not living(orphan)


def test_a_stopped_child_is_woken_for_its_dump(suite: pytest.Pytester) -> None:
    """SIGSTOP keeps a process from running its handler; that it was stopped is said."""
    result = run(
        suite,
        """
def stop_in_child():
    os.kill(os.getpid(), signal.SIGSTOP)
    signal.pause()

@pytest.fixture
def child():
    os.waitpid(fork(stop_in_child), os.WUNTRACED)

@limit
def test_it(child):
    hang_in_pytest()
""",
    )

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines(["--- pid *, state T (stopped), *", "*in stop_in_child"])


def test_a_hang_in_c_that_holds_the_gil_is_shown(suite: pytest.Pytester) -> None:
    """No Python code can run there, and the signal that dumps it ends this very hang."""
    result = run(
        suite,
        """
@limit
def test_it():
    ctypes.PyDLL(None).pause()
""",
    )

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines(["--- pid *", "*in test_it"])


def test_a_test_that_ends_after_its_limit_ends_the_run_as_well(suite: pytest.Pytester) -> None:
    """Pytest never overtakes a watcher which has yet to kill it, and so never ends with 0."""
    result = run(
        suite,
        """
def wake(watcher):
    time.sleep(0.5)
    os.kill(watcher, signal.SIGCONT)

@limit
def test_it(pytestconfig):
    watchdog = pytestconfig.pluginmanager.getplugin("the watchdog of this run")
    os.kill(watchdog.watcher, signal.SIGSTOP)
    fork(wake, watchdog.watcher)
    time.sleep(0.31)
""",
    )

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines(["+++ watchdog: *.py::test_it is over its limit of 0.3 s: *"])


def test_a_process_that_execed_is_named_and_killed(suite: pytest.Pytester) -> None:
    """It has no handler and no stack to show, but its command line says much."""
    result = run(
        suite,
        """
@pytest.fixture
def program():
    program = subprocess.Popen(["sleep", "100"])
    Path("program").write_text(str(program.pid))
    return program

@limit
def test_it(program):
    hang_in_pytest()
""",
    )
    program = int((suite.path / "program").read_text())

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines([f"--- pid {program}, *: sleep 100", "(no stack: *"])
    assert not living(program)


def test_a_supervisor_cannot_replace_the_killed(suite: pytest.Pytester) -> None:
    """Pytest may be the one who forks anew whenever a child dies."""
    result = run(
        suite,
        """
def hang_in_child():
    signal.pause()

@limit
def test_it():
    while True:
        child = fork(hang_in_child)
        with open("children", "a") as file:
            print(child, file=file)
        os.waitpid(child, 0)
""",
    )
    children = [int(line) for line in (suite.path / "children").read_text().split()]

    assert result.ret == -signal.SIGKILL
    assert [child for child in children if living(child)] == []


def test_a_teardown_that_hangs_after_a_failure_is_shown(suite: pytest.Pytester) -> None:
    """pytest-timeout lifts its limit at a failure, just when fixtures have most to clear up."""
    result = run(
        suite,
        """
@pytest.fixture
def resource():
    yield
    hang_in_pytest()

@pytest.mark.timeout(1)
def test_it(resource):
    assert False
""",
    )

    assert result.ret == -signal.SIGKILL
    result.stderr.fnmatch_lines(["--- pid *", "*in hang_in_pytest"])


def test_a_test_within_its_limit_is_left_alone(suite: pytest.Pytester) -> None:
    """The limit ends with its test, with a failure, and when a debugger is entered."""
    result = run(
        suite,
        """
@pytest.mark.timeout(0.5)
def test_passes():
    pass

@pytest.mark.timeout(0.5)
def test_fails():
    assert False

@pytest.mark.timeout(0)
def test_without_limit_after_one_with():
    time.sleep(0.7)

@limit
def test_in_debugger(pytestconfig):
    pytestconfig.hook.pytest_enter_pdb(config=pytestconfig, pdb=None)
    time.sleep(0.5)
""",
    )

    result.assert_outcomes(passed=3, failed=1)
    result.stderr.no_fnmatch_line("*watchdog*")


def test_the_watcher_goes_when_pytest_is_killed(suite: pytest.Pytester) -> None:
    """Not even a forked child that holds the pipe open keeps it."""
    suite.makepyfile(
        HELPERS
        + """
def hang_in_child(place):
    place.arrive()
    signal.pause()

def test_it(place, pytestconfig):
    watchdog = pytestconfig.pluginmanager.getplugin("the watchdog of this run")
    fork(hang_in_child, place)
    print("\\npids", place.wait(), watchdog.watcher, flush=True)
    hang_in_pytest()
"""
    )
    with suite.popen([sys.executable, "-m", "pytest", "-s"], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        line = next(line.split() for line in run.stdout if line.startswith(b"pids"))
        child, watcher = (os.pidfd_open(int(pid)) for pid in line[1:])

        run.kill()
        select.select([watcher], [], [])  # readable when it has ended; never, without that

        signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
        os.close(watcher)


def test_pytest_keeps_to_one_thread() -> None:
    """With another one, each fork of this suite would warn."""
    assert [str(os.getpid())] == os.listdir("/proc/self/task")


@pytest.fixture
def children() -> Iterator[tuple[int, int, int]]:
    """Return two idle children, and the descriptor of a pipe which the first and we hold."""
    read_end, write_end = os.pipe()
    pids = [os.fork()]
    if 0 not in pids:
        pids += [os.fork()]
    if 0 in pids:
        try:
            Path("/proc/self/comm").write_text(") S 1 ((x) Z")
            os.closerange(read_end if len(pids) > 1 else write_end, write_end + 1)
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_end)
    os.read(read_end, 1)  # ends when both have done so
    yield pids[0], pids[1], read_end
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(read_end)


def test_a_process_with_a_malicious_name_is_found(children: tuple[int, int, int]) -> None:
    """The name is free text in the middle of what the kernel says of a process."""
    first, second, _ = children

    found = {process.pid: process.ppid for process in processes.processes()}

    assert [os.getpid()] * 2 == [found[first], found[second]]


def test_a_family_has_no_strangers(children: tuple[int, int, int]) -> None:
    """Whom it names may be killed: not an elder, nor who shares no more than a file, or nothing."""
    first, _, pipe = children
    claims = {10**6: "", 0: processes.target(first, 0), pipe: processes.target(first, pipe)}

    found = [processes.family(first, fd, link) for fd, link in claims.items()]

    assert [[first]] * 3 == [[process.pid for process in members] for members in found]
