"""What tests do with a public ring, without waiting."""

from __future__ import annotations

import queue

from ipcmap import Arena, Ring, default_arena


def taken(ring: Ring) -> bytes | None:
    """Take one record; ``None`` = there is none."""
    try:
        return ring.get(0)
    except queue.Empty:
        return None


def drained(ring: Ring) -> list[bytes]:
    """Take all that is there."""
    return list(iter(lambda: taken(ring), None))


def fill(ring: Ring, record: bytes = b"full") -> int:
    """Put until there is no room; return how many went in."""
    put = 0
    try:
        while True:
            ring.put(record, 0)
            put += 1
    except queue.Full:
        return put


def blocks(arena: Arena | None = None) -> int:
    """Count the blocks in use, after a sweep; of the default arena where none is named."""
    arena = arena or default_arena()
    arena.sweep()
    return arena.statistics().blocks
