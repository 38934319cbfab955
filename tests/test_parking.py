"""Parking places: a semaphore that wakes, and carries no truth."""

from __future__ import annotations

import ctypes
import signal
import time
from types import FrameType

import pytest

from children import Fork
from ipcmap import Mapping
from ipcmap._core import reference_parking as parking


class Place:
    """A mapping with a parking place at its start."""

    def __init__(self) -> None:
        self.mapping = Mapping.anonymous(4096)
        self.address = self.mapping.address
        parking.initialise(self.address)


@pytest.fixture
def place() -> Place:
    """A fresh parking place, shared with children forked from here on."""
    return Place()


def test_a_sleeper_is_woken_from_another_process(place: Place, fork: Fork) -> None:
    """A token left before the sleep ends it as well as one that comes during it."""
    child = fork(parking.wake, place.address)

    assert parking.sleep(place.address, 30)
    assert child.wait() == 0


def test_no_token_is_added_to_one_that_lies_there(place: Place) -> None:
    """However often others wake, a stale token costs one look and no more."""
    for _ in range(5):
        parking.wake(place.address)

    assert parking.sleep(place.address, 0)
    assert not parking.sleep(place.address, 0)


def test_a_sleep_in_vain_lasts_its_time(place: Place) -> None:
    """It ends with its slice, not before."""
    began = time.monotonic()

    assert not parking.sleep(place.address, 0.2)
    assert time.monotonic() - began >= 0.19  # the two clocks may differ a little


def test_what_a_signal_handler_raises_comes_out_unchanged(place: Place) -> None:
    """It runs at once, and its exception ends the sleep; no token is gone."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyError("mine")

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyError, match="mine"):
            parking.sleep(place.address, 30)
    finally:
        signal.signal(signal.SIGALRM, previous)

    parking.wake(place.address)
    assert parking.sleep(place.address, 0)


def test_a_handler_that_returns_ends_the_sleep_as_if_in_vain(place: Place) -> None:
    """The caller looks again, and sleeps on if there is nothing to do."""
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        assert not parking.sleep(place.address, 30)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_a_handler_that_changes_errno_changes_nothing(place: Place) -> None:
    """The sleep goes by what the C library returned."""
    library = ctypes.CDLL(None, use_errno=True)
    previous = signal.signal(signal.SIGALRM, lambda *_: library.close(-1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        assert not parking.sleep(place.address, 30)
    finally:
        signal.signal(signal.SIGALRM, previous)
