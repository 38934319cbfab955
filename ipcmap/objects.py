"""What every queue has: objects through a ring, and what a process has taken and not done with."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, SupportsIndex, TypeVar, runtime_checkable

from ipcmap._core.reference_cells import Cell
from ipcmap.arena import Arena, default_arena
from ipcmap.codec import PickleCodec, find_codec
from ipcmap.queue_ends import NoLock, ReadingEnd, WritingEnd
from ipcmap.ring import Ring

__all__ = ["Hands", "Objects", "ShutDown", "SimpleQueue", "fill", "joined", "restored"]

T = TypeVar("T")

if hasattr(queue, "ShutDown"):
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):  # type: ignore[no-redef]
        """The queue was shut down: queue.ShutDown, which Python has from 3.13 on."""


@runtime_checkable
class _Accelerated(Protocol):
    """A ring that puts and gets plain objects by itself: that of the native engine."""

    @staticmethod
    def _dump(dumps: Callable[[Any], Any], obj: Any, /) -> Any: ...
    @staticmethod
    def _load(loads: Callable[[bytes], Any], record: bytes, /) -> Any: ...
    def _put_object(
        self, dumps: Callable[[Any], Any], obj: Any, timeout: float | None, /
    ) -> Any: ...
    def _get_object(self, loads: Callable[[bytes], Any], timeout: float | None, /) -> Any: ...


class Objects(Generic[T]):
    """Objects through a ring.

    Args:
        capacity: Bytes of the ring; ``None`` = a 64th of the arena's limit, 1 to 256 MiB.
        codec: See :mod:`ipcmap.codec`.
        arena: Where its bytes are; ``None`` = the default arena.
    """

    def __init__(self, capacity: SupportsIndex | None, codec: Any, arena: Arena | None) -> None:
        self._codec = find_codec(codec)
        if capacity is None:
            limit = (arena or default_arena()).limit
            capacity = min(max(1 << 20, 1 << (limit // 64).bit_length() - 1), 1 << 28)
        self._ring = Ring(capacity, arena=arena)
        self._attach()

    def _attach(self) -> None:
        codec, ring = self._codec, self._ring
        self._dumps, self._loads = codec.dumps, codec.loads
        self._closed = False
        if type(codec) is PickleCodec and isinstance(ring, _Accelerated):
            self._dumps = partial(ring._dump, codec.dumps)
            self._loads = partial(ring._load, codec.loads)
            # Not a frame between put and C. Nothing here refers to the queue: no cycle.
            self.__dict__["_put"] = partial(ring._put_object, codec.dumps)
            self.__dict__["_get"] = partial(ring._get_object, codec.loads)

    def _put(self, obj: T, timeout: float | None) -> Any:
        """Put the record of an object; one in parts is returned, and not put."""
        record = self._dumps(obj)
        if type(record) is not bytes:
            return record
        return self._ring.put(record, timeout)

    def _get(self, timeout: float | None) -> T:
        result: T = self._loads(self._ring.get(timeout))
        return result

    def _put_record(
        self, record: bytes | Sequence[bytes | memoryview], timeout: float | None
    ) -> None:
        _put_record(self._ring, record, timeout)

    # What the standard library reaches for

    @property
    def _reader(self) -> ReadingEnd:
        end: ReadingEnd | None = self.__dict__.get("_reading")
        if end is None:
            end = self.__dict__.setdefault("_reading", ReadingEnd(self._ring, self._taker()))
            if self._closed:
                end.close()
        return end

    @property
    def _writer(self) -> WritingEnd:
        end: WritingEnd | None = self.__dict__.get("_writing")
        if end is None:
            end = self.__dict__.setdefault("_writing", WritingEnd(self._ring, self._putter()))
            if self._closed:
                end.close()
        return end

    _rlock = _wlock = NoLock()

    def _taker(self) -> Callable[[float | None], Any]:
        ring, loads = self._ring, self._loads  # and not the queue, which has the end
        return lambda timeout: loads(ring.get(timeout))

    def _putter(self) -> Callable[[Any], object]:
        ring, dumps = self._ring, self._dumps

        def put(obj: Any) -> None:
            _put_record(ring, dumps(obj), None)

        return put

    def close(self) -> None:
        """Say that this process neither puts nor gets any more; for others nothing changes."""
        self._closed = True
        for end in (self.__dict__.get("_reading"), self.__dict__.get("_writing")):
            if end is not None:
                end.close()

    def destroy(self) -> None:
        """Free it for the whole family; every handle of it is stale then.

        A queue that was never shared, by a fork or by pickle, is freed with its handle.
        """
        self._ring.destroy()


class SimpleQueue(Objects[T]):
    """The least of queues: ``put``, ``get`` and ``empty``, as long as it takes.

    Args: as of :class:`Queue`.

    Example:
        >>> answers: SimpleQueue[int] = SimpleQueue()
        >>> answers.put(42)
        >>> answers.get()
        42
    """

    def __init__(
        self,
        *,
        capacity: SupportsIndex | None = None,
        codec: Any = None,
        arena: Arena | None = None,
        ctx: Any = None,
    ) -> None:
        super().__init__(capacity, codec, arena)

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), {"_codec": self._codec, "_ring": self._ring})

    def put(self, obj: T) -> None:
        """Append an object, waiting for room."""
        if self._closed:
            raise self._shut()
        record = self._put(obj, None)
        if record is not None:
            self._put_record(record, None)

    def get(self) -> T:
        """Take the oldest object, waiting for one."""
        if self._closed:
            raise self._shut()
        return self._get(None)

    def _put_now(self, obj: T) -> None:
        if self._closed:
            raise self._shut()
        self._put_record(self._dumps(obj), 0)

    def _get_now(self) -> T:
        if self._closed:
            raise self._shut()
        result: T = self._loads(self._ring.get(0))
        return result

    def empty(self) -> bool:
        """Return whether there is none; it may be stale at once."""
        if self._closed:
            raise self._shut()
        return not len(self._ring)

    def _shut(self) -> OSError:
        return OSError(f"SimpleQueue {self!r} is closed")


class Hands:
    """What this process has taken and not done with, and which of its threads has taken it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._taken: deque[tuple[int, Cell]] = deque()
        self._last = threading.local()

    @property
    def again(self) -> bool:
        """Whether what this thread took last had been taken before."""
        return getattr(self._last, "again", False)

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, cell: Cell, again: bool) -> None:
        """Note what this thread has taken."""
        self._forked()
        self._last.again = again
        self._taken.append((threading.get_ident(), cell))

    def next(self) -> Cell | None:
        """Return the oldest of this thread, or else of all; ``None`` = there is none."""
        self._forked()
        taken, ours = self._taken, threading.get_ident()
        while taken:
            mine = next((one for one in list(taken) if one[0] == ours), None)
            with contextlib.suppress(IndexError, ValueError):  # another thread was faster
                if mine is None:
                    return taken.popleft()[1]
                taken.remove(mine)
                return mine[1]
        return None

    def drop(self, cell: Cell) -> None:
        """Forget what was added, if it was: its get is broken off."""
        with contextlib.suppress(ValueError):
            self._taken.remove((threading.get_ident(), cell))

    def _forked(self) -> None:
        if self._pid != os.getpid():  # it is the parent's
            self._pid = os.getpid()
            self._taken = deque()


def joined(record: bytes | Sequence[bytes | memoryview]) -> bytes:
    """Return a record in one part."""
    return record if isinstance(record, bytes) else b"".join(record)


def _put_record(
    ring: Ring, record: bytes | Sequence[bytes | memoryview], timeout: float | None
) -> None:
    if isinstance(record, bytes):
        ring.put(record, timeout)
        return
    with ring.claim(sum(map(len, record)), timeout) as view:
        fill(view, record)


def fill(view: memoryview, parts: Iterable[bytes | memoryview]) -> None:
    """Copy the parts of a record into it, one behind the other."""
    begin = 0
    for part in parts:
        view[begin : begin + len(part)] = part
        begin += len(part)


def restored(cls: type[Objects[Any]], state: dict[str, Any]) -> Objects[Any]:
    """Return the handle that pickle carried."""
    found = cls.__new__(cls)
    found.__dict__.update(state)
    found._attach()
    return found
