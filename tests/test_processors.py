"""With less than two processors nobody looks on before a sleep: affinity, and quotas of cgroups."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from children import Fork
from ipcmap import Arena, Lock, Ring
from ipcmap._core import processors, reference_monitor, reference_ring


class Machine:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        """Make a file with its directories."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def quota(self) -> float:
        """Return what is granted there."""
        return processors.quota(str(self.root / "proc"), str(self.root / "cgroup"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without cgroups."""
    return Machine(tmp_path)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was looked up yet."""
    monkeypatch.setattr(processors._Hint, "affinity_until", -math.inf)
    monkeypatch.setattr(processors._Hint, "quota_until", -math.inf)


# Quotas


def test_without_cgroups_there_is_no_quota(machine: Machine) -> None:
    """Nor where /proc is not there at all."""
    assert machine.quota() == math.inf
    machine.write("proc/self/cgroup", "0::/app\n")
    assert machine.quota() == math.inf


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        ("150000 100000\n", 1.5),
        ("max 100000\n", math.inf),
        ("400000 100000\n", 4),
        ("", math.inf),
        ("1 0\n", math.inf),
        ("nonsense\n", math.inf),
    ],
)
def test_cpu_max_of_version_2_is_quota_and_period(
    machine: Machine, text: str, granted: float
) -> None:
    """What is no figure grants everything."""
    machine.write("proc/self/cgroup", "0::/app\n")
    machine.write("cgroup/app/cpu.max", text)

    assert machine.quota() == granted


def test_an_ancestor_grants_no_more_than_it_has(machine: Machine) -> None:
    """The least of all counts."""
    machine.write("proc/self/cgroup", "0::/app/worker\n")
    machine.write("cgroup/app/worker/cpu.max", "800000 100000\n")
    machine.write("cgroup/app/cpu.max", "100000 100000\n")
    machine.write("cgroup/cpu.max", "max 100000\n")

    assert machine.quota() == 1


@pytest.mark.parametrize(("quota", "granted"), [("50000", 0.5), ("-1", math.inf)])
def test_version_1_has_a_file_for_each(machine: Machine, quota: str, granted: float) -> None:
    """Among the other controllers, and with a root that a container sees as its own group."""
    machine.write("proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n")
    machine.write("cgroup/cpu/cpu.cfs_quota_us", f"{quota}\n")
    machine.write("cgroup/cpu/cpu.cfs_period_us", "100000\n")

    assert machine.quota() == granted


# The decision


@pytest.mark.parametrize(
    ("allowed", "quota", "spins"),
    [(1, math.inf, False), (2, math.inf, True), (8, 1.99, False), (8, 2.0, True), (1, 8.0, False)],
)
def test_two_processors_are_enough(
    allowed: int, quota: float, spins: bool, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are allowed, and those that are granted."""
    monkeypatch.setattr(processors, "_allowed", lambda: allowed)
    monkeypatch.setattr(processors, "quota", lambda: quota)

    assert processors.may_spin() is spins


def test_one_processor_of_the_affinity_is_noticed(fresh: None, fork: Fork) -> None:
    """As after taskset."""

    def child() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        assert not processors.may_spin()

    assert fork(child).wait() == 0


def test_files_are_read_every_ten_seconds_and_the_affinity_every_second(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait costs no more than a look at the clock."""
    now, looks = [100.0], [0, 0]

    def look(which: int) -> float:
        looks[which] += 1
        return 8

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processors, "_allowed", lambda: look(0))
    monkeypatch.setattr(processors, "quota", lambda: look(1))
    for tenth in range(200):
        now[0] = 100 + tenth / 10
        assert processors.may_spin()

    assert looks == [20, 2]


# Who heeds it

PROGRAM = """
import os, queue, sys, ipcmap
from ipcmap._core import processors, reference_monitor, reference_ring_waiting
engine, allowed, quota = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
processors._allowed, processors.quota = lambda: allowed, lambda: quota
reference_ring_waiting._SPIN = 1.0
ring = ipcmap.Ring(arena=ipcmap.Arena(8 << 20, backend=engine))
looks, give_way = [], os.sched_yield
os.sched_yield = lambda: looks.append(1) or give_way()
before = getattr(ring, "_native", None) and ring._native.patience
try:
    ring.get(0.1)
except queue.Empty:
    pass
print(ring._native.patience != before if engine == "native" else bool(looks))
"""


@pytest.mark.parametrize(
    ("allowed", "quota", "spins"), [("1", "inf", False), ("2", "inf", True), ("2", "1.5", False)]
)
def test_a_wait_for_a_record_looks_on_with_two_processors_only(
    allowed: str, quota: str, spins: bool, engine: str
) -> None:
    """Native, a look in vain shortens the next; the reference engine gives way between looks."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, engine, allowed, quota],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert result.stdout == f"{spins}\n"


@pytest.mark.parametrize("spins", [False, True])
def test_a_wait_for_a_lock_looks_on_with_two_processors_only(
    spins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving way between the looks."""
    lock, looks = Lock(), [0]

    def give_way() -> None:
        looks[0] += 1

    monkeypatch.setattr(processors, "may_spin", lambda: spins)
    monkeypatch.setattr(reference_monitor, "_SPIN", 1.0)
    monkeypatch.setattr(os, "sched_yield", give_way)
    with lock:
        assert not lock.acquire(timeout=0.05)

    assert bool(looks[0]) is spins


def test_the_reference_engine_does_not_glance_on_one_processor(
    monkeypatch: pytest.MonkeyPatch, arena: Arena
) -> None:
    """A record that is there is taken all the same."""
    ring = Ring(arena=arena)
    monkeypatch.setattr(processors, "may_spin", lambda: False)
    with monkeypatch.context() as endless:
        endless.setattr(reference_ring, "_GLANCES", 10**12)
        assert ring._core.get_soon(0) == 0
    ring.put(b"there")

    assert ring._core.get_soon(0) == b"there"


def test_a_handler_that_raises_while_processors_are_counted_ends_the_wait(engine: str) -> None:
    """The native engine asks Python, and drops nothing of what comes back."""
    program = (
        "import sys, ipcmap\n"
        "from ipcmap._core import processors\n"
        "def counted(): raise KeyboardInterrupt\n"
        "processors._allowed = counted\n"
        "ring = ipcmap.Ring()\n"
        "for call in (ring.get, ring.get_many):\n"
        "    try: call()\n"
        "    except KeyboardInterrupt: print('interrupted')\n"
        "processors._allowed = lambda: 2\n"
        "ring.put(b'x')\n"
        "print(ring.get(), ring.statistics().waiting_consumers)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "IPCMAP_BACKEND": engine},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert result.stdout == "interrupted\ninterrupted\nb'x' 0\n"
