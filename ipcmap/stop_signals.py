"""SIGTERM and Ctrl-C as a wish to stop, for as long as somebody waits in a block."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """For the time of a ``with`` block, call ``stop`` at SIGTERM and at SIGINT.

    In the first thread only, which alone has signal handlers. A signal that is ignored
    stays so, and so does any handler of SIGINT but Python's own. A SIGINT that came is
    raised at the end of the block as KeyboardInterrupt, unless another exception is.

    Args:
        stop: Called by the handler, with whether it is not the first signal.
    """

    def __init__(self, stop: Callable[[bool], object]) -> None:
        self._stop, self._owner = stop, 0
        self._came: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._owner = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        before: dict[int, Any] = {
            number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
        }
        # None = a handler that is not Python's, and could not be put back.
        if before[signal.SIGTERM] in (signal.SIG_IGN, None):
            del before[signal.SIGTERM]
        if before[signal.SIGINT] is not signal.default_int_handler:
            del before[signal.SIGINT]
        self._before |= before
        for number in before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:
            self._came.append(number)
            self._stop(len(self._came) > 1)
        else:  # a child that has no handler of its own yet
            signal.signal(number, self._before[number])
            signal.raise_signal(number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if signal.SIGINT in self._came and error is None:
            raise KeyboardInterrupt
