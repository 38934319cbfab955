"""Takes that a signal handler breaks off while they call who listens for room."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from ipcmap import Ring
from listening import is_readable
from rings import drained

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]


class Raised(Exception):
    """What the handler raises."""


def interrupt(*_: object) -> None:
    """Be the handler."""
    raise Raised


@pytest.mark.parametrize("step", ["readlink", "open", "fstat"])
@pytest.mark.parametrize("nbytes", [8, 1000], ids=["inline", "in blocks"])
@pytest.mark.parametrize("way", ["get", "get_many", "get_many(2)", "lease"])
def test_what_a_take_has_taken_comes_again_where_its_call_is_broken_off(
    ring_type: RingType, way: str, nbytes: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record once, in order, and before what was put later."""
    ring = ring_type(1024)
    records = [b"%d" % number * nbytes for number in range(4)]
    for record in records:
        ring.put(record)

    def lease() -> None:
        with ring.lease():
            pass

    ways: dict[str, Callable[[], object]] = {
        "get": ring.get, "get_many": ring.get_many, "get_many(2)": lambda: ring.get_many(2),
        "lease": lease,
    }  # fmt: skip
    with ring._listen_for_room() as listener:
        listener._arm(ring._core.consumed())
        with monkeypatch.context() as patch:
            patch.setattr(os, step, interrupt)
            with pytest.raises(Raised):
                ways[way]()
        assert len(ring) == 4
        ring.put(b"later")
        assert drained(ring) == [*records, b"later"]
        listener._arm(ring._core.consumed() - 1)
        assert is_readable(listener)
    ring.destroy()
