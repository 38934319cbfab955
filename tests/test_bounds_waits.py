"""A position that cannot be is an error also for who would wait for it without a timeout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Full

import pytest

from ipcmap import Arena, CorruptError, Ring
from ipcmap._core import ring_layout as at

Call = Callable[[Ring], object]


@pytest.mark.parametrize("call", [lambda ring: ring.get(), lambda ring: ring.get_many()])
def test_a_read_position_beyond_all_records_is_no_endless_wait(
    call: Call, engine: str, arena: Arena
) -> None:
    """The records up to it can never come: they would be lost one by one."""
    ring = Ring(512, arena=arena)
    ring.put_many([b"x"] * 3)
    ring.get()
    words = ring._core._words
    words[at.READ_POS] = words[at.SEEN_WRITE_POS] = words[at.WRITE_POS] + 64

    with pytest.raises(CorruptError, match="ring is damaged"):
        call(ring)


@pytest.mark.parametrize(
    "call", [lambda ring: ring.put(b"x" * 20), lambda ring: ring.put_many([b"x" * 20] * 9)]
)
def test_a_read_position_that_went_back_is_no_endless_wait(
    call: Call, engine: str, arena: Arena
) -> None:
    """The room that producers know of was taken from them."""
    ring = Ring(64, arena=arena)
    for _ in range(2):
        with suppress(Full):
            ring.put_many([b"x" * 8] * 9, 0)
        ring.get()
    with suppress(Full):
        ring.put_many([b"x" * 8] * 9, 0)
    words = ring._core._words
    assert words[at.SEEN_READ_POS] == words[at.READ_POS] > 0
    words[at.READ_POS] = 0

    with pytest.raises(CorruptError, match="ring is damaged"):
        call(ring)
