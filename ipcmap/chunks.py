"""The items of a map in chunks: how many are one task, how many are under way, and a chunk's call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["check_chunks", "chunks_of", "do_chunk"]

T = TypeVar("T")


def check_chunks(chunksize: int, buffersize: int | None = None) -> None:
    """Raise ``ValueError`` where these are no numbers of items, as the arguments of a map."""
    if chunksize < 1:
        raise ValueError(f"chunksize must be 1 or more: chunksize={chunksize}")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize must be 1 or more, or None: buffersize={buffersize}")


def chunks_of(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items so many at a time; the last chunk may be shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def do_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Return what a function returns for each tuple of arguments; run by a worker."""
    # Not by starmap, which a StopIteration of the function would end.
    return [fn(*args) for args in chunk]
