"""The rows: what is measured, on which points, by which figure it is judged, and who can take part.

Another row is another entry here: a function of a peer, a point and a place that returns
figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipcmap.bench.channels import Can, Peer
from ipcmap.bench.goods import OBJECTS, records_of
from ipcmap.bench.memory import channel_size
from ipcmap.bench.place import Effort, Figures, Place
from ipcmap.bench.streams import stream
from ipcmap.bench.tasks import mapped, one_by_one
from ipcmap.bench.waits import idle, round_trips

__all__ = ["FULL", "QUICK", "ROWS", "Figure", "Row"]

FULL = Effort(
    repeats=5,
    sweep_repeats=3,
    seconds=0.5,
    wake_ups=400,
    idle_seconds=3.0,
    consumers=100,
    channels=64,
    deadline=60.0,
)
QUICK = Effort(
    repeats=3,
    sweep_repeats=1,
    seconds=0.1,
    wake_ups=60,
    idle_seconds=0.5,
    consumers=20,
    channels=16,
    deadline=30.0,
)


@dataclass(frozen=True)
class Figure:
    """A figure of a measurement: its name, and how people read it."""

    name: str
    heading: str
    scale: float = 1.0
    digits: int = 0

    def text(self, value: float) -> str:
        """Return a value in the heading's unit."""
        return f"{value * self.scale:,.{self.digits}f}"


_SIZE = "bytes a record"

_RATE = Figure("records_per_second", "records/s")
_MEGABYTES = Figure("bytes_per_second", "MB/s", 1e-6)
_WALL = Figure("seconds_per_record", "µs a record", 1e6, 2)
_CPU = Figure("cpu_seconds_per_record", "CPU µs a record", 1e6, 2)
_STREAM = (_RATE, _MEGABYTES, _CPU)
_TASKS = (
    Figure("tasks_per_second", "tasks/s"),
    Figure("cpu_seconds_per_task", "CPU µs a task", 1e6, 1),
)
_TRIPS = (
    Figure("p50", "median µs", 1e6, 2),
    Figure("p99", "99 % within µs", 1e6, 1),
    Figure("p999", "99.9 % within µs", 1e6, 1),
)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What it is asked for by.
        title: What is compared, in words.
        measure: Called with a peer, a point and the place, in a process of its own.
        figures: What is shown; by the first it is judged.
        axis: What the points are.
        points: Where it is measured.
        more_is_better: Whether the first figure is to be large.
        needs: What a peer must be able to do.
    """

    name: str
    title: str
    measure: Callable[[Peer[Any], int, Place], Figures]
    figures: tuple[Figure, ...]
    axis: str = _SIZE
    points: tuple[int, ...] = (64,)
    more_is_better: bool = True
    needs: Can = Can.BYTES

    def admits(self, peer: Peer[Any], point: int) -> bool:
        """Return whether a peer can take part at a point."""
        nbytes = point if self.axis == _SIZE else 64
        return peer.shortest <= nbytes <= peer.longest and self.needs in peer.can


def _one_by_one(name: str, title: str, *points: int) -> Row:
    return Row(
        name,
        title,
        lambda peer, nbytes, place: stream(peer, records_of(nbytes), place),
        _STREAM,
        points=points,
    )


def _from_many(name: str, title: str, figures: tuple[Figure, ...], *points: int) -> Row:
    return Row(
        name,
        title,
        lambda peer, producers, place: stream(peer, records_of(64), place, producers=producers),
        figures,
        "producers",
        points,
        figures[0] is _RATE,
        Can.BYTES | Can.MANY_PRODUCERS,
    )


def _there_and_back(name: str, title: str, pause: float, needs: Can) -> Row:
    return Row(
        name,
        title,
        lambda peer, _, place: round_trips(peer, place, pause=pause),
        _TRIPS,
        more_is_better=False,
        needs=needs,
    )


_ALL = (
    _one_by_one("bytes64", "64-byte records, one by one", 64),
    _one_by_one("bytes4k", "4 KiB records, one by one", 4096),
    _one_by_one("bytes1m", "1 MiB records, one by one", 1 << 20),
    Row(
        "batch64",
        "64-byte records, in batches of 100",
        lambda peer, nbytes, place: stream(peer, records_of(nbytes), place, batches=True),
        _STREAM,
        needs=Can.BYTES | Can.BATCHES,
    ),
    Row(
        "objects",
        "tuples of an int, a float, a str and a dict, one by one",
        lambda peer, _, place: stream(peer, OBJECTS, place, objects=True),
        (_RATE, _CPU),
        "bytes of a pickle",
        (OBJECTS.nbytes,),
        needs=Can.OBJECTS,
    ),
    _there_and_back("rtt", "round trip of 64 bytes, one after the other", 0.0, Can.BYTES),
    _there_and_back(
        "rtt_idle",
        "round trip of 64 bytes, each after 2 ms of idleness",
        2e-3,
        Can.BYTES | Can.SLEEP,
    ),
    _from_many("fan", "64-byte records from 8 producers", (_RATE, _CPU), 8),
    _one_by_one("sizes", "records of growing size, one by one", *(1 << n for n in range(4, 21, 2))),
    _from_many(
        "producers",
        "64-byte records from more and more producers",
        (_WALL, _CPU, _RATE),
        1,
        2,
        4,
        8,
        16,
        32,
        64,
    ),
    Row(
        "executor",
        "tasks that do next to nothing, mapped to 2 workers",
        mapped,
        _TASKS,
        "workers",
        (2,),
        needs=Can.TASKS,
    ),
    Row(
        "roundtrip_task",
        "a task and its result, one after the other, of 2 workers",
        one_by_one,
        _TRIPS,
        "workers",
        (2,),
        more_is_better=False,
        needs=Can.TASKS,
    ),
    Row(
        "idle",
        "CPU time of consumers that wait for nothing",
        lambda peer, _, place: idle(peer, place),
        (Figure("cpu_share", "% of a CPU", 100, 3), Figure("consumers", "consumers")),
        more_is_better=False,
        needs=Can.SLEEP | Can.MANY_CONSUMERS,
    ),
    Row(
        "memory",
        "memory of a channel that was never used",
        channel_size,
        (
            Figure("nbytes", "KiB a channel", 1 / 1024, 1),
            Figure("descriptors", "descriptors", 1, 1),
        ),
        "bytes of capacity",
        (1 << 20, 16 << 20),
        more_is_better=False,
        needs=Can.ONE_PROCESS,
    ),
)

ROWS = {row.name: row for row in _ALL}
