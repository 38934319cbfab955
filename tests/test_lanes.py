"""Files of tests side by side, seen from outside: each test runs a pytest of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

NOTING = """
import json, os, signal, pytest

def note(*facts):
    with open("notes", "a") as file:
        print(json.dumps([os.getpid(), *facts]), file=file)

@pytest.fixture(scope="module")
def shared(request):
    note(request.module.__name__, "set up")
    yield
    note(request.module.__name__, "torn down")

@pytest.fixture(params=[1, 2])
def case(request, shared):
    note(request.module.__name__, request.param)
"""
WAITING = """
def meet(mine, other):
    # Wait for the test of the other lane: the two run at the same time.
    os.mkfifo(mine)
    while not os.path.exists(other):
        os.sched_yield()
    if mine < other:
        open(mine, "w").close()
    else:
        open(other).close()

def wait_until_told(nodeid):
    # Wait for the report of pytest itself.
    while True:
        if os.path.exists("told"):
            with open("told") as file:
                if nodeid in file.read().split():
                    return
        os.sched_yield()
"""
CONFTEST = """
import os

pytest_plugins = ["lanes", "leftovers", "watchdog"]
pid = os.getpid()

def pytest_runtest_logfinish(nodeid):
    if os.getpid() == pid:
        with open("told", "a") as file:
            print(nodeid, file=file)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a test suite that runs in two lanes, watched, and with the check for leftovers."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini(f"""
        [pytest]
        pythonpath = {Path(__file__).parent}
        addopts = --import-mode=importlib --strict-markers --strict-config --lanes 2
        filterwarnings = error
        timeout = 600
    """)
    return pytester


def run(suite: pytest.Pytester, *arguments: str, **files: str) -> pytest.RunResult:
    """Run test modules in which all helpers are at hand."""
    suite.makepyfile(**{name: NOTING + WAITING + source for name, source in files.items()})
    return suite.runpytest_subprocess(*arguments)


def notes(suite: pytest.Pytester) -> list[list[object]]:
    """Return what was noted, in the order of time."""
    return [json.loads(line) for line in (suite.path / "notes").read_text().splitlines()]


def test_each_file_runs_once_in_one_lane_with_what_it_shares(suite: pytest.Pytester) -> None:
    """In its own order; the summary counts all."""
    source = "def test_it(case): pass\n\ndef test_next(shared): pass"
    result = run(suite, test_a=source, test_b=source, test_c=source)

    result.assert_outcomes(passed=9)
    noted = notes(suite)
    for name in ("test_a", "test_b", "test_c"):
        assert [what for _, where, what in noted if where == name] == ["set up", 1, 2, "torn down"]
        assert len({pid for pid, where, _ in noted if where == name}) == 1


def test_two_files_run_at_the_same_time(suite: pytest.Pytester) -> None:
    """Each in the main thread, the only one, of a process of its own; none of them is pytest."""
    there = """
    assert len(os.listdir('/proc/self/task')) == 1
    note('pytest', os.getppid())
"""
    result = run(
        suite,
        test_a=f"def test_it():\n    meet('a', 'b'){there}",
        test_b=f"def test_it():\n    meet('b', 'a'){there}",
    )

    result.assert_outcomes(passed=2)
    (first, _, pytest_pid), (second, _, same_pid) = notes(suite)
    assert pytest_pid == same_pid
    assert len({first, second, pytest_pid}) == 3


def test_failures_are_told_with_what_was_printed(suite: pytest.Pytester) -> None:
    """Each with its own output, though the lanes print at the same time; the exit code is 1."""
    source = (
        "def test_it():\n"
        "    meet({0!r}, {1!r})\n"
        "    print('said by ' + {0!r})\n"
        "    os.system('echo echoed by ' + {0!r})\n"
        "    assert not {0!r}"
    )
    result = run(suite, test_a=source.format("a", "b"), test_b=source.format("b", "a"))

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2)
    output = result.stdout.str()
    for name in ("a", "b"):
        assert output.count(f"said by {name}") == output.count(f"echoed by {name}") == 1
    result.stdout.fnmatch_lines_random(
        ["FAILED test_a.py::test_it *", "FAILED test_b.py::test_it *"]
    )


def test_what_a_test_leaves_is_its_error_in_a_lane_too(suite: pytest.Pytester) -> None:
    """The lane's check ends it, and nothing of the other lane."""
    result = run(
        suite,
        test_a="""
def test_that_leaves():
    if not os.fork():
        signal.pause()

def test_after_it():
    meet("a", "b")
""",
        test_b="""
def test_with_a_child():
    child = os.fork()
    if not child:
        signal.pause()
    meet("b", "a")    # when the other's check is over
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0) == (child, signal.SIGKILL)
""",
    )

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_that_leaves*"])


