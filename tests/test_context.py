"""The context: multiprocessing's interface, and what takes a context or a start method."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

import ipcmap
from ipcmap.context import Context

NAMES = [
    "Process",
    "Queue",
    "JoinableQueue",
    "SimpleQueue",
    "Lock",
    "RLock",
    "Condition",
    "Semaphore",
    "BoundedSemaphore",
    "Event",
    "Barrier",
    "Value",
    "Array",
    "RawValue",
    "RawArray",
]


def test_multiprocessing_knows_it_by_name() -> None:
    """And there is one."""
    context = multiprocessing.get_context("ipcmap")
    assert context is ipcmap.get_context()
    assert context is ipcmap.get_context("ipcmap")
    assert isinstance(context, multiprocessing.context.BaseContext)
    assert pickle.loads(pickle.dumps(context)) is context
    assert isinstance(context, Context)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_context_has_is_ours(name: str) -> None:
    """The same that stands in ipcmap itself, or a queue that reports what cannot be pickled."""
    found, expected = getattr(ipcmap.get_context(), name), getattr(ipcmap, name)
    assert found is expected or issubclass(found, expected)


def test_other_start_methods_are_multiprocessings_own() -> None:
    """And what is none is an error, as there."""
    assert ipcmap.get_context("spawn") is multiprocessing.get_context("spawn")
    assert ipcmap.get_start_method() == ipcmap.get_context().get_start_method() == "fork"
    with pytest.raises(ValueError, match="cannot find context for 'imaginary'"):
        ipcmap.get_context("imaginary")
    with pytest.raises(ValueError, match="cannot set start method"):
        ipcmap.get_context().set_start_method("spawn")


def test_everything_that_a_context_of_multiprocessing_has_is_there() -> None:
    """No public name is missing."""
    ours, theirs = ipcmap.get_context(), multiprocessing.get_context("fork")
    assert {name for name in dir(theirs) if not name.startswith("_")} <= {*dir(ours)}


def test_set_start_method_changes_how_processes_begin() -> None:
    """multiprocessing.Process then has our children, and get_context() is ours."""
    program = (
        "import multiprocessing, ipcmap\n"
        "multiprocessing.set_start_method('ipcmap')\n"
        "assert multiprocessing.get_context() is ipcmap.get_context()\n"
        "child = multiprocessing.Process(target=print, args=('child',))\n"
        "child.start(); child.join()\n"
        "print(child.exitcode, type(child._popen).__module__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("child\n0 ipcmap.process\n", "")


def test_a_manager_is_made_through_the_context() -> None:
    """Its server is our process."""
    with ipcmap.get_context().Manager() as manager:
        numbers = manager.list([1, 2])
        numbers.append(3)
        assert [*numbers] == [1, 2, 3]
        (server,) = ipcmap.active_children()
        assert isinstance(server, ipcmap.Process)


def test_the_processes_are_those_that_multiprocessing_names() -> None:
    """Current, parent, and the children that live."""
    seen: ipcmap.Queue[object] = ipcmap.Queue()

    def tell() -> None:
        parent = ipcmap.parent_process()
        assert parent
        seen.put((ipcmap.current_process().name, parent.pid, parent.is_alive()))

    child = ipcmap.get_context().Process(target=tell, name="teller")
    assert ipcmap.active_children() == []
    child.start()
    assert child in ipcmap.active_children()
    assert seen.get() == ("teller", os.getpid(), True)
    child.join()
    assert ipcmap.active_children() == []
    assert ipcmap.parent_process() is None
    child.close()


def die(_: object) -> None:
    """Be killed over a task."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pool_runs_on_it() -> None:
    """With results larger than any pipe holds."""
    with ipcmap.Pool(2) as workers:
        assert workers.map(abs, range(-300, 0)) == [*range(300, 0, -1)]
        assert workers.apply(bytes, (3 << 20,)) == bytes(3 << 20)
        assert sorted(workers.imap_unordered(abs, range(-9, 0), chunksize=2)) == [*range(1, 10)]
        assert isinstance(workers, multiprocessing.pool.Pool)
        assert {*workers._pool} == {*ipcmap.active_children()}
        workers.close()
        workers.join()


def test_an_executor_of_the_standard_library_runs_on_it() -> None:
    """And says when a worker was killed."""
    context = ipcmap.get_context()
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert [*executor.map(abs, range(-300, 0))] == [*range(300, 0, -1)]
        assert executor.submit(bytes, 3 << 20).result() == bytes(3 << 20)
    with ProcessPoolExecutor(2, mp_context=context) as executor, pytest.raises(BrokenProcessPool):
        executor.submit(die, None).result()
