"""The ring of an arena of the native engine, whose four busiest methods are written in C."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from ipcmap._core import native
from ipcmap._core.native_allocator import NativeAllocator
from ipcmap._core.processors import may_spin
from ipcmap.errors import IpcmapError
from ipcmap.ring import Ring
from ipcmap.structure import free_quietly

__all__ = ["NativeRing"]


class NativeRing(native.RingMethods, Ring):
    """What :class:`ipcmap.Ring` makes in such an arena.

    ``put``, ``get``, ``put_many`` and ``get_many`` are those of C, which call Ring's own
    for whatever is unusual. All others are Ring's: it is the same ring in shared memory.
    """

    __slots__ = ("_native",)

    _dump, _load = staticmethod(native.dump), staticmethod(native.load)

    def _attach(self) -> None:
        super()._attach()
        allocator = self._allocator
        self._native = native.Core(
            self._memory,
            self._core.capacity,
            self._inline,
            self._words,
            self._tag_at,
            self._tag,
            allocator if isinstance(allocator, NativeAllocator) else None,
        )

    def _put_rest(self, records: Sequence[bytes], done: int, timeout: float | None) -> None:
        """Put the records of a batch from ``done`` on."""
        try:
            Ring.put_many(self, records[done:], timeout)
        except Exception as error:
            error.put = done + getattr(error, "put", 0)  # type: ignore[attr-defined]
            raise

    def _call(self, puts: bool) -> None:
        """Call the listeners of the other side, after an attempt that saw them armed."""
        if puts:
            self._core.call_listeners()
        else:
            self._core.call_room_listeners()

    def _return_all(self, taken: Sequence[bytes]) -> None:
        """Have the records of a get that is broken off come again."""
        self._core.return_all(taken)

    def _idle(self) -> None:
        """Look after the family, after a slice of waiting in which nothing came."""
        self._check()
        self._look_after_others()


native.bind(
    NativeRing,
    NativeRing.__dict__["_native"],
    put=Ring.put,
    get=Ring.get,
    put_many=Ring.put_many,
    put_rest=NativeRing._put_rest,
    get_many=Ring.get_many,
    idle=NativeRing._idle,
    free=free_quietly,
    may_spin=may_spin,
    call=NativeRing._call,
    return_all=NativeRing._return_all,
    for_next_call=(queue.Empty, IpcmapError),
)
Ring._accelerated[Ring, "native"] = NativeRing
