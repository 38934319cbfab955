"""What can go wrong, by who caused it.

Closed by you, broken by another process, busy by misuse, and so on: a class each,
so that a caller can tell them apart without reading the message. A message states
the rule, then the facts, then the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = [
    "ArenaFull",
    "BrokenError",
    "BusyError",
    "ClosedError",
    "CorruptError",
    "FamilyFull",
    "ForeignNamespace",
    "IpcmapError",
    "NotInherited",
    "NotOwned",
    "RecordTooLarge",
    "StaleHandle",
    "WorkerDied",
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


class CorruptError(IpcmapError):
    """Shared bookkeeping makes no sense: something wrote where it should not.

    Raised in place of a crash, or of an answer made up from damaged figures.
    """


class StaleHandle(IpcmapError):
    """The handle's block was freed, and may have a new owner by now."""


class NotInherited(IpcmapError):
    """The object lives in an arena that this process did not inherit by fork."""


class NotOwned(IpcmapError, AssertionError, RuntimeError):
    """This thread does not have what it releases or waits with.

    Also an :class:`AssertionError`, which is what multiprocessing raises, and a
    :class:`RuntimeError`, which is what threading raises.
    """


class ArenaFull(IpcmapError, MemoryError):
    """The arena hands out no more: its limit, or its addresses, are used up.

    Also a :class:`MemoryError`.
    """


class RecordTooLarge(IpcmapError, ValueError):
    """The record can never fit, however long one waits.

    Also a :class:`ValueError`.
    """


class FamilyFull(IpcmapError, RuntimeError):
    """As many processes live as the family was created for."""


class ForeignNamespace(IpcmapError, RuntimeError):
    """This process counts pids, or time since boot, differently from the family.

    It could not tell the living from the dead, nor they it.
    """


class WorkerDied(IpcmapError, BrokenProcessPool):
    """The worker of an executor died while it did this task; the executor goes on.

    Also a :class:`concurrent.futures.process.BrokenProcessPool`.

    Attributes:
        record: How the worker ended, an :class:`ExitRecord`.
        task: The task: its number in this executor, and the name of its function.
    """

    def __init__(self, message: str, record: Any = None, task: Any = None) -> None:
        super().__init__(message)
        self.record, self.task = record, task

    def __reduce__(self) -> tuple[Callable[..., WorkerDied], tuple[Any, ...]]:
        return type(self), (self.args[0], self.record, self.task)
