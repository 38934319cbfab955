"""multiprocessing's interface: one context, under the name ``"ipcmap"``.

Whatever takes a context or a start method takes it: ``multiprocessing.get_context("ipcmap")``
and :func:`get_context` return the same object. Code that asks a context for its start method
is told ``"fork"``, which is how its processes begin.
"""

from __future__ import annotations

import multiprocessing.context
from multiprocessing import process
from typing import Any

from ipcmap.objects import SimpleQueue
from ipcmap.process import Process
from ipcmap.queues import JoinableQueue, Queue
from ipcmap.sync import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore
from ipcmap.values import Array, RawArray, RawValue, Value

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
    Queue = Queue  # type: ignore[assignment]
    JoinableQueue = JoinableQueue  # type: ignore[assignment]
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


current_process = process.current_process
parent_process = process.parent_process
active_children = process.active_children
Manager = _context.Manager
cpu_count, freeze_support = _context.cpu_count, _context.freeze_support
get_logger, log_to_stderr = _context.get_logger, _context.log_to_stderr
