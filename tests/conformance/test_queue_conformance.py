"""CPython's own tests of queue.Queue, as installed, on a JoinableQueue shared by threads.

Each Python brings its own: those of shutdown() came with 3.13. Where Python's ``test``
package is left out, as some distributions do, there is nothing here.
"""

from __future__ import annotations

import importlib.util
import queue
import unittest
from types import SimpleNamespace
from typing import Any

import pytest

from ipcmap import JoinableQueue, ShutDown


class Queue(JoinableQueue[Any]):
    """Under the name by which they know what order to expect."""


def cases() -> dict[str, unittest.TestCase]:
    """Return the tests by name."""
    if (
        importlib.util.find_spec("test") is None
        or importlib.util.find_spec("test.test_queue") is None
    ):
        return {}
    theirs = importlib.import_module("test.test_queue")
    names = {"Queue": Queue, "Empty": queue.Empty, "Full": queue.Full, "ShutDown": ShutDown}
    kind = type(
        "QueueCase", (theirs.QueueTest, unittest.TestCase), {"queue": SimpleNamespace(**names)}
    )
    return {name: kind(name) for name in unittest.TestLoader().getTestCaseNames(kind)}


CASES = cases()

if CASES:

    @pytest.mark.usefixtures("ring_type")  # on both engines
    @pytest.mark.parametrize("name", CASES)
    def test_what_holds_for_queue_holds_here(name: str) -> None:
        """One of their tests, run by unittest as it is."""
        result = unittest.TestResult()
        CASES[name].run(result)
        assert [text for _, text in result.failures + result.errors] == []
        assert result.testsRun == 1
