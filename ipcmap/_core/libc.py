"""Calls of the C library that Python's standard library does not offer.

Each returns what C returns, and an :class:`OSError` with ``errno`` set where C
answers -1. The GIL is released during a call. Nothing here checks arguments:
a wrong address is the caller's, as in C.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

__all__ = [
    "PR_SET_PDEATHSIG",
    "WAIT_CLOCK",
    "IoVec",
    "TimeSpec",
    "TimerSpec",
    "Unmapping",
    "madvise",
    "mincore",
    "mlock",
    "mmap",
    "mprotect",
    "msync",
    "munlock",
    "munmap",
    "prctl",
    "process_vm_readv",
    "process_vm_writev",
    "recv",
    "send",
    "timerfd_create",
    "timerfd_settime",
]

_library = ctypes.CDLL(None, use_errno=True)

# What the waits of the C library take before their moment: the monotonic clock, from
# glibc 2.30 on. Older ones and musl measure on the wall clock alone.
WAIT_CLOCK: tuple[int, ...] = (time.CLOCK_MONOTONIC,) if hasattr(_library, "sem_clockwait") else ()


class IoVec(ctypes.Structure):
    """``struct iovec``: where some bytes begin and how many they are."""

    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class TimeSpec(ctypes.Structure):
    """``struct timespec``: a moment of the clock that waits are measured on."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    @classmethod
    def after(cls, seconds: float) -> TimeSpec:
        """Return the moment ``seconds`` from now."""
        until = (time.monotonic() if WAIT_CLOCK else time.time()) + seconds
        return cls(int(until), int(until % 1 * 1e9))


class TimerSpec(ctypes.Structure):
    """``struct itimerspec``: how often a timer rings, 0 = once, and when first."""

    _fields_ = (("every", TimeSpec), ("first", TimeSpec))


def _raise_on_minus_one(result: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _declare(name: str, result: type[Any], *arguments: type[Any]) -> Any:
    function = getattr(_library, name)
    function.restype = result
    function.argtypes = arguments
    function.errcheck = _raise_on_minus_one
    return function


_address, _size, _flags = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

# An address is below 2**47, so that a signed result tells MAP_FAILED apart.
mmap = _declare("mmap", ctypes.c_ssize_t, _address, _size, _flags, _flags, _flags, ctypes.c_int64)
munmap = _declare("munmap", ctypes.c_int, _address, _size)
msync = _declare("msync", ctypes.c_int, _address, _size, _flags)
madvise = _declare("madvise", ctypes.c_int, _address, _size, _flags)
mprotect = _declare("mprotect", ctypes.c_int, _address, _size, _flags)
mlock = _declare("mlock", ctypes.c_int, _address, _size)
munlock = _declare("munlock", ctypes.c_int, _address, _size)
mincore = _declare("mincore", ctypes.c_int, _address, _size, ctypes.c_char_p)

PR_SET_PDEATHSIG = 1
prctl = _declare("prctl", ctypes.c_int, ctypes.c_int, *(ctypes.c_ulong,) * 4)

# As os.read and os.write, but with flags: MSG_DONTWAIT where a descriptor waits.
recv = _declare("recv", ctypes.c_ssize_t, ctypes.c_int, _address, _size, _flags)
send = _declare("send", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_char_p, _size, _flags)

timerfd_create = _declare("timerfd_create", ctypes.c_int, ctypes.c_int, _flags)
timerfd_settime = _declare(
    "timerfd_settime",
    ctypes.c_int,
    ctypes.c_int,
    _flags,
    ctypes.POINTER(TimerSpec),
    ctypes.c_void_p,
)

_two_vectors = (ctypes.POINTER(IoVec), ctypes.c_ulong) * 2
_copy = ("process_vm_readv", "process_vm_writev")
process_vm_readv, process_vm_writev = (
    _declare(name, ctypes.c_ssize_t, ctypes.c_int, *_two_vectors, ctypes.c_ulong) for name in _copy
)


class Unmapping:
    """Unmaps a range when it goes itself: what a ``__del__`` creates in place of unmapping.

    Of the objects of a cycle the garbage collector calls every ``__del__`` first, in any
    order, and one of them may still use what is mapped. An object that one of them made
    goes when all of them have returned.
    """

    __slots__ = ("_range",)

    def __init__(self, address: int, nbytes: int) -> None:
        self._range = address, nbytes

    def __del__(self, _munmap: Any = munmap) -> None:
        _munmap(*self._range)
