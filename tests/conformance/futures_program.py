"""Run one class of CPython's tests of executors on ipcmap's, or on the standard one.

futures_program.py ipcmap|standard FILE CLASS

Says ``@`` and JSON for each test: its name, what became of it, and the last line of what it said.
Meant for a process of its own: it ends at once, and leaves threads to the kernel.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import multiprocessing
import os
import sys
import unittest
import warnings
from types import TracebackType
from typing import Any

import ipcmap

Error = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

# They ask for the standard executor by name, or for its private parts; the last one demands that
# a dead worker is the end of all.
LEFT_OUT = [
    "interpreter_shutdown", "gh83386", "gh94440", "gh105829", "saturation",
    "max_workers_too_large", "python_finalization_error", "pending_calls_race",
    "shutdown_deadlock_pickle", "defaults_to_spawn", "max_tasks_per_child", "max_tasks_early",
    "idle_process", "killed_child",
]  # fmt: skip


class Said(unittest.TestResult):
    """Says at once what became of a test: the next may hang."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self.say(test, "begun")

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.say(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self.say(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:  # noqa: N802
        self.say(test, "failed", repr(err[1]))

    def addError(self, test: unittest.TestCase, err: Error) -> None:  # noqa: N802
        self.say(test, "failed", repr(err[1]))

    def say(self, test: unittest.TestCase, outcome: str, text: str = "") -> None:
        """Say it in a line of its own."""
        report = json.dumps([test.id().rpartition(".")[2], outcome, text])
        print("@" + report, flush=True)


def main(which: str, file: str, name: str) -> None:
    """Run the class."""
    warnings.simplefilter("ignore", DeprecationWarning)
    multiprocessing.set_start_method("fork", force=True)
    tests: Any = importlib.import_module("test.test_concurrent_futures")
    common = tests  # one file, until Python 3.12 made it a package
    if hasattr(tests, "__path__"):
        tests = importlib.import_module(f"{tests.__name__}.{file}")
        common = importlib.import_module(f"{common.__name__}.util")
    executor_type: Any = concurrent.futures.ProcessPoolExecutor
    if which == "ipcmap":
        executor_type = ipcmap.ProcessPoolExecutor
    on_it = {
        "executor_type": executor_type,
        "ctx": "fork",
        "get_context": lambda self: multiprocessing.get_context("fork"),
    }
    mixin = type("OnIt", (common.ExecutorMixin,), on_it)
    bases = (getattr(tests, name), mixin, common.BaseTestCase)
    case: Any = type(name, bases, {"__module__": tests.__name__})
    setattr(tests, name, case)  # workers look it up
    names = [
        test
        for test in unittest.TestLoader().getTestCaseNames(case)
        if not any(part in test for part in LEFT_OUT)
    ]
    unittest.TestSuite([case(test) for test in names]).run(Said())
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
