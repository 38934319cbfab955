"""Where the kernel says what this process's cgroup, and each of its ancestors, may use.

What cannot be read bounds nothing: ``/proc`` or ``/sys`` may be missing in a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["own_groups", "read_lines"]


def own_groups(controller: str, proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """Yield version and directory of this process's cgroups for a controller, ancestors included.

    Args:
        controller: ``"memory"`` or ``"cpu"``.
        proc: Where procfs is mounted.
        cgroups: Where the cgroup hierarchies are mounted.
    """
    for line in read_lines(proc / "self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, root = 2, cgroups
        elif controller in controllers.split(","):
            version, root = 1, cgroups / controller
        else:
            continue
        # Without a cgroup namespace the path is the host's: what a container does not
        # see of it is missing, and the root is the container's own group.
        group = Path(os.path.normpath("/" + path.strip("/"))).relative_to("/")
        yield from ((version, root / part) for part in (group, *group.parents))


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file, none where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
