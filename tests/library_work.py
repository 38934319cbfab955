"""What tests of other libraries have workers do."""

from __future__ import annotations

import os
from typing import Any

KEPT: list[Any] = []


def facts(array: Any) -> tuple[bool, float, int]:
    """Say whether an array can be written, the sum of it, and who says so."""
    return bool(array.flags.writeable), float(array.sum()), os.getpid()


def keep(array: Any) -> int:
    """Keep an array after the task."""
    KEPT.append(array)
    return os.getpid()


def sum_of_kept(_: object = None) -> float:
    """Return the sum of what is kept, 0.0 where nothing is."""
    return float(sum(array.sum() for array in KEPT))


def raise_at(item: int, bad: int) -> int:
    """Return the item; raise at the bad one."""
    if item == bad:
        raise ValueError("bad item", item)
    return item


def fill(array: Any, number: float) -> None:
    """Write into an array."""
    array[:] = number


def variable(name: str) -> str | None:
    """Return an environment variable of the worker."""
    return os.environ.get(name)
