"""Pictures of a report: one panel for each thing that was measured.

matplotlib is optional, and imported when there is something to draw; without pyplot, so
that no window and no global state is involved.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ipcmap.bench.panels import bars, in_bytes, lines, trips
from ipcmap.bench.runner import Point, Report, RowReport

__all__ = ["SUFFIXES", "draw"]

SUFFIXES = (".svg", ".png")

_PANEL = 6.2, 4.2  # inches
_COLUMNS = 2
_DOTS = 110  # an inch, in a .png

_STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titlepad": 24,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1aa",
    "axes.labelcolor": "#3a4048",
    "xtick.color": "#3a4048",
    "ytick.color": "#3a4048",
    "text.color": "#1f2328",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "ipcmap",  # the same picture of the same figures
}

_Panel = tuple[str, Callable[[Any], None]]


def draw(report: Report, file: Path) -> None:
    """Draw what a report has; the suffix of ``file`` says how.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    matplotlib, figures = import_module("matplotlib"), import_module("matplotlib.figure")
    panels = _panels({row.name: row for row in report.rows})
    columns = min(_COLUMNS, max(1, len(panels)))
    high = -(-max(1, len(panels)) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(
            figsize=(_PANEL[0] * columns, _PANEL[1] * high + 0.4), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        grid = figure.subplots(high, columns, squeeze=False)
        for axes, (title, paint) in zip(grid.flat, panels, strict=False):
            axes.set_title(title, loc="left", fontweight="bold")
            paint(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel(_caption(report), fontsize=8.5, color="#6f7782", x=0.01, ha="left")
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(
            file, format=file.suffix[1:], dpi=_DOTS, facecolor="white", metadata=metadata
        )


def _caption(report: Report) -> str:
    quick = ", --quick: a look, and no figures to quote" if report.quick else ""
    text = f"ipcmap {report.version}, {report.engine} engine{quick}; {report.machine.text()}"
    return text.replace("$", r"\$")


def _panels(rows: dict[str, RowReport]) -> list[_Panel]:
    """Return the panels that there are rows for."""
    panels = [
        *_curves("Throughput", _points(rows, "sizes", "bytes64", "bytes4k", "bytes1m"), _SIZES),
        *_curves("CPU time", _points(rows, "sizes", "bytes64", "bytes4k", "bytes1m"), _CPU),
    ]
    for name, title, figure, scale, label in (
        ("batch64", "64-byte records in batches of 100", "records_per_second", 1e-6, _MILLIONS),
        ("objects", "Small tuples, one by one", "records_per_second", 1e-6, "million a second"),
    ):
        if name in rows:
            panels.append((title, _bar(rows[name].points[0], figure, scale, label)))
    for name, title in (
        ("rtt", "Round trip of 64 bytes"),
        ("rtt_idle", "The same, after 2 ms of idleness"),
        ("roundtrip_task", "A task and its result"),
    ):
        if name in rows:
            panels.append((title, _trip(rows[name].points[0])))
    panels += _curves("Cost of a 64-byte record", _points(rows, "producers", "fan"), _PRODUCERS)
    if "executor" in rows:
        point = rows["executor"].points[0]
        panels.append(
            ("Tasks, 2 workers", _bar(point, "tasks_per_second", 1e-3, "thousand tasks a second"))
        )
    if "idle" in rows:
        point = rows["idle"].points[0]
        count = point.results[0].figures["consumers"] if point.results else 0
        title = f"CPU of {count:.0f} consumers that wait"
        panels.append((title, _bar(point, "cpu_share", 100, "% of one CPU")))
    for point in rows["memory"].points if "memory" in rows else ():
        title = f"Memory of an unused channel of {in_bytes(point.x)}"
        panels.append((title, _bar(point, "nbytes", 1 / 1024, "KiB", log_axis=True)))
    return panels


_MILLIONS = "million records a second"
_SIZES = "records_per_second", 1.0, "records a second", "bytes a record"
_CPU = "cpu_seconds_per_record", 1e6, "CPU µs a record, all processes", "bytes a record"
_PRODUCERS = "seconds_per_record", 1e6, "µs a record", "producers"


def _curves(title: str, points: list[Point], what: tuple[str, float, str, str]) -> list[_Panel]:
    figure, scale, label, of = what
    if not points:
        return []
    if len(points) == 1:
        at = in_bytes(points[0].x) if "byte" in of else f"{points[0].x} {of}"
        return [(f"{title}, {at}", _bar(points[0], figure, scale, label))]
    over = "record size" if "byte" in of else of
    return [(f"{title} by {over}", lambda axes: lines(axes, points, figure, scale, label, of))]


def _bar(
    point: Point, figure: str, scale: float, label: str, *, log_axis: bool = False
) -> Callable[[Any], None]:
    return lambda axes: bars(axes, point, figure, scale, label, log_axis=log_axis)


def _trip(point: Point) -> Callable[[Any], None]:
    return lambda axes: trips(axes, point)


def _points(rows: dict[str, RowReport], *names: str) -> list[Point]:
    """Return the points of rows; where two have the same, those of the row that is named first."""
    points: dict[int, Point] = {}
    for name in names:
        for point in rows[name].points if name in rows else ():
            points.setdefault(point.x, point)
    return [points[x] for x in sorted(points)]
