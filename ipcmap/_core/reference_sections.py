"""Sections of the reference engine: a robust, process-shared pthread mutex, by ctypes.

Every change of shared state happens in a section. The kernel knows who died: it
hands a dead owner's section to the next taker with EOWNERDEAD, and exec, threads,
stops and reused pids are its problem. Nothing is ever taken from the living: a
stopped owner keeps its section.

Shared fields, NBYTES at the section's address, written by the C library alone.

Sync points, each at both of its ends
  X1 enter   taker: trylock or the timed lock succeeded; all stores of the last owner are seen
  X2 leave   owner: unlock, after its last store

If a process dies between X1 and X2, the next taker enters with what was stored so
far. There is no call-back for repair: the guarded object keeps its journal such
that a taker can tell from it, at every entry, whether the last change was
finished. A change broken off by an exception is told apart in the same way.

How to use it: ``inside``, or where a call costs too much, its shape, which is made
against a signal handler that raises between any two bytecodes::

    answer = EBUSY
    try:
        (answer,) = map(trylock, (section,))
        if answer:
            answer = ...                       # see inside()
        ...
    finally:
        if not answer:
            unlock(section)
        elif answer == EOWNERDEAD: ...

A ring, which does it twice a record, iterates over ``attempts`` instead, which costs
half as much and stores as safely: ``for answer in attempts(mutex): break``.

``answer`` is what the C library said last: 0 = held, EOWNERDEAD = held and not yet
made consistent, anything else = not held by this use. It must be noted in the same
step in which it comes about. Unpacking a ``map`` does that: it calls C and stores,
and the interpreter runs no handler between the two, as it would after a call. Nor
does it between the test in ``finally`` and the call of ``unlock``. To unlock what is
not held by this use was the mistake of the first version: it opens the section of
the outer use that a signal handler interrupted. To unlock what is not consistent
makes the mutex useless for ever.

Inside, do not wait, call back or enter a second section. A thread that enters what
it holds (its signal handler uses the object that it interrupted) gets Reentered.

Not covered: a child forked by a signal handler that interrupts a section must not
return from the handler, for it would go on with a change that the parent goes on
with as well. A trace or profile function in Python gives handlers a moment in the
``finally``. A process of another pid namespace may have the same thread id as the
owner; the family refuses such a process.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from errno import EBUSY, EDEADLK, EOWNERDEAD, ETIMEDOUT
from itertools import repeat
from typing import Any, TypeVar

from ipcmap._core.libc import WAIT_CLOCK, TimeSpec
from ipcmap._deadline import Deadline

__all__ = [
    "NBYTES",
    "Reentered",
    "Stalled",
    "abandon",
    "attempts",
    "enter",
    "initialise",
    "inside",
    "leave",
    "mutex",
    "occupant",
    "trylock",
    "unlock",
]

NBYTES = 64  # a cache line of its own; glibc and musl take 40 of it

_SHARED, _ROBUST, _ERRORCHECK = 1, 1, 2  # values of glibc and musl alike
_SLICE = 0.02  # seconds; a signal handler runs between two slices
_TRIES = 20  # before sleeping: a section is held for less time than it takes to wake up
_GRACE = 0.2  # seconds that a call with no time left still waits for a section

Result = TypeVar("Result")

_library = ctypes.CDLL(None)
_OCCUPANT = 0 if hasattr(_library, "gnu_get_libc_version") else 4  # bytes: in glibc, in musl
_holding_the_gil = ctypes.PyDLL(None)


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = ctypes.c_int
    function.argtypes = arguments
    return function


trylock = _function(_holding_the_gil, "pthread_mutex_trylock", ctypes.c_void_p)
unlock = _function(_holding_the_gil, "pthread_mutex_unlock", ctypes.c_void_p)
# The same without argument types, for a ``mutex``.
_trylock: Any = _holding_the_gil["pthread_mutex_trylock"]
leave: Any = _holding_the_gil["pthread_mutex_unlock"]
_consistent = _function(_holding_the_gil, "pthread_mutex_consistent", ctypes.c_void_p)
_lock = _function(
    _library,
    "pthread_mutex_clocklock" if WAIT_CLOCK else "pthread_mutex_timedlock",
    ctypes.c_void_p,
    *(ctypes.c_int for _ in WAIT_CLOCK),
    ctypes.POINTER(TimeSpec),
)


class Reentered(Exception):
    """This thread holds the section already."""


class Stalled(Exception):
    """The deadline passed; ``section`` is the one that another, living thread held, if one did."""

    def __init__(self, section: int = 0) -> None:
        super().__init__(section)
        self.section = section


def initialise(address: int) -> None:
    """Make a section of the NBYTES zeroed bytes at ``address``, before anyone else sees them."""
    attributes = ctypes.create_string_buffer(64)
    _checked(_library.pthread_mutexattr_init(attributes))
    for name, value in (("pshared", _SHARED), ("robust", _ROBUST), ("type", _ERRORCHECK)):
        setter = _function(_library, f"pthread_mutexattr_set{name}", ctypes.c_void_p, ctypes.c_int)
        _checked(setter(attributes, value))
    _checked(_library.pthread_mutex_init(ctypes.c_void_p(address), attributes))


def inside(
    section: int,
    deadline: Deadline,
    change: Callable[..., Result],
    *arguments: object,
    inherited: Callable[[int], object] | None = None,
) -> Result:
    """Return ``change(*arguments)``, called in the section.

    ``inherited`` is called before it, with the section, if that was a dead one's.

    Raises:
        Reentered: This thread holds it already.
        Stalled: It was not to be had before the deadline.
    """
    answer = EBUSY
    try:
        (answer,) = map(trylock, (section,))  # X1 enter
        if answer:
            answers = [answer]
            try:
                enter(section, deadline, answers)
            finally:
                answer = answers[-1]
            if inherited and EOWNERDEAD in answers:
                inherited(section)
        return change(*arguments)
    finally:
        if not answer:
            unlock(section)  # X2 leave
        elif answer == EOWNERDEAD:
            abandon(section)


def enter(section: int, deadline: Deadline, answers: list[int]) -> None:
    """Finish what ``trylock`` began: wait, or take over from the dead.

    ``answers`` has what the C library said; each further answer is added to it.
    A call with no time left waits a little all the same: sections are held for
    microseconds, and longer where the owner is stopped, or waits for its GIL.

    Raises:
        Reentered: This thread holds it already.
        Stalled: The deadline passed.
    """
    for _ in range(_TRIES):
        if answers[-1] != EBUSY:
            break
        answers.extend(map(trylock, (section,)))
    give_up = time.monotonic() + _GRACE
    while answer := answers[-1]:
        if answer == EOWNERDEAD:
            _checked(_consistent(section))
            answers.append(0)
            return
        if answer == EDEADLK:
            raise Reentered
        if answer not in (EBUSY, ETIMEDOUT):
            _checked(answer)
        if not deadline.remaining() and time.monotonic() >= give_up:
            raise Stalled(section)
        clock = ((number,) for number in WAIT_CLOCK)
        answers.extend(map(_lock, (section,), *clock, (TimeSpec.after(_SLICE),)))


def occupant(section: int) -> int:
    """Return the number of the thread that is in a section, 0 = none: a hint, for messages.

    That of the C library, which notes it in the mutex, as the kernel wants it.
    """
    word = ctypes.c_uint32.from_address(section + _OCCUPANT).value
    return word & 0x3FFFFFFF


def abandon(section: int) -> None:
    """Leave a dead one's section, which was entered and not yet made consistent."""
    try:
        _consistent(section)
    finally:
        unlock(section)  # X2 leave


def mutex(address: int) -> Any:
    """Return the section at ``address`` as an argument that needs no conversion."""
    return ctypes.byref((ctypes.c_char * NBYTES).from_address(address))


def attempts(section: Any) -> Iterator[int]:
    """Yield what the C library says to one ``trylock`` after the other, of a ``mutex``."""
    return map(_trylock, repeat(section))


def _checked(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
