"""The facts of the machine that a benchmark shows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ipcmap.bench.machine import describe


def test_the_facts_are_those_of_this_process() -> None:
    """What the kernel and Python say, without a guess."""
    machine = describe()

    assert machine.affinity == len(os.sched_getaffinity(0))
    assert machine.kernel == os.uname().release
    assert machine.cpu
    assert machine.kernel in machine.text()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"a/b/cpu.max": "max 100000"}, None),
        ({"a/b/cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "150000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ({"a/b/cpu.max": "nonsense"}, None),
    ],
)
def test_the_lowest_limit_of_the_cgroup_and_its_ancestors_counts(
    tmp_path: Path, limits: dict[str, str], expected: float | None
) -> None:
    """A container's limit may stand in any of them."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/old\n0::/a/b\n")
    for name, text in limits.items():
        file = tmp_path / "cgroups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    machine = describe(tmp_path / "proc", tmp_path / "cgroups")

    assert machine.cpu_limit == expected
    assert ("cpu.max" in machine.text()) is (expected is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nmodel : 17\nmodel name : Fast One\n", "Fast One"),
        ("processor : 0\nModel : Small Board\n", "Small Board"),
        ("", os.uname().machine),
    ],
)
def test_the_cpu_is_named_as_the_kernel_names_it(tmp_path: Path, text: str, expected: str) -> None:
    """Architectures differ in the word, and some have none."""
    (tmp_path / "cpuinfo").write_text(text)

    assert describe(tmp_path, tmp_path).cpu == expected


def test_a_machine_is_busy_when_others_want_half_of_its_cpus() -> None:
    """Then figures are not to be trusted."""
    machine = replace(describe(), affinity=4)

    assert not replace(machine, load_average=1.9).busy
    assert replace(machine, load_average=2.1).busy
