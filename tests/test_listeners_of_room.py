"""Listeners for room in a ring: those who await a put."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from children import Fork
from ipcmap import Ring
from ipcmap._core import libc
from ipcmap._core import ring_layout as at
from listening import is_readable

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "somebody listens"])
def test_a_get_makes_no_system_call_while_nobody_listens_for_room(
    ring_type: RingType, listens: bool, fork: Fork
) -> None:
    """In a process that may only read and write, any other ends it."""
    ring, mode, strict = ring_type(), 22, 1  # PR_SET_SECCOMP, SECCOMP_MODE_STRICT
    reading, writing = os.pipe()

    def get() -> None:
        for _ in range(200):
            ring.put(b"x")
        for _ in range(100):
            ring.get()
        keep = ring._listen_for_room() if listens else None
        if keep:
            keep._arm(ring._core.consumed())
        libc.prctl(mode, strict, 0, 0, 0)
        for _ in range(50):
            ring.get()
            ring.get_many(1)
        os.write(writing, b"done")
        del keep

    child = fork(get)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    assert said == (b"" if listens else b"done")
    assert child.wait() == -signal.SIGKILL
    ring.destroy()


@pytest.mark.parametrize("take", ["get", "get_many", "lease", "close", "large"])
def test_whoever_listens_for_room_is_told_of_each_way_to_make_some(
    ring_type: RingType, take: str, endless_timers: None
) -> None:
    """And of the end; once, until it is armed anew."""
    ring = ring_type(1024)
    for _ in range(3):
        ring.put(bytes(5000 if take == "large" else 8))

    def lease() -> None:
        with ring.lease():
            pass

    ways: dict[str, Callable[[], object]] = {
        "get": ring.get, "large": ring.get, "get_many": ring.get_many, "lease": lease,
        "close": ring.close,
    }  # fmt: skip
    with ring._listen_for_room() as listener, ring._listen_for_room() as other:
        assert is_readable(listener), "it does not know yet what an attempt went by"
        for one in (listener, other):
            one._arm(ring._core.consumed())
            assert not is_readable(one)
        with ring.listen() as for_records:
            ring.get(0) if take == "close" else None
            for one in (listener, other):
                one._arm(ring._core.consumed())
            for_records._arm(ring._core._words[at.WRITE_POS])
            ways[take]()
            assert is_readable(for_records) == (take == "close")
        assert is_readable(listener)
        assert is_readable(other)
        if take != "close":
            listener._arm(ring._core.consumed())
            assert not is_readable(listener)
