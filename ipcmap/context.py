"""multiprocessing's interface: one context, under the name ``"ipcmap"``.

Whatever takes a context or a start method takes it: ``multiprocessing.get_context("ipcmap")``
and :func:`get_context` return the same object. Code that asks a context for its start method
is told ``"fork"``, which is how its processes begin.
"""

from __future__ import annotations

import multiprocessing.context
from multiprocessing import process
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from ipcmap.connection import Pipe
from ipcmap.objects import SimpleQueue
from ipcmap.pool import Pool
from ipcmap.process import Process
from ipcmap.reporting_queues import ReportingJoinableQueue, ReportingQueue
from ipcmap.sync import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore
from ipcmap.values import Array, RawArray, RawValue, Value

if TYPE_CHECKING:
    from logging import Logger
    from multiprocessing.managers import SyncManager

__all__ = [
    "Context",
    "Manager",
    "active_children",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
]


class Context(multiprocessing.context.BaseContext):
    """multiprocessing's context, whose parts are ipcmap's; there is one, from :func:`get_context`.

    ``Manager``, ``cpu_count``, ``get_logger`` and whatever else a context has are
    multiprocessing's own.

    Example:
        >>> import multiprocessing
        >>> context = multiprocessing.get_context("ipcmap")
        >>> answers = context.Queue()
        >>> worker = context.Process(target=answers.put, args=(42,))
        >>> worker.start()
        >>> answers.get()
        42
        >>> worker.join()
    """

    _name = "fork"

    Process = Process
    Pipe = staticmethod(Pipe)  # type: ignore[assignment]
    Queue = ReportingQueue  # type: ignore[assignment]
    JoinableQueue = ReportingJoinableQueue  # type: ignore[assignment]
    SimpleQueue = SimpleQueue  # type: ignore[assignment]
    Lock = Lock  # type: ignore[assignment]
    RLock = RLock  # type: ignore[assignment]
    Condition = Condition  # type: ignore[assignment]
    Semaphore = Semaphore  # type: ignore[assignment]
    BoundedSemaphore = BoundedSemaphore  # type: ignore[assignment]
    Event = Event  # type: ignore[assignment]
    Barrier = Barrier  # type: ignore[assignment]
    Value = staticmethod(Value)
    Array = staticmethod(Array)
    RawValue = staticmethod(RawValue)
    RawArray = staticmethod(RawArray)
    Pool = Pool

    def __reduce__(self) -> tuple[Any, ...]:
        return get_context, ()


_context = Context()
multiprocessing.context._concrete_contexts["ipcmap"] = _context  # type: ignore[attr-defined]


def get_context(method: str | None = None) -> Any:
    """Return the context.

    Args:
        method: ``None`` or ``"ipcmap"``; another start method = multiprocessing's own context.

    Raises:
        ValueError: There is no such method.
    """
    return _context.get_context(method)


def get_start_method(allow_none: bool = False) -> str | None:
    """Return ``"fork"``: how the context's processes begin."""
    return _context.get_start_method(allow_none)


# The rest is multiprocessing's, under its names.


def Manager() -> SyncManager:  # noqa: N802
    """Return multiprocessing's manager, whose server is a :class:`Process`."""
    return _context.Manager()


def current_process() -> BaseProcess:
    """Return the object of the process that calls."""
    return process.current_process()


def parent_process() -> BaseProcess | None:
    """Return an object of the parent, ``None`` in the first process."""
    return process.parent_process()


def active_children() -> list[BaseProcess]:
    """Return the children of this process that live, and join those that have ended."""
    return process.active_children()


def cpu_count() -> int:
    """Return the number of processors of the machine."""
    return _context.cpu_count()


def freeze_support() -> None:
    """Do nothing: it is there for programs that were frozen on other systems."""
    _context.freeze_support()


def get_logger() -> Logger:
    """Return multiprocessing's logger."""
    return _context.get_logger()


def log_to_stderr(level: int | str | None = None) -> Logger:
    """Have multiprocessing's logger write to stderr, and return it.

    Args:
        level: From which level on; ``None`` = as it is.
    """
    return _context.log_to_stderr(level)
