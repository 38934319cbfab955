"""What a channel takes before anything was put into it.

Weighed is the proportional set size of a process that opens several: shared pages and
private ones, and Python's own objects. Buffers of the kernel (of pipes, sockets and POSIX
queues) are in nobody's set; the descriptors that stand for them are counted.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

from ipcmap.bench.channels import Channel, Peer, Terms, Unfit
from ipcmap.bench.place import Figures, Place

__all__ = ["channel_size"]

_NBYTES = 64


def channel_size(peer: Peer[Channel], capacity: int, place: Place) -> Figures:
    """Measure bytes and descriptors that a channel of ``capacity`` bytes takes, both ends open."""
    terms = Terms(_NBYTES, place.folder, capacity=capacity)
    kept: list[object] = []

    def make(count: int) -> None:
        for _ in range(count):
            channel = peer.open(terms)
            kept.append((channel, channel.sender(), channel.receiver()))

    make(1)  # with all that is imported and made once
    gc.collect()
    nbytes, descriptors = _set_size(), len(os.listdir("/proc/self/fd"))
    make(place.effort.channels)
    gc.collect()
    return {
        "nbytes": max(0, _set_size() - nbytes) / place.effort.channels,
        "descriptors": (len(os.listdir("/proc/self/fd")) - descriptors) / place.effort.channels,
    }


def _set_size() -> int:
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise Unfit(f"the kernel does not tell the size of a process: {error}") from None
    kilobytes = next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))
    return int(kilobytes) * 1024
