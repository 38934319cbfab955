"""Free memory: the least that the machine, the cgroup or an ancestor of it still has."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipcmap.memory_limits import free_memory

GIB = 1 << 30
NO_LIMIT_1 = "9223372036854771712"


class Machine:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable: 8388608 kB\nBuffers: 1 kB\n")
        self.write("proc/self/cgroup", "")

    def write(self, path: str, text: str) -> None:
        """Make a file with its directories."""
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group_1(self, path: str, limit: str, use: int, inactive: int = 0) -> None:
        """Make a cgroup of version 1."""
        at = f"cgroup/memory/{path}"
        self.write(f"{at}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{at}/memory.usage_in_bytes", f"{use}\n")
        self.write(f"{at}/memory.stat", f"inactive_file 1\ntotal_inactive_file {inactive}\n")

    def group_2(self, path: str, limit: str, use: int, inactive: int = 0) -> None:
        """Make a cgroup of version 2."""
        self.write(f"cgroup/{path}/memory.max", f"{limit}\n")
        self.write(f"cgroup/{path}/memory.current", f"{use}\n")
        self.write(f"cgroup/{path}/memory.stat", f"anon 5\ninactive_file {inactive}\n")

    def free(self) -> int:
        """Return what is free there."""
        return free_memory(str(self.proc), str(self.cgroups))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with 8 GiB free and no cgroup."""
    return Machine(tmp_path)


def test_without_cgroups_it_is_what_the_machine_has(machine: Machine) -> None:
    """MemAvailable, which is in kB."""
    assert machine.free() == 8 * GIB


def test_without_proc_it_is_what_the_system_call_says(tmp_path: Path) -> None:
    """Some sandboxes have no /proc."""
    assert free_memory(str(tmp_path), str(tmp_path)) > 0


def test_a_cgroup_of_version_2_bounds_it(machine: Machine) -> None:
    """The limit less the use."""
    machine.write("proc/self/cgroup", "0::/app/worker\n")
    machine.group_2("app/worker", str(3 * GIB), GIB)

    assert machine.free() == 2 * GIB


def test_an_ancestor_bounds_it_as_well(machine: Machine) -> None:
    """The least of all counts."""
    machine.write("proc/self/cgroup", "0::/app/worker/deep\n")
    machine.group_2("app/worker/deep", "max", GIB)
    machine.group_2("app/worker", str(4 * GIB), GIB)
    machine.group_2("app", str(2 * GIB), GIB + 5)

    assert machine.free() == GIB - 5


def test_a_cgroup_of_version_1_bounds_it(machine: Machine) -> None:
    """Among the other controllers, which bound no memory."""
    machine.write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/abc\n0::/\n")
    machine.group_1("docker/abc", str(GIB), 100, inactive=40)
    machine.group_1("", NO_LIMIT_1, 7 * GIB)

    assert machine.free() == GIB - 60


def test_a_container_without_its_own_namespace_is_bounded_by_the_root(machine: Machine) -> None:
    """The path is the host's and missing here; the container's own group is mounted as the root."""
    machine.write("proc/self/cgroup", "4:memory:/docker/abc\n")
    machine.group_1("", str(GIB), 0)

    assert machine.free() == GIB


def test_a_path_above_its_namespace_stays_within_the_mount(machine: Machine) -> None:
    """/proc/self/cgroup may begin with /.. where the process was moved."""
    machine.write("proc/self/cgroup", "0::/../../other\n")
    machine.group_2("", str(GIB), 0)

    assert machine.free() == GIB


def test_file_pages_unused_of_late_count_as_free(machine: Machine) -> None:
    """The kernel takes them back before it ends anyone."""
    machine.write("proc/self/cgroup", "0::/app\n")
    machine.group_2("app", str(GIB), GIB, inactive=1000)

    assert machine.free() == 1000


@pytest.mark.parametrize(("use", "inactive", "free"), [(GIB + 9, 0, 0), (5, 100, GIB)])
def test_figures_that_do_not_agree_stay_within_bounds(
    machine: Machine, use: int, inactive: int, free: int
) -> None:
    """They are not read at the same moment."""
    machine.write("proc/self/cgroup", "0::/app\n")
    machine.group_2("app", str(GIB), use, inactive)

    assert machine.free() == free


def test_here_it_is_a_sensible_figure() -> None:
    """Between nothing and the machine's memory."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    total = int(meminfo.split("MemTotal:")[1].split()[0]) * 1024

    assert 0 < free_memory() <= total
