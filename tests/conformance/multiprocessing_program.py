"""Run classes of CPython's own multiprocessing tests, on ipcmap's context or on that of fork.

    multiprocessing_program.py ipcmap|fork [CLASS ...]

Prints a line of JSON for each test when it begins and when it ends: its class, its name, what
became of it, and the last lines of what it said. Without a class it names them all.

The names of the context are put over those of the module multiprocessing before CPython's
tests are imported, so that all of them mean ours; then CPython's own function makes
the classes for processes (install_tests_in_module_dict). A few classes that
are not made by it use the module as they are.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import sys
import unittest
import warnings
from typing import Any

NAMES = [
    "Process",
    "Pipe",
    "Queue",
    "JoinableQueue",
    "SimpleQueue",
    "Lock",
    "RLock",
    "Semaphore",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Barrier",
    "Value",
    "Array",
    "RawValue",
    "RawArray",
    "Pool",
    "Manager",
    "current_process",
    "parent_process",
    "active_children",
]
UNTYPED = ("TestWait", "TestSimpleQueue", "TestInitializers", "TestPoolNotLeakOnFailure")


class Report(unittest.TestResult):
    """Say what becomes of each test, at once: the next may hang."""

    def say(self, test: unittest.TestCase, outcome: str, text: str = "") -> None:
        """Print a line."""
        name = test.id().rpartition(".")[2]
        print("@" + json.dumps([type(test).__name__, name, outcome, text[-600:]]), flush=True)

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        """It begins."""
        super().startTest(test)
        self.say(test, "begun")

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        """It passed."""
        self.say(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        """It is not for this place."""
        self.say(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        """It failed."""
        self.say(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addError = addFailure  # noqa: N815


def prepare(which: str) -> dict[str, Any]:
    """Return the test classes by name, and what their module does before and after."""
    if which == "ipcmap":
        import ipcmap

        context = ipcmap.get_context()
        for name in NAMES:
            setattr(multiprocessing, name, getattr(context, name))
        assert isinstance(multiprocessing.Lock(), ipcmap.Lock)
    tests = importlib.import_module("test._test_multiprocessing")
    made: dict[str, Any] = {"__name__": __name__}
    tests.install_tests_in_module_dict(made, which, only_type="processes")
    made |= {name: getattr(tests, name) for name in UNTYPED if hasattr(tests, name)}
    globals().update(made)  # some of them pickle their class
    return made


def main(which: str, *classes: str) -> None:
    """Run them."""
    warnings.simplefilter("error", ResourceWarning)
    made = prepare(which)
    if not classes:
        print(*(name for name in made if isinstance(made[name], type)))
        return
    faulthandler.register(30)  # SIGPWR, which no test uses: where it hangs
    made["setUpModule"]()
    for name in classes:
        loader = unittest.TestLoader()
        loader.loadTestsFromTestCase(made[name]).run(Report())
    made["tearDownModule"]()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
