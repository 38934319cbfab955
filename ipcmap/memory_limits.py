"""How much memory this process may still take before the kernel ends somebody.

The bounds are the machine's free memory, and for the process's cgroup and each of
its ancestors its limit less its use. Pages of files that nobody has used lately
are use that the kernel takes back first, and count as free. What cannot be read
bounds nothing: ``/proc`` or ``/sys`` may be missing in a container.
"""

from __future__ import annotations

import os
from pathlib import Path

from ipcmap._core.cgroups import own_groups, read_lines

__all__ = ["free_memory"]

# By version of the hierarchy: limit, use, and the key in memory.stat of what counts as free.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_memory(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> int:
    """Return the bytes that are free for this process: a snapshot, and no promise.

    Args:
        proc: Where procfs is mounted.
        cgroups: Where the cgroup hierarchies are mounted.
    """
    bounds = [_machine(Path(proc))]
    for version, group in own_groups("memory", Path(proc), Path(cgroups)):
        free = _free_in(group, *_FILES[version])
        if free is not None:
            bounds.append(free)
    return min(bounds)


def _machine(proc: Path) -> int:
    for line in read_lines(proc / "meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_in(group: Path, limit_name: str, use_name: str, free_name: str) -> int | None:
    limit, use = _number(group / limit_name), _number(group / use_name)
    if limit is None or use is None:
        return None
    for line in read_lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == free_name:
            use = max(0, use - int(value))
    return max(0, limit - use)


def _number(file: Path) -> int | None:
    """Return the number in a file; ``None`` for the word ``max`` or no file."""
    text = "".join(read_lines(file)).strip()
    return int(text) if text.isdecimal() else None
