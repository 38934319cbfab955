"""A run: peers in turn, repeats, medians, ratios to the best of the others.

Repeats are the outermost loop and peers the innermost, so that whatever slows the
machine for a while slows all of them. Who fails once is out of that row, and named.
"""

from __future__ import annotations

import glob
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from types import FrameType
from typing import Any

from ipcmap._core import backend
from ipcmap.bench.channels import STANDARD, Peer
from ipcmap.bench.installed import INSTALLED, SHM_PREFIX
from ipcmap.bench.machine import Machine, describe
from ipcmap.bench.place import Effort, Failure, Figures, measure_apart
from ipcmap.bench.pools import POOLS
from ipcmap.bench.rows import Row

__all__ = [
    "SCHEMA",
    "Missing",
    "Outcome",
    "Point",
    "Report",
    "Result",
    "RowReport",
    "find_peers",
    "run_row",
    "scratch",
    "start_report",
]

SCHEMA = 1  # of the JSON; grows when a field changes its meaning or goes

Advance = Callable[[str, int, int], None]
"""Called with the name of a row, the measurements made so far, and how many there will be."""


@dataclass(frozen=True)
class Missing:
    """A peer that cannot be imported, and what installs it."""

    peer: str
    module: str
    way_out: str


def find_peers() -> tuple[list[Peer[Any]], list[Missing]]:
    """Return who is here, and who is not."""
    here, missing = [], []
    for peer in (*STANDARD, *INSTALLED, *POOLS):
        if not peer.module or util.find_spec(peer.module) is not None:
            here.append(peer)
        else:
            missing.append(Missing(peer.name, peer.module, f"pip install {peer.install}"))
    return here, missing


def version_of(peer: Peer[Any]) -> str:
    """Return the version of a peer's library."""
    if not peer.module:
        return metadata.version("ipcmap") if peer.ours else platform.python_version()
    for name in metadata.packages_distributions().get(peer.module, []):
        return metadata.version(name)
    return "unknown"


@dataclass(frozen=True)
class Result:
    """What a peer came to at a point: the median of each figure, and every value of the first."""

    peer: str
    ours: bool
    figures: Figures
    values: list[float]
    ratio: float | None = None  # to the best of the others, above 1 = better; ipcmap's alone


@dataclass(frozen=True)
class Point:
    """A point of a row, best peer first."""

    x: int
    results: list[Result]
    best_peer: str | None


@dataclass(frozen=True)
class Outcome:
    """Why a peer is not among the results of a row."""

    peer: str
    x: int
    kind: str
    reason: str


@dataclass(frozen=True)
class RowReport:
    """What a row came to."""

    name: str
    title: str
    axis: str
    figure: str
    more_is_better: bool
    repeats: int
    seconds: float
    points: list[Point]
    failures: list[Outcome]

    @property
    def correct(self) -> bool:
        """Whether everything that was sent arrived, as it was and in time."""
        return all(failure.kind == "left out" for failure in self.failures)


@dataclass(frozen=True)
class Report:
    """What the benchmark found."""

    version: str
    engine: str
    quick: bool
    machine: Machine
    peers: dict[str, str]
    missing: list[Missing]
    rows: list[RowReport] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        """Whether every row is."""
        return all(row.correct for row in self.rows)

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values, for JSON."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "correct": self.correct,
        }


def start_report(peers: Sequence[Peer[Any]], missing: list[Missing], *, quick: bool) -> Report:
    """Return a report without rows."""
    versions = {peer.name: version_of(peer) for peer in peers}
    return Report(metadata.version("ipcmap"), backend, quick, describe(), versions, missing)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for what peers leave in files; remove it, and what they leave in /dev/shm.

    In the block SIGTERM raises SystemExit, so that it removes them too.
    """
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        with tempfile.TemporaryDirectory(prefix="ipcmap-bench-") as folder:
            try:
                yield Path(folder)
            finally:
                name = glob.escape(os.path.basename(folder))
                for left in glob.glob(f"/dev/shm/{SHM_PREFIX}{name}_*"):
                    os.unlink(left)
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def run_row(
    row: Row, peers: Sequence[Peer[Any]], effort: Effort, folder: Path, advance: Advance
) -> RowReport:
    """Measure a row."""
    repeats = effort.repeats if len(row.points) == 1 else effort.sweep_repeats
    entries = [(x, peer) for x in row.points for peer in peers if row.admits(peer, x)]
    found: dict[tuple[int, str], list[Figures]] = {}
    failures: dict[str, Outcome] = {}
    total, done, began = repeats * len(entries), 0, time.perf_counter()
    for _ in range(repeats):
        for x, peer in entries:
            if peer.name not in failures:
                measured = measure_apart(partial(row.measure, peer, x), effort, folder)
                if isinstance(measured, Failure):
                    failures[peer.name] = Outcome(peer.name, x, measured.kind, measured.reason)
                else:
                    found.setdefault((x, peer.name), []).append(measured)
            done += 1
            advance(row.name, done, total)
    return RowReport(
        row.name,
        row.title,
        row.axis,
        row.figures[0].name,
        row.more_is_better,
        repeats,
        time.perf_counter() - began,
        [_point(row, x, peers, found, failures) for x in row.points],
        list(failures.values()),
    )


def _point(
    row: Row,
    x: int,
    peers: Sequence[Peer[Any]],
    found: dict[tuple[int, str], list[Figures]],
    failures: dict[str, Outcome],
) -> Point:
    name = row.figures[0].name
    medians: dict[str, Figures] = {}
    for peer in peers:
        runs = found.get((x, peer.name))
        if runs and peer.name not in failures:
            medians[peer.name] = {
                key: statistics.median(run[key] for run in runs) for key in runs[0]
            }
    order = sorted(medians, key=lambda peer: medians[peer][name], reverse=row.more_is_better)
    ours = {peer.name for peer in peers if peer.ours}
    best_peer = next((peer for peer in order if peer not in ours), None)
    best = medians[best_peer][name] if best_peer else None
    return Point(
        x,
        [
            Result(
                peer,
                peer in ours,
                medians[peer],
                [run[name] for run in found[x, peer]],
                _ratio(medians[peer][name], best, row.more_is_better) if peer in ours else None,
            )
            for peer in order
        ],
        best_peer,
    )


def _ratio(ours: float, best: float | None, more_is_better: bool) -> float | None:
    if best is None:
        return None
    above, below = (ours, best) if more_is_better else (best, ours)
    return above / below if below else None
