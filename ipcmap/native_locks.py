"""Locks and semaphores of an arena of the native engine, whose busy methods are written in C."""

from __future__ import annotations

from typing import Any

from ipcmap import locks, semaphores
from ipcmap._core import native
from ipcmap._core.private_page import PrivatePage
from ipcmap._core.processors import may_spin
from ipcmap._core.reference_monitor import FIRST_SLICE
from ipcmap._core.reference_semaphores import SemaphoreCore
from ipcmap.guards import Guard

__all__ = ["BoundedSemaphore", "Lock", "NativeGuard", "RLock", "Semaphore"]


class NativeGuard(native.GuardMethods, Guard):
    """What these classes have in common.

    ``acquire``, ``release`` and ``with`` are those of C, which call Guard's own for
    whatever is unusual. All others are Guard's: it is the same lock in shared memory.
    """

    _native_kind: str

    __slots__ = ("_native",)

    def _attach(self) -> None:
        super()._attach()
        family = self._arena._open().family
        own = family.own_page()
        if own is None:
            return  # a kernel before 4.14: C could not tell a child from its parent
        core = self._core
        figures = core.figures() if isinstance(core, SemaphoreCore) else ()
        self._native = native.Guard(
            self._native_kind,
            self._memory,
            self._words,
            self._tag_at,
            self._tag,
            own,
            family,
            *figures,
        )


class Lock(NativeGuard, locks.Lock):
    """What :class:`ipcmap.Lock` makes in such an arena."""

    _native_kind = "lock"

    __slots__ = ()


class RLock(NativeGuard, locks.RLock):
    """What :class:`ipcmap.RLock` makes in such an arena."""

    _native_kind = "rlock"

    __slots__ = ()


class Semaphore(NativeGuard, semaphores.Semaphore):
    """What :class:`ipcmap.Semaphore` makes in such an arena."""

    _native_kind = "semaphore"

    __slots__ = ()


class BoundedSemaphore(NativeGuard, semaphores.BoundedSemaphore):
    """What :class:`ipcmap.BoundedSemaphore` makes in such an arena."""

    _native_kind = "semaphore"

    __slots__ = ()


_mark = PrivatePage()
_classes: dict[type[Any], type[Any]] = {
    locks.Lock: Lock,
    locks.RLock: RLock,
    semaphores.Semaphore: Semaphore,
    semaphores.BoundedSemaphore: BoundedSemaphore,
}
native.bind_guards(
    NativeGuard,
    NativeGuard.__dict__["_native"],
    acquire=Guard.acquire,
    release=Guard.release,
    call=Guard._call_listeners,
    may_spin=may_spin,
    page=_mark,
    mark=_mark.words,
    slice=FIRST_SLICE,
    usual=(*_classes.values(),),
)
Guard._accelerated.update({(public, "native"): chosen for public, chosen in _classes.items()})