@pytest.mark.parametrize(
    ("dies", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "-9"),
        ("os._exit(3)", "3"),
        # Nobody is left who could say it but the watchdog.
        ("signal.pause()", "-9"),
    ],
    ids=["killed", "exits", "hangs"],
)
def test_a_lane_that_dies_fails_its_test_and_ends_the_run(
    suite: pytest.Pytester, dies: str, said: str
) -> None:
    """The other lane ends its test, tears down what it has set up, and begins no other."""
    result = run(
        suite,
        test_a=f"""
@pytest.fixture
def met(): meet("a", "b")    # no other begins where one has died

@pytest.mark.timeout(0.3, func_only=True)
def test_it(met):
    {dies}
""",
        test_b="""
def test_it(shared):
    meet("b", "a")
    wait_until_told("test_a.py::test_it")

def test_next():
    note("test_b", "began another test")
""",
    )

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [f"its process ended with exit code {said} before *", "FAILED test_a.py::test_it*"]
    )
    assert [what for _, _, what in notes(suite)] == ["set up", "torn down"]


def test_a_child_that_comes_out_of_a_test_runs_no_other(suite: pytest.Pytester) -> None:
    """It would take tests from the lanes otherwise."""
    source = "def test_it():\n    if child := os.fork():\n        os.waitpid(child, 0)\n"
    result = run(suite, test_a=source, test_b=source, test_c="def test_it(): note('c', 'run')")

    result.assert_outcomes(passed=3)
    assert len(notes(suite)) == 1


def test_the_first_failure_may_end_the_run(suite: pytest.Pytester) -> None:
    """``-x`` counts in all lanes; what is set up is torn down."""
    source = """
def test_it(shared):
    {0}

def test_next(shared):
    wait_until_told("test_a.py::test_it")

def test_last():
    note("last", "began")
"""
    failing, waiting = "assert False", "wait_until_told('test_a.py::test_it')"
    result = run(suite, "-x", test_a=source.format(failing), test_b=source.format(waiting))

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    noted = sorted(str(what) for _, _, what in notes(suite))
    # The lane of the failure may have begun another test before all were told to stop.
    assert noted in (["set up"] * n + ["torn down"] * n for n in (2, 3))
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])


def test_ctrl_c_ends_all_lanes(suite: pytest.Pytester) -> None:
    """What is set up is torn down, and no process is left."""
    source = """
def test_it(shared):
    meet({0!r}, {1!r})
    if {0!r} == "a":
        os.killpg(0, signal.SIGINT)
    while True:
        signal.pause()
"""
    suite.makepyfile(
        test_a=NOTING + WAITING + source.format("a", "b"),
        test_b=NOTING + WAITING + source.format("b", "a"),
    )
    command = [sys.executable, "-m", "pytest"]
    with suite.popen(command, start_new_session=True) as process:
        assert process.wait() == pytest.ExitCode.INTERRUPTED

    noted = notes(suite)
    assert sorted(str(what) for _, _, what in noted) == ["set up"] * 2 + ["torn down"] * 2
    for pid in {pid for pid, *_ in noted}:
        assert isinstance(pid, int)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
