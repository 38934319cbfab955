"""What tests do with a listener."""

from __future__ import annotations

import select

import pytest

from ipcmap import Listener, Ring
from ipcmap import arena as arena_module
from ipcmap import listener as listener_module
from ipcmap._core import libc, reference_ring_waiting
from rings import taken

PATIENCE = 30.0  # seconds; nothing here takes so long, unless it hangs


def is_readable(listener: Listener, seconds: float = 0) -> bool:
    """Return whether a listener is readable, or becomes so in time."""
    return bool(select.select([listener], [], [], seconds)[0])


def receive(ring: Ring, listener: Listener, count: int) -> list[bytes]:
    """Take so many records, by the plainest loop: wait, try once, again."""
    records: list[bytes] = []
    while len(records) < count:
        assert is_readable(listener, PATIENCE)
        record = taken(ring)
        records += [] if record is None else [record]
    return records


@pytest.fixture
def endless_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no timer ring, and no slice of a sleeper end: what is not called sleeps for ever."""
    never = libc.TimerSpec(libc.TimeSpec(0, 0), libc.TimeSpec(3600, 0))
    monkeypatch.setattr(listener_module, "_SLICE", never)
    monkeypatch.setattr(reference_ring_waiting, "_SLICE", 3600.0)


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timers ring, and those who wake by them sweep, twenty times as often."""
    soon = libc.TimerSpec(libc.TimeSpec(0, 0), libc.TimeSpec(0, 50_000_000))
    monkeypatch.setattr(listener_module, "_SLICE", soon)
    monkeypatch.setattr(arena_module, "_SWEEP_EVERY", 20_000_000)
