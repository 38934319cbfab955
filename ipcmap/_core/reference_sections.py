"""Sections of the reference engine: a robust, process-shared pthread mutex, by ctypes.

Every change of shared state happens in a section. The kernel knows who died: it
hands a dead owner's section to the next taker with EOWNERDEAD, and exec, pid
namespaces, threads, stops and reused pids are its problem. Nothing is ever taken
from the living: a stopped owner keeps its section.

Shared fields, NBYTES at the section's address, written by the C library alone.

Sync points, each at both of its ends
  X1 enter   taker: trylock or timedlock succeeded; all stores of the last owner are seen
  X2 leave   owner: unlock, after its last store

If a process dies between X1 and X2, the next taker enters with what was stored so
far. There is no call-back for repair: the guarded object keeps its journal such
that a taker can tell from it, at every entry, whether the last change was
finished. So a change broken off by an exception (a signal handler that raises)
needs nothing else than a change broken off by a death.

How to use it. Nothing but this shape is safe against a signal handler that raises
between two bytecodes::

    held = address
    try:
        if result := trylock(held):
            enter(held, deadline, result)
        ...
    except Reentered:
        held = 0
        raise BusyError(...) from None
    finally:
        if held:
            unlock(held)

``trylock`` and ``unlock`` are C functions, called without a Python frame between:
the interpreter runs handlers after a call, and none between the end of a ``try``
and the first call of its ``finally``. Where the section was not had, ``unlock``
answers EPERM and changes nothing. Inside, do not wait, call back or enter a
second section.

A thread that enters what it holds (its signal handler calls the object that it
interrupted) gets Reentered, and must leave the section to its outer use. A child
forked while a thread of the parent is in a section holds no section.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Any

from ipcmap._core.libc import TimeSpec
from ipcmap._deadline import Deadline

__all__ = ["NBYTES", "Reentered", "enter", "initialise", "trylock", "unlock"]

NBYTES = 64  # a cache line of its own; glibc and musl take 40 of it

_SHARED, _ROBUST, _ERRORCHECK = 1, 1, 2  # values of glibc and musl alike
_SLICE = 0.02  # seconds; a signal handler runs between two slices
_GRACE = 0.2  # seconds that a call with no time left still waits for a section

_library = ctypes.CDLL(None)
_holding_the_gil = ctypes.PyDLL(None)


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = ctypes.c_int
    function.argtypes = arguments
    return function


trylock = _function(_holding_the_gil, "pthread_mutex_trylock", ctypes.c_void_p)
unlock = _function(_holding_the_gil, "pthread_mutex_unlock", ctypes.c_void_p)
_consistent = _function(_holding_the_gil, "pthread_mutex_consistent", ctypes.c_void_p)
_timedlock = _function(
    _library, "pthread_mutex_timedlock", ctypes.c_void_p, ctypes.POINTER(TimeSpec)
)


class Reentered(Exception):
    """This thread holds the section already."""


def initialise(address: int) -> None:
    """Make a section of the NBYTES zeroed bytes at ``address``, before anyone else sees them."""
    attributes = ctypes.create_string_buffer(64)
    for name, value in (("pshared", _SHARED), ("robust", _ROBUST), ("type", _ERRORCHECK)):
        setter = _function(_library, f"pthread_mutexattr_set{name}", ctypes.c_void_p, ctypes.c_int)
        if name == "pshared":
            _checked(_library.pthread_mutexattr_init(attributes))
        _checked(setter(attributes, value))
    _checked(_library.pthread_mutex_init(ctypes.c_void_p(address), attributes))


def _checked(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


def enter(address: int, deadline: Deadline, result: int) -> bool:
    """Finish what ``trylock`` began, given its answer; return whether the section is held now.

    ``False`` = the deadline passed while another, living thread held it. A call
    with no time left waits a little all the same: sections are held for
    microseconds, and a longer hold means that the owner is stopped.

    Raises:
        Reentered: This thread holds it already.
    """
    give_up = time.monotonic() + _GRACE
    while result:
        if result == errno.EOWNERDEAD:
            _checked(_consistent(address))
            return True
        if result == errno.EDEADLK:
            raise Reentered
        if result not in (errno.EBUSY, errno.ETIMEDOUT):
            _checked(result)
        if not deadline.remaining() and time.monotonic() >= give_up:
            return False
        result = _timedlock(address, TimeSpec.after(_SLICE))
    return True
