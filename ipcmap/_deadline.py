"""A timeout turned into a moment of the monotonic clock.

Timeouts are seconds: ``None`` = for ever, 0 or less = do not wait. A step of the
wall clock moves none of them.
"""

from __future__ import annotations

import math
import time

__all__ = ["Deadline"]


class Deadline:
    """When to stop waiting."""

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        if timeout is None:
            self._at = math.inf
        elif math.isnan(timeout):
            raise ValueError("timeout must be a number of seconds or None: timeout=nan")
        else:
            self._at = time.monotonic() + timeout

    def remaining(self) -> float:
        """Return the seconds that are left, 0.0 once it has passed."""
        return max(0.0, self._at - time.monotonic())

    def slice(self, longest: float) -> float:
        """Return the seconds to wait now: what is left, at most ``longest``."""
        return min(longest, self.remaining())
