"""How many processors this process may use, and so whether to look on before a sleep.

To look on for a moment pays where the other side runs meanwhile. On one processor it
keeps the other side from running; and where a quota grants less than two, it uses up
what both could run on: the kernel then stops them all until the period is over.

The affinity is asked for once a second at most, the quotas, which are in files of the
cgroup and its ancestors, every ten seconds; both only on the way into a wait. All of it
is a hint, shared by the threads of a process without a guard; a child goes by its
parent's until it is that old.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from ipcmap._core.cgroups import own_groups, read_lines

__all__ = ["available", "may_spin", "quota"]

_ENOUGH = 2  # processors: one for each side
_AFFINITY_EVERY, _QUOTA_EVERY = 1.0, 10.0  # seconds


class _Hint:
    """What was found out, and when it is to be looked up again, by the monotonic clock."""

    several, quota = True, math.inf
    affinity_until = quota_until = -math.inf


def may_spin() -> bool:
    """Return whether there are two processors to run on, as of a second or some ago."""
    now = time.monotonic()
    if now >= _Hint.affinity_until:
        if now >= _Hint.quota_until:
            _Hint.quota = quota()
            _Hint.quota_until = now + _QUOTA_EVERY
        _Hint.several = min(_allowed(), _Hint.quota) >= _ENOUGH
        _Hint.affinity_until = now + _AFFINITY_EVERY
    return _Hint.several


def available() -> int:
    """Return how many workers can run at a time: by affinity and quota, at least 1."""
    granted = min(_allowed(), quota())
    return max(1, int(granted)) if math.isfinite(granted) else os.cpu_count() or 1


def _allowed() -> float:
    """Return the processors on which the calling thread may run."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:  # more of them than Python asks for
        return math.inf


def quota(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> float:
    """Return the processors' worth of time that cgroups grant this process; may be infinite.

    Args:
        proc: Where procfs is mounted.
        cgroups: Where the cgroup hierarchies are mounted.
    """
    granted = math.inf
    for version, group in own_groups("cpu", Path(proc), Path(cgroups)):
        if version == 2:
            words = " ".join(read_lines(group / "cpu.max")).split()
        else:
            words = read_lines(group / "cpu.cfs_quota_us") + read_lines(group / "cpu.cfs_period_us")
        # Anything else, "max" and -1 among it, is no quota.
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            granted = min(granted, int(words[0]) / int(words[1]))
    return granted
