"""What can go wrong, by who caused it.

Closed by you, broken by another process, busy by misuse: three classes, so that
a caller can tell them apart without reading the message. A message states the
rule, then the facts, then the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["BrokenError", "BusyError", "ClosedError", "IpcmapError"]


class IpcmapError(Exception):
    """Base of every error that is ipcmap's own."""


class ClosedError(IpcmapError, ValueError):
    """The object was closed before this call.

    Also a :class:`ValueError`, which is what a closed file or ``mmap`` raises.
    """


class BrokenError(IpcmapError, RuntimeError):
    """Another process took away what this call needs.

    Attributes:
        deaths: Exit records of the processes that died, oldest first; empty
            where nobody died, as when a mapped file was shortened.
    """

    def __init__(self, message: str, deaths: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.deaths = tuple(deaths)


class BusyError(IpcmapError, BufferError):
    """The call would pull memory from under a use that is still open.

    Also a :class:`BufferError`, which is what ``mmap`` and ``bytearray`` raise
    while a view of theirs is alive.
    """
