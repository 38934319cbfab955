"""What tests of conditions, events, barriers and of the lock for readers and writers share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, cast

import ipcmap
from ipcmap._core import reference_rooms
from ipcmap._core import room_layout as at
from ring_harness import Trap

InRoom = ipcmap.Condition | ipcmap.Event | ipcmap.Barrier | ipcmap.RWLock


def set_trap(room: InRoom, store: int, before: bool, act: Callable[[], object]) -> Trap:
    """Act at the n-th store of a word from here on."""
    trap = Trap(room._core._words, store, before, act)
    room._core._words = cast(Any, trap)
    return trap


def members(room: InRoom) -> list[reference_rooms.Member]:
    """Return who is there, waiting or not."""
    return room._core._members()


def wait_for_members(room: InRoom, count: int) -> None:
    """Wait until so many are there."""
    while len(members(room)) < count:
        os.sched_yield()


def in_a_thread(call: Callable[[], object]) -> object:
    """Return what a call comes to in another thread, an exception too."""
    came: list[object] = []

    def run() -> None:
        try:
            came.append(call())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return came[0]


def last_ticket(room: InRoom) -> int:
    """Return what changes whenever somebody comes."""
    return int(room._core._words[at.LAST])


def wait_for_arrival(room: InRoom, before: int) -> None:
    """Wait until somebody has come since ``last_ticket`` was this."""
    while last_ticket(room) == before:
        os.sched_yield()
    room._core.sweep(0)  # enters the section: who came has left it
