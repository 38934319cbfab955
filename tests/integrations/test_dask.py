"""What the page says of clusters is true: on real ones, of several processes, on loopback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from library_programs import programs_of, run, said

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(300)]  # imports of a cold disk

PROGRAMS = programs_of("beyond-one-machine.md")

CLUSTER = """
import os, signal, sys, time
import dask, ipcmap
from dask import delayed
from distributed import Client
from ipcmap.integrations.dask import ExecutorPlugin

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(path):
    if not os.path.exists(path):
        open(path, "w").close()
        die()
    return "done"

def pids(_=None):
    return os.getpid(), os.getppid()

def same(*args, **kwargs):
    return args, kwargs

with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
    workers = set(client.run(os.getpid).values())
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where distributed has its files, and the only place."""
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("DASK_DISTRIBUTED__LOGGING__DISTRIBUTED", "critical")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(body: str, engine: str) -> list[str]:
    """Return what a program prints that goes on inside the cluster of ``CLUSTER``."""
    result = run(CLUSTER + "".join(f"    {line}\n" for line in body.splitlines()), engine)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("program", PROGRAMS, ids=["alone", "moved", "graph", "annotated graph"])
def test_a_program_of_the_page_prints_what_it_says(program: str, engine: str) -> None:
    """On one machine, and on a cluster."""
    result = run(program, engine)
    assert (result.stdout, result.returncode) == (said(program), 0), result.stderr


def test_the_page_changes_one_line_but_for_the_client() -> None:
    """What the program does with the executor stays as it is."""
    alone, moved, *_ = [[line.strip() for line in program.splitlines()] for program in PROGRAMS]
    assert [line for line in alone if line not in moved] == [
        "with ipcmap.ProcessPoolExecutor(2, retries=2) as executor:"
    ]


def test_annotated_tasks_run_in_children_of_the_workers(engine: str) -> None:
    """And all others in the workers themselves."""
    lines = lines_of(
        """client.register_plugin(ExecutorPlugin())
with dask.annotate(executor="ipcmap"):
    parents = {parent for _, parent in client.gather(client.map(pids, range(10), pure=False))}
print(parents <= workers)
print({pid for pid, _ in client.gather(client.map(pids, range(10), pure=False))} <= workers)""",
        engine,
    )
    assert lines == ["True", "True"]


def test_a_child_that_is_killed_costs_its_task_alone(engine: str) -> None:
    """The workers live on, with the results that they keep; and a retry comes off."""
    lines = lines_of(
        """client.register_plugin(ExecutorPlugin())
with dask.annotate(executor="ipcmap"):
    kept = client.submit(same, 1)
    others = client.map(pids, range(6), pure=False)
    error = client.submit(die, pure=False).exception()
print(type(error).__name__, error.record.signal)
print(client.submit(same, kept).result(), len(client.gather(others)))
with dask.annotate(executor="ipcmap", retries=2):
    print(client.submit(die_once, os.path.abspath("died")).result())
print(set(client.run(os.getpid).values()) == workers)""",
        engine,
    )
    assert lines == ["WorkerDied 9", "((((1,), {}),), {}) 6", "done", "True"]


def test_a_task_that_takes_too_long_is_ended_by_its_worker(engine: str) -> None:
    """By the plugin's timeout."""
    lines = lines_of(
        """client.register_plugin(ExecutorPlugin(timeout=0.2))
with dask.annotate(executor="ipcmap"):
    print(type(client.submit(time.sleep, 3600).exception()).__name__)""",
        engine,
    )
    assert lines == ["TimeoutError"]


def test_the_plugin_that_is_there_stays_until_it_is_taken_away(engine: str) -> None:
    """Then there is no such executor any more, nor its children."""
    lines = lines_of(
        """client.register_plugin(ExecutorPlugin(3))
client.register_plugin(ExecutorPlugin(5))
count = lambda dask_worker: dask_worker.executors["ipcmap"]._max_workers
print(set(client.run(count).values()))
with dask.annotate(executor="ipcmap"):
    children = {pid for pid, _ in client.gather(client.map(pids, range(4), pure=False))}
client.unregister_worker_plugin("ipcmap")
print(any("ipcmap" in names for names in client.run(
    lambda dask_worker: list(dask_worker.executors)).values()))
print([pid for pid in children if os.path.exists(f"/proc/{pid}")])""",
        engine,
    )
    assert lines == ["{3}", "False", "[]"]


def test_code_for_our_executor_runs_on_the_adapter(engine: str) -> None:
    """What distributed's own refuses or takes for its own is done, and what cannot be is told."""
    lines = lines_of(
        """with ipcmap.cluster_executor(client) as executor:
    print(executor._max_workers)
    print(list(executor.map(pow, range(5), [2] * 5, buffersize=2)))
    print(list(executor.map(abs, range(-5, 0), chunksize=2)))
    print(executor.submit(same, (sum, [1]), workers=2, retries=3, key="k", pure=1).result())
    print(dask.compute([delayed(abs)(-i) for i in range(3)], scheduler=executor))
    error = executor.submit(die).exception()
    print(type(error).__name__, error.record.signal)
    again = executor.with_options(retries=2).submit(die_once, os.path.abspath("died"))
    print(again.result())
    for call in (executor.kill_workers, executor.terminate_workers, executor.statistics,
                 lambda: executor.with_options(timeout=1)):
        try:
            call()
        except NotImplementedError as error:
            print("client" in str(error))
    try:
        list(executor.map(time.sleep, [60], timeout=0.1))
    except TimeoutError:
        print("too late")
    print(type(executor.submit(same, sys._getframe()).exception()).__name__)
    waiting = [executor.submit(time.sleep, 60) for _ in range(4)]
    executor.shutdown(wait=True, cancel_futures=True)
    print({future.cancelled() for future in waiting})
try:
    executor.submit(abs, 1)
except RuntimeError as error:
    print(error)
print(repr(executor).endswith("shut down>"))""",
        engine,
    )
    assert lines == [
        "2",
        "[0, 1, 4, 9, 16]",
        "[5, 4, 3, 2, 1]",
        "(((<built-in function sum>, [1]),), {'workers': 2, 'retries': 3, 'key': 'k', 'pure': 1})",
        "([0, 1, 2],)",
        "WorkerDied 9",
        "done",
        *["True"] * 4,
        "too late",
        "TypeError",
        "{True}",
        "cannot schedule new futures after shutdown",
        "True",
    ]  # fmt: skip


def test_nothing_is_left_where_it_ran(engine: str, scratch: Path) -> None:
    """But what distributed keeps for its next start: locks of a folder."""
    assert lines_of("print(len(workers))", engine) == ["2"]
    left = [name for folder in os.walk(scratch) for name in folder[2]]
    assert all(name.endswith(".lock") for name in left)
