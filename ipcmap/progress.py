"""A bar for results that come one by one, drawn by the process that takes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["progress_bar"]

T = TypeVar("T")


def progress_bar() -> Callable[[Iterator[T], int | None], Iterator[T]]:
    """Return what draws a bar around an iterator of so many results: rich's, or tqdm's.

    Raises:
        ModuleNotFoundError: Neither is installed.
    """
    for name, draw in (("rich.progress", "track"), ("tqdm.auto", "tqdm")):
        try:
            drawn: Any = getattr(importlib.import_module(name), draw)
        except ModuleNotFoundError:
            continue
        return lambda results, total: iter(drawn(results, total=total))
    raise ModuleNotFoundError(
        "progress is drawn by rich or tqdm, and neither is installed; "
        "install ipcmap[cli], or leave progress out"
    )
