"""The facts of the machine without which a figure means nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "describe"]


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on.

    Attributes:
        cpu: The model, as the kernel names it.
        cpus: How many there are.
        affinity: How many of them this process may use.
        cpu_limit: CPUs that the cgroup may use, by its ``cpu.max``; ``None`` = no limit.
        load_average: Runnable threads over the last minute, before the run.
        memory: Bytes.
        kernel: Its release.
        libc: Name and version.
        python: Implementation and version.
    """

    cpu: str
    cpus: int
    affinity: int
    cpu_limit: float | None
    load_average: float
    memory: int
    kernel: str
    libc: str
    python: str

    @property
    def busy(self) -> bool:
        """Whether others were working on it, so that figures are not to be trusted."""
        return self.load_average > 0.5 * self.affinity

    def text(self) -> str:
        """Return it in one line."""
        cpus = f"{self.affinity} of {self.cpus} CPUs"
        if self.cpu_limit is not None:
            cpus += f" (at most {self.cpu_limit:g} by cpu.max)"
        return (
            f"{self.cpu}, {cpus}, load {self.load_average:.2f}, "
            f"Linux {self.kernel}, {self.libc}, {self.python}"
        )


def describe(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Return the facts as they are now."""
    return Machine(
        cpu=_cpu_model(proc),
        cpus=os.cpu_count() or 1,
        affinity=len(os.sched_getaffinity(0)),
        cpu_limit=_cpu_limit(proc, cgroups),
        load_average=os.getloadavg()[0],
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()).strip() or "another libc than glibc",
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )


def _cpu_model(proc: Path) -> str:
    # x86 says "model name"; others "Model", "cpu", or nothing.
    for line in _text(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "model", "cpu") and not value.strip().isdigit():
            return value.strip()
    return platform.machine()


def _cpu_limit(proc: Path, cgroups: Path) -> float | None:
    """Return the lowest limit of this process's cgroup and its ancestors."""
    limits = []
    for line in _text(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", maxsplit=2)
        if number != "0" or controllers:
            continue
        group = Path(os.path.normpath("/" + path.strip("/"))).relative_to("/")
        for part in (group, *group.parents):
            quota, _, period = _text(cgroups / part / "cpu.max").strip().partition(" ")
            if quota.isdecimal() and period.isdecimal():
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
