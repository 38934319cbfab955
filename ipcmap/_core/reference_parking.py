"""Parking of the reference engine: where a thread sleeps until there is something to do.

A semaphore never carries the truth. Whether there is work is said by the state of
the guarded object; the semaphore only wakes. (Two asleep, one post, and the woken
one killed before it ran: the token is gone, and whoever trusted it sleeps on.)

A parking place is NBYTES in the region:
    semaphore   32 bytes   sem_t, process-shared            the C library alone
    sleepers    u64        threads that are about to sleep, asleep, or just woken
                           changed and read in the section that guards the state waited for

The loop, printed once. The waiter, on finding nothing to do::

    P1 announce   in the section of the state: look once more, and if there is still
    P2 re-check   nothing, add one to sleepers
    P3 sleep      sleep(), for one slice at most
    P4 woken      in the section again: take one from sleepers, look; try again

The waker, on giving others something to do::

    P5 look       in the section of the state, after changing it: are there sleepers?
    P6 post       after leaving the section: wake()

P1, P2 and P5 are in one section, so either the waiter sees the change or the waker
sees the sleeper; no fence is needed. wake() posts only if no token lies there
unused: one token wakes one, who takes what it can and wakes the next if it leaves
anything behind.

A consumer that leaves records behind wakes the next; so does whoever leaves the place
by an exception, or finds the end; and a producer that was woken wakes the next, since
what is too little room for one may be enough for another.

If a process dies between P1 and P4, sleepers stays too high: every later change
costs a look at the semaphore, and at most one token lies unused. Sleepers is never
too low. If one dies with its token taken (P4), or between P5 and P6, a sleeper
sleeps on to the end of its slice; so it does where a handler that raises comes
between P5 and P6, or a woken producer still finds too little room and sleeps again
before the next could take the token.
"""

from __future__ import annotations

import ctypes
import os

from ipcmap._core.libc import WAIT_CLOCK, TimeSpec

__all__ = ["NBYTES", "SLEEPERS", "initialise", "sleep", "wake"]

NBYTES = 64
SLEEPERS = 32  # offset in bytes

_library = ctypes.CDLL(None, use_errno=True)
_holding_the_gil = ctypes.PyDLL(None)

_wait = _library.sem_clockwait if WAIT_CLOCK else _library.sem_timedwait
_wait.argtypes = (
    ctypes.c_void_p,
    *(ctypes.c_int for _ in WAIT_CLOCK),
    ctypes.POINTER(TimeSpec),
)
_post = _holding_the_gil.sem_post
_getvalue = _holding_the_gil.sem_getvalue
_post.argtypes = (ctypes.c_void_p,)
_getvalue.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
_init = _library.sem_init
_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)


def initialise(address: int) -> None:
    """Make a parking place of the NBYTES zeroed bytes at ``address``."""
    if _init(address, 1, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sleep(address: int, seconds: float) -> bool:
    """Sleep until woken, for ``seconds`` at most; return whether a token was taken.

    A signal handler runs at once, and what it raises comes out unchanged; one that
    returns ends the sleep.
    """
    # errno is not asked: a handler may have run, and changed it, before we could.
    return bool(_wait(address, *WAIT_CLOCK, TimeSpec.after(seconds)) == 0)


def wake(address: int) -> None:
    """Wake one sleeper, unless a token for one lies there already."""
    value = ctypes.c_int()
    _getvalue(address, value)
    if value.value == 0:
        _post(address)
