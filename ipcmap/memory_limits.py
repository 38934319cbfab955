"""How much memory this process may still take before the kernel ends somebody.

The bounds are the machine's free memory, and for the process's cgroup and each of
its ancestors its limit less its use. Pages of files that nobody has used lately
are use that the kernel takes back first, and count as free. What cannot be read
bounds nothing: ``/proc`` or ``/sys`` may be missing in a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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
    for version, group in _memory_cgroups(Path(proc), Path(cgroups)):
        free = _free_in(group, *_FILES[version])
        if free is not None:
            bounds.append(free)
    return min(bounds)


def _machine(proc: Path) -> int:
    for line in _lines(proc / "meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_cgroups(proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """Yield version and directory of this process's memory cgroups, ancestors included."""
    for line in _lines(proc / "self/cgroup"):
        number, controllers, path = line.split(":", maxsplit=2)
        if number == "0" and not controllers:
            version, root = 2, cgroups
        elif "memory" in controllers.split(","):
            version, root = 1, cgroups / "memory"
        else:
            continue
        # Without a cgroup namespace the path is the host's: what a container does not
        # see of it is missing, and the root is the container's own group.
        group = Path(os.path.normpath("/" + path.strip("/"))).relative_to("/")
        yield from ((version, root / part) for part in (group, *group.parents))


def _free_in(group: Path, limit_name: str, use_name: str, free_name: str) -> int | None:
    limit, use = _number(group / limit_name), _number(group / use_name)
    if limit is None or use is None:
        return None
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == free_name:
            use = max(0, use - int(value))
    return max(0, limit - use)


def _number(file: Path) -> int | None:
    """Return the number in a file; ``None`` for the word ``max`` or no file."""
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
