"""Ctrl-C, and a handler that raises, end a wait at once, on both engines, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full
from types import FrameType

import pytest

from children import Fork
from ipcmap import Arena, Lock, Ring, Semaphore
from ipcmap._core import monitor_layout, reference_monitor, reference_ring_waiting
from processes import read

LARGE = b"L" * 200


class Raised(Exception):
    """What a signal handler raises."""


def lend(ring: Ring) -> None:
    """Read a record in place."""
    with ring.lease():
        pass


def fill(ring: Ring) -> None:
    """Fill a record in place."""
    with ring.claim(5):
        pass


def raise_it(number: int, frame: FrameType | None) -> None:
    """Raise."""
    raise Raised


HANDLERS = [(signal.default_int_handler, KeyboardInterrupt), (raise_it, Raised)]
GETS: list[Callable[[Ring], object]] = [
    lambda ring: ring.get(),
    lambda ring: ring.get(3600),
    lambda ring: ring.get_many(),
    lend,
]
PUTS: list[Callable[[Ring], object]] = [
    lambda ring: ring.put(b"x" * 20),
    lambda ring: ring.put(b"x" * 20, 3600),
    lambda ring: ring.put_many([b"x" * 20] * 3),
    lambda ring: ring.put(LARGE),
    fill,
]


@pytest.fixture(autouse=True)
def _long_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the slice of a sleep is Python's to say, it never ends by itself."""
    monkeypatch.setattr(reference_ring_waiting, "_SLICE", 3600.0)
    monkeypatch.setattr(reference_monitor, "FIRST_SLICE", 3600.0)


@pytest.fixture(params=HANDLERS, ids=["ctrl-c", "raises"])
def interrupted(
    request: pytest.FixtureRequest, fork: Fork
) -> Callable[[Callable[[], object], Callable[[], int]], None]:
    """Have a child wait, interrupt its sleep, and see that what was raised came out."""
    handler, error = request.param

    def interrupt(wait: Callable[[], object], sleepers: Callable[[], int]) -> None:
        def child() -> None:
            signal.signal(signal.SIGINT, handler)
            with pytest.raises(error):
                wait()

        waiter = fork(child)
        while (
            not sleepers() or read(f"/proc/{waiter.pid}/stat").rpartition(")")[2].split()[0] != "S"
        ):
            os.sched_yield()
        os.kill(waiter.pid, signal.SIGINT)

        assert waiter.wait() == 0
        assert sleepers() == 0

    return interrupt


Interrupt = Callable[[Callable[[], object], Callable[[], int]], None]


@pytest.mark.parametrize("call", GETS)
def test_a_wait_for_a_record_is_ended(
    call: Callable[[Ring], object], interrupted: Interrupt, engine: str, arena: Arena
) -> None:
    """The record that comes later is there for the next."""
    ring = Ring(128, arena=arena)

    interrupted(lambda: call(ring), lambda: ring._core.glance()[2])

    ring.put(b"later")
    assert ring.get() == b"later"


@pytest.mark.parametrize("call", PUTS)
def test_a_wait_for_room_is_ended(
    call: Callable[[Ring], object], interrupted: Interrupt, engine: str, arena: Arena
) -> None:
    """Nothing of it went in, and its block is given back."""
    ring, filler = Ring(64, arena=arena), [b"f"] * 9
    with suppress(Full):
        ring.put_many(filler, 0)
    count = len(ring)

    interrupted(lambda: call(ring), lambda: ring._core.glance()[1])

    assert ring.get_many() == filler[:count]
    with pytest.raises(Empty):
        ring.get(0)
    arena.sweep()
    assert arena.statistics().blocks == 1


@pytest.mark.parametrize("guard_type", [Lock, Semaphore])
def test_a_wait_for_a_lock_is_ended(
    guard_type: type[Lock] | type[Semaphore], interrupted: Interrupt, engine: str, arena: Arena
) -> None:
    """It is not taken."""
    guard = guard_type(arena=arena)
    guard.acquire()

    interrupted(guard.acquire, lambda: int(guard._core._words[monitor_layout.SLEEPERS]))

    guard.release()
    assert guard.acquire(timeout=0)
