"""Pictures of a report: one panel for each thing that was measured, one colour for each peer.

matplotlib is optional, and imported when there is something to draw; without pyplot, so
that no window and no global state is involved.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ipcmap.bench.runner import Point, Report, Result, RowReport

__all__ = ["SUFFIXES", "draw"]

SUFFIXES = (".svg", ".png")

# ipcmap's are strong and the others' muted; each keeps its colour in every panel.
_COLOURS = {
    "ipcmap.Ring": "#d62728",
    "ipcmap.Ring, lease": "#ff7f0e",
    "multiprocessing.Queue": "#1f4e79",
    "multiprocessing.SimpleQueue": "#3f8fca",
    "multiprocessing.Pipe": "#8fc3e8",
    "multiprocessing Manager().Queue": "#9a9a9a",
    "faster-fifo": "#2e7d32",
    "faster-fifo, raw bytes": "#8bc34a",
    "pyzmq, ipc": "#8e5ea2",
    "posix_ipc.MessageQueue": "#8d6e63",
    "iceoryx2, polling": "#00a39b",
}
_OTHER = "#444444"
_MARKERS = dict(zip(_COLOURS, "oDsv^<H8ph>", strict=True))

_PANEL = 5.4, 3.9  # inches
_COLUMNS = 3
_DOTS = 150  # an inch, in a .png

_PERCENTILES = (("p50", "o", "median"), ("p99", "s", "99 %"), ("p999", "D", "99.9 %"))

_FEW_DECADES = 30.0  # an axis that spans less has labels between 1, 10 and 100 too

_SIZE = "record size"

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
    lines = -(-max(1, len(panels)) // columns)
    style = {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        figure = figures.Figure(
            figsize=(_PANEL[0] * max(2, columns), _PANEL[1] * lines + 1.5), layout="constrained"
        )
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            title, paint = panel
            axes.set_title(title, loc="left", fontweight="bold")
            paint(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        _legend(figure, report)
        figure.suptitle(_caption(report), fontsize=9, color="#555555")
        figure.savefig(file, format=file.suffix[1:], dpi=_DOTS, facecolor="white")


def _caption(report: Report) -> str:
    quick = ", --quick: a look, and no figures to quote" if report.quick else ""
    text = f"ipcmap {report.version}, {report.engine} engine{quick}\n{report.machine.text()}"
    return text.replace("$", r"\$")


def _legend(figure: Any, report: Report) -> None:
    lines = import_module("matplotlib.lines")
    shown = {result.peer for row in report.rows for p in row.points for result in p.results}
    names = [name for name in _COLOURS if name in shown] + sorted(shown - {*_COLOURS})
    handles = [
        lines.Line2D([], [], **_look(name), label=name, markeredgecolor="white") for name in names
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def _look(peer: str) -> dict[str, Any]:
    return {
        "color": _COLOURS.get(peer, _OTHER),
        "marker": _MARKERS.get(peer, "."),
        "linewidth": 2.6 if peer.startswith("ipcmap") else 1.4,
        "markersize": 7 if peer.startswith("ipcmap") else 6,
    }


# Panels


def _panels(rows: dict[str, RowReport]) -> list[_Panel]:
    """Return the panels that there are rows for."""
    sizes = _points(rows, "sizes", "bytes64", "bytes4k", "bytes1m")
    producers = _points(rows, "producers", "fan")
    panels: list[_Panel] = []
    if sizes:
        panels += [
            (
                "Throughput by record size",
                lambda axes: _lines(axes, sizes, "records_per_second", 1, "records a second"),
            ),
            (
                "CPU time of all processes by record size",
                lambda axes: _lines(axes, sizes, "cpu_seconds_per_record", 1e6, "CPU µs a record"),
            ),
        ]
    if "batch64" in rows:
        panels.append(
            (
                "64-byte records, in batches of 100",
                lambda axes: _bars(
                    axes,
                    rows["batch64"].points[0],
                    "records_per_second",
                    1e-6,
                    "million records a second",
                ),
            )
        )
    for name, title in (
        ("rtt", "Round trip of 64 bytes, busy"),
        ("rtt_idle", "Round trip of 64 bytes, after 2 ms idle"),
    ):
        if name in rows:
            panels.append((title, lambda axes, row=rows[name]: _trips(axes, row.points[0])))  # type: ignore[misc]
    if producers:
        panels.append(
            (
                "Cost of 64 bytes by producers",
                lambda axes: _lines(
                    axes, producers, "seconds_per_record", 1e6, "µs a record", "producers"
                ),
            )
        )
    if "idle" in rows:
        panels.append(("", lambda axes: _idle(axes, rows["idle"].points[0])))
    if "memory" in rows:
        for point in rows["memory"].points:
            panels.append(
                (
                    f"Memory of an unused channel, {_bytes(point.x)}",
                    lambda axes, point=point: _bars(
                        axes, point, "nbytes", 1 / 1024, "KiB", log=True
                    ),  # type: ignore[misc]
                )
            )
    return panels


def _points(rows: dict[str, RowReport], *names: str) -> list[Point]:
    """Return the points of rows; where two have the same, those of the row that is named first."""
    points: dict[int, Point] = {}
    for name in names:
        for point in rows[name].points if name in rows else ():
            points.setdefault(point.x, point)
    return [points[x] for x in sorted(points)]


def _lines(
    axes: Any,
    points: list[Point],
    figure: str,
    scale: float,
    label: str,
    of: str = _SIZE,
) -> None:
    if len(points) == 1:
        at_size = f", {_bytes(points[0].x)}" if of == _SIZE else f", {points[0].x} producers"
        axes.set_title(
            axes.get_title(loc="left").partition(" by ")[0] + at_size, loc="left", fontweight="bold"
        )
        _bars(axes, points[0], figure, scale, label)
        return
    names = dict.fromkeys(result.peer for point in points for result in point.results)
    for name in sorted(names, key=_ours_last):
        at = [(p.x, r.figures[figure] * scale) for p in points for r in p.results if r.peer == name]
        axes.plot(*zip(*at, strict=True), **_look(name), markeredgecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [point.x for point in points]
    if of == _SIZE:
        axes.set_xticks(
            ticks, [_bytes(x).removesuffix("iB").removesuffix(" B").replace(" ", "") for x in ticks]
        )
    else:
        axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set_xlabel("bytes a record" if of == _SIZE else of)
    axes.set_ylabel(label)
    _plain(axes.yaxis)


def _bars(
    axes: Any, point: Point, figure: str, scale: float, label: str, *, log: bool = False
) -> None:
    """One bar for each peer, the best on top, with its value beside it."""
    results = point.results[::-1]
    values = [result.figures[figure] * scale for result in results]
    colours = [_COLOURS.get(result.peer, _OTHER) for result in results]
    bars = axes.barh(range(len(results)), values, color=colours, height=0.65)
    texts = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values]
    axes.bar_label(bars, texts, padding=4)
    longest = max(values, default=0) or 1.0
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min([v for v in values if v > 0], default=1) / 3, 5 * longest)
    else:
        axes.set_xlim(0, 1.25 * longest)
        axes.xaxis.set_major_locator(import_module("matplotlib.ticker").MaxNLocator(5))
    _plain(axes.xaxis)
    axes.set_xlabel(label)
    _peers_at_the_side(axes, results)


def _idle(axes: Any, point: Point) -> None:
    count = point.results[0].figures["consumers"] if point.results else 0
    axes.set_title(f"CPU of {count:.0f} consumers that wait", loc="left", fontweight="bold")
    _bars(axes, point, "cpu_share", 100, "% of one CPU")


def _trips(axes: Any, point: Point) -> None:
    """Median and tails of each peer on one line, on a logarithmic scale."""
    results = point.results[::-1]
    for place, result in enumerate(results):
        look = _look(result.peer)
        values = [result.figures[name] * 1e6 for name, _, _ in _PERCENTILES]
        axes.plot(values, [place] * len(values), color=look["color"], linewidth=look["linewidth"])
        for value, (_, marker, _) in zip(values, _PERCENTILES, strict=True):
            axes.plot(
                [value], [place], marker, color=look["color"], markersize=8, markeredgecolor="white"
            )
    for _, marker, label in _PERCENTILES:
        axes.plot([], [], marker, color=_OTHER, label=label, markeredgecolor="white")
    axes.legend(frameon=False, fontsize=9, loc="best")
    axes.set_xscale("log")
    axes.set_xlabel("µs")
    _plain(axes.xaxis)
    _peers_at_the_side(axes, results)


def _peers_at_the_side(axes: Any, results: list[Result]) -> None:
    names = [result.peer.replace("multiprocessing", "mp") for result in results]
    axes.set_yticks(range(len(results)), names, fontsize=9)
    axes.grid(visible=False, axis="y")


def _plain(axis: Any) -> None:
    """Write numbers as people do, 10 and 1k in place of powers, and not too many of them."""
    ticker = import_module("matplotlib.ticker")
    low, high = sorted(axis.get_view_interval())
    few = low > 0 and high / low < _FEW_DECADES
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_formatter(
        ticker.FuncFormatter(lambda value, _: _number(value) if f"{value:e}"[0] in "25" else "")
        if few
        else ticker.NullFormatter()
    )


def _number(value: float) -> str:
    for unit, size in ("M", 1e6), ("k", 1e3):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _bytes(count: int) -> str:
    for unit, size in ("MiB", 1 << 20), ("KiB", 1 << 10):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count} B"


def _ours_last(name: str) -> tuple[bool, str]:
    return name.startswith("ipcmap"), name
