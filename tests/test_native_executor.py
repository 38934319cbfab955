"""What an executor does on the native engine alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

import executors as work
from ipcmap import Arena, BusyError, ProcessPoolExecutor, Ring


@pytest.fixture
def arena() -> Arena:
    """An arena of that engine."""
    return Arena(256 << 20, backend="native")


@pytest.fixture
def executor(arena: Arena) -> Iterator[ProcessPoolExecutor]:
    """An executor of two workers."""
    with ProcessPoolExecutor(2, arena=arena) as executor:
        yield executor


def test_a_signal_handler_does_not_wait_for_the_end_of_what_it_interrupted(
    executor: ProcessPoolExecutor, arena: Arena
) -> None:
    """The end waits for whoever takes the answers; the handler is told so."""
    said, gate = Ring(arena=arena), Ring(arena=arena)
    task = executor.submit(work.say_and_wait, said, gate, 7)
    said.get()
    refused: list[bool] = []

    def handle(number: int, frame: object) -> None:
        if executor._dispatcher._leader == threading.get_ident():
            signal.setitimer(signal.ITIMER_REAL, 0)
            with pytest.raises(BusyError):
                executor.shutdown()
            refused.append(True)
            gate.put(b"")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        assert task.result() == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert refused
