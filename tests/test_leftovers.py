"""The check for leftovers, seen from outside: each test runs a pytest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

HELPERS = """
import os, signal, socket, threading, time
import leftovers, pytest

def fork(target, *args):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)    # should the plugin fail, nothing stays for ever
        try:
            target(*args)
        finally:
            os._exit(0)
    return pid

def has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
"""

# What a test does, and how the report has it.
LEFT = {
    "child": ("fork(signal.pause)", "process: pid *"),
    "zombie": (
        "os.waitid(os.P_PID, fork(os.getpid), os.WEXITED | os.WNOWAIT)",
        "process: pid *, state Z (zombie)*",
    ),
    "orphan": ("os.waitpid(fork(fork, signal.pause), 0)", "process: pid *"),
    "descriptor": ("os.open('/dev/zero', os.O_RDONLY)", "descriptor: * -> /dev/zero"),
    "replaced descriptor": ("os.dup2(os.open('/dev/zero', 0), opened)", "descriptor: * -> /dev/z*"),
    "thread": (
        "threading.Thread(target=threading.Event().wait, name='spinner', daemon=True).start()",
        "thread: spinner (tid *)",
    ),
    "name": ("open('shm/abandoned', 'x').close()", "name: shm/abandoned"),
    "garbage": (
        "cycle = [socket.socket()]; cycle.append(cycle)",
        "garbage: ResourceWarning*unclosed <socket*",
    ),
}


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a test suite under the check: without much patience, nor others' names in its way."""
    pytester.mkdir("shm")
    pytester.makeconftest("""
        pytest_plugins = ["leftovers"]

        def pytest_configure():
            import leftovers
            leftovers.GRACE = leftovers.GRACE_OF_NAMES = 0.05
            leftovers.SHM = "shm"
    """)
    pytester.makeini(f"""
        [pytest]
        pythonpath = {Path(__file__).parent}
        addopts = --import-mode=importlib --strict-markers --strict-config
        filterwarnings = error
    """)
    return pytester


def run(suite: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run a test module in which all helpers are at hand."""
    suite.makepyfile(HELPERS + source)
    return suite.runpytest_subprocess()


@pytest.mark.parametrize(("action", "line"), LEFT.values(), ids=LEFT)
def test_what_a_test_leaves_is_an_error_of_that_test_alone(
    suite: pytest.Pytester, action: str, line: str
) -> None:
    """The report names it; the next test neither sees a process of it nor is blamed for it."""
    result = run(
        suite,
        f"""
opened = os.open("/dev/null", os.O_RDONLY)

def test_that_leaves():
    {action}

def test_after_it():
    assert not has_children()
""",
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_that_leaves*", line])


def test_an_orphan_is_killed(suite: pytest.Pytester) -> None:
    """It ends with the test that left it, and its descriptors are closed then."""
    result = run(
        suite,
        """
read_end, write_end = os.pipe()

def test_that_leaves():
    os.waitpid(fork(fork, signal.pause), 0)

def test_after_it():
    os.close(write_end)
    assert b"" == os.read(read_end, 1)    # ends when nobody else holds the other end
    os.close(read_end)
""",
    )

    result.assert_outcomes(passed=2, errors=1)


def test_a_clean_test_passes(suite: pytest.Pytester) -> None:
    """What fixtures release in their teardown was not left."""
    result = run(
        suite,
        """
@pytest.fixture
def everything(tmp_path):
    child = fork(signal.pause)
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    with open(tmp_path / "file", "w"), open("shm/clean", "w") as shared:
        yield
    os.unlink(shared.name)
    event.set()
    thread.join()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

def test_clean(everything, capfd):
    assert has_children()
""",
    )

    result.assert_outcomes(passed=1)


def test_what_goes_by_itself_in_time_is_not_left(suite: pytest.Pytester) -> None:
    """Threads and orphans may still be on their way out, and other programs use /dev/shm too."""
    result = run(
        suite,
        """
def test_that_leaves_soon(monkeypatch):
    leftovers.GRACE = 60
    threading.Thread(target=time.sleep, args=[0.2]).start()
""",
    )

    result.assert_outcomes(passed=1)


def test_what_a_wider_fixture_sets_up_is_its_own(suite: pytest.Pytester) -> None:
    """It is there for several tests, and its processes may have children when they like."""
    result = run(
        suite,
        """
read_end, write_end = os.pipe()

def fork_on_order(orders):
    os.read(orders, 1)
    fork(signal.pause)
    os.write(write_end, b"x")
    signal.pause()

@pytest.fixture(scope="module")
def server():
    orders, server = os.pipe()
    child = fork(fork_on_order, orders)
    yield server
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(orders)
    os.close(server)

def test_first(server):
    os.write(server, b"x")
    os.read(read_end, 1)

def test_second(server):
    assert has_children()

def test_third():
    pass
""",
    )

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_third*"])


@pytest.mark.parametrize("failing", ["test", "setup", "teardown"])
def test_a_failure_is_not_joined_by_an_error(suite: pytest.Pytester, failing: str) -> None:
    """The failure comes first: what was left is told beside it, and still ended."""
    result = run(
        suite,
        f"""
def leave(where):
    if where == {failing!r}:
        fork(signal.pause)
        assert False, where

@pytest.fixture
def fixture():
    leave("setup")
    yield
    leave("teardown")

def test_that_fails(fixture):
    leave("test")

def test_after_it():
    assert not has_children()
""",
    )

    outcomes = {
        "test": {"failed": 1, "passed": 1},
        "setup": {"errors": 1, "passed": 1},
        "teardown": {"errors": 1, "passed": 2},
    }
    assert outcomes[failing] == result.parseoutcomes()
    if failing != "setup":
        result.stdout.fnmatch_lines(["*leftovers*", "process: pid *"])


def test_a_forked_copy_of_pytest_checks_nothing(suite: pytest.Pytester) -> None:
    """A child that runs on into pytest's own code must not kill what is not its own."""
    result = run(
        suite,
        """
def test_it():
    if child := os.fork():
        assert (child, 0) == os.waitpid(child, 0)

def test_next():
    pass
""",
    )

    result.stdout.fnmatch_lines(["*2 passed*"])
    result.stdout.no_fnmatch_line("*error*")
