"""Every sync point of the native engine: a process is killed, stopped or interrupted there.

The engine is built with its points as hooks (native_build) for a program of its own
(sync_point_program), which plays scenes (sync_point_scenes) and checks what is left
(sync_point_accounts). The points are asked of the build: none can be forgotten here.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import native_build

SMALL = ["put", "put_many", "get", "get_many"]
LARGE = ["put_large", "get_large"]  # of records in blocks
STREAMED = ["put_streamed", "put_many_streamed"]  # of 4 KiB, written past the caches
OF_BLOCKS = ["allocate", "free", "retag"]
GUARDS = ["lock", "rlock", "semaphore", "travels"]  # the last, with tokens that travel
MODES = ["kill", "stop", "raise", "fork"]
LONG = [pytest.mark.stress, pytest.mark.timeout(3600)]
COMPILER = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]

pytestmark = [
    pytest.mark.skipif(not shutil.which(COMPILER), reason=f"there is no compiler: {COMPILER}"),
    pytest.mark.timeout(600),  # hundreds of families each; a hang is found by their own limits
]


@pytest.fixture(scope="session")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine with hooks, compiled once."""
    return native_build.build_hooks(tmp_path_factory.mktemp("hooks"))


def strike(hooks: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the program and return what it says."""
    program = Path(__file__).with_name("sync_point_program.py")
    done = subprocess.run(
        [sys.executable, program, hooks, folder, *arguments],
        env=os.environ | {"PYTHONPATH": str(program.parent), "IPCMAP_BACKEND": "native"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    print(f"runs={facts['runs']}")
    return facts


def test_every_point_is_passed_by_some_call(hooks: Path, tmp_path: Path) -> None:
    """A step that no scene comes to would be one at which nobody is killed."""
    points, passed = set[str](), set[str]()
    for call in [*SMALL, *LARGE, *STREAMED, *OF_BLOCKS, *GUARDS]:
        facts = strike(hooks, tmp_path, call, "trace")
        assert facts["failures"] == []
        points = set(facts["points"])
        passed |= set(facts["passed"])

    assert points
    assert points == passed


RUNS = [
    *((call, mode, "") for mode in MODES for call in [*SMALL, *GUARDS]),
    *((call, mode, "") for mode in MODES[:3] for call in [*LARGE, *OF_BLOCKS]),
    *((call, mode, "everywhere") for mode in MODES for call in STREAMED),  # at few points
]
FULLER = [
    (call, mode, extent)
    for extent in ("", "everywhere")
    for mode in MODES
    for call in [*SMALL, *LARGE, *OF_BLOCKS, *GUARDS]
    if (call, mode, extent) not in RUNS
]


@pytest.mark.parametrize(
    ("call", "mode", "extent"),
    [*RUNS, *(pytest.param(*run, marks=LONG) for run in FULLER)],
)
def test_whoever_is_struck_at_a_point_takes_nothing_along_but_the_call_in_hand(
    call: str, mode: str, extent: str, hooks: Path, tmp_path: Path
) -> None:
    """Killed, stopped for two seconds, interrupted by a handler that raises, or that forks."""
    facts = strike(hooks, tmp_path, call, mode, extent)

    assert facts["failures"] == [], "\n".join(facts["failures"])
    assert facts["struck"] == facts["passed"]


def test_the_usual_build_has_no_points(tmp_path: Path) -> None:
    """Nor a symbol of them."""
    plain = native_build.build(tmp_path)

    assert b"sync_point" not in plain.read_bytes()
    assert b"R1 publish" not in plain.read_bytes()


SLICES = """
import queue, sys, native_build
native = native_build.load(sys.argv[1])
import ipcmap
ring = ipcmap.Ring(arena=ipcmap.Arena(backend="native"))
ring.put(b"")  # what only the first call of a ring asks for is no part of a wait
ring.get()
native.disarm()
try:
    ring.get(2.0)
except queue.Empty:
    print(native.trace().count("P3 sleep in parking_sleep, before"))
"""


def test_a_call_sleeps_shortly_at_first(hooks: Path) -> None:
    """10, 80, 640 ms, then up to a second: a signal just before a sleep does not wait long."""
    done = subprocess.run(
        [sys.executable, "-c", SLICES, hooks],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "IPCMAP_BACKEND": "native"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert 2 <= int(done.stdout) <= 5


def test_a_handler_runs_though_its_signal_came_just_before_the_sleep(
    hooks: Path, tmp_path: Path
) -> None:
    """In the scene in which nothing ever comes, and the call has no timeout to end it."""
    program = SLICES.replace("ring.get(2.0)", "ring.get()").replace(
        "native.disarm()",
        "import signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n"
        "native.arm('P3 sleep in parking_sleep, before', 1, signal.SIGUSR1)",
    )
    done = subprocess.run(
        [sys.executable, "-c", program, hooks],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "IPCMAP_BACKEND": "native"},
        check=False,
    )

    assert done.returncode == 7


AT_THE_SECTION = """
import os, signal, sys, native_build
native = native_build.load(sys.argv[1])
import ipcmap
from ipcmap._core import ring_layout as at
from sync_point_stage import code_of, is_over, start, until

arena = ipcmap.Arena(16 << 20, backend="native")
ring = ipcmap.Ring(4096, arena=arena)
reading, writing = os.pipe()

def struck(point, number):
    def be_struck():
        native.disarm()
        native.arm(point, 1, number)
        try:
            os.write(writing, ring.get(0) + b".")
        except ipcmap.StaleHandle:
            os.write(writing, b"stale")
    pid = start(be_struck)
    until(lambda: is_over(pid))
    return pid

def stopped():
    words = ring._core._words
    assert words[at.SEEN_WRITE_POS] > words[at.READ_POS], "there is nothing that it would go by"
    return struck("X1 enter in section_try, before", signal.SIGSTOP)

def what_it_gets(consumer):
    os.kill(consumer, signal.SIGCONT)
    assert code_of(consumer) == 0
    return os.read(reading, 100).decode()
"""


def run(hooks: Path, program: str) -> str:
    """Run a program that begins as ``AT_THE_SECTION``, and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", AT_THE_SECTION + program, hooks],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "IPCMAP_BACKEND": "native"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_a_record_that_came_back_comes_before_one_that_a_get_had_its_eye_on(hooks: Path) -> None:
    """Its holder is buried while the get is about to enter the section; the ring is whole after it."""
    came = run(
        hooks,
        """
ring.put_many([b"older", b"newer"])
def hold():
    lease = ring.lease(0)
    lease.__enter__()
    os.kill(os.getpid(), signal.SIGKILL)
holder = start(hold)
until(lambda: is_over(holder))
consumer = stopped()
assert code_of(holder) == -signal.SIGKILL
assert arena.sweep() == 1
print(what_it_gets(consumer), ring.get(0))
""",
    )

    assert came == "older. b'newer'\n"


def test_a_get_from_a_ring_that_is_gone_takes_nothing_from_the_next_one_there(hooks: Path) -> None:
    """An empty record, and no record at all, have the same header in a ring that is new."""
    came = run(
        hooks,
        """
ring.put(b"")
assert code_of(struck("R0 copy in ring_consume, before", signal.SIGKILL)) == -signal.SIGKILL
consumer, place = stopped(), ring._cell.offset
ring.destroy()
ring = ipcmap.Ring(4096, arena=arena)
assert ring._cell.offset == place
came = what_it_gets(consumer)
ring.put(b"mine")
print(came, ring.get(0))
""",
    )

    assert came == "stale b'mine'\n"
