"""What can go wrong, by who caused it.

Closed by you, broken by another process, busy by misuse: three classes, so that
a caller can tell them apart without reading the message. A message states the
rule, then the facts, then the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BrokenError",
    "BusyError",
    "ClosedError",
    "CorruptError",
    "FamilyFull",
    "ForeignNamespace",
    "IpcmapError",
]


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


class CorruptError(IpcmapError, RuntimeError):
    """Shared bookkeeping holds values that no ipcmap code writes.

    Something wrote past the end of its view, or another program scribbled on
    the region. What lies behind the damaged value is not touched.
    """


class FamilyFull(IpcmapError, RuntimeError):
    """As many processes live as the family was created for."""


class ForeignNamespace(IpcmapError, RuntimeError):
    """This process counts pids, or time since boot, differently from the family.

    It could not tell the living from the dead, nor they it.
    """
