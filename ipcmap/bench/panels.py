"""The kinds of panel in a picture: lines over sizes or counts, bars, and round trips with their tails.

All are labelled at their left, so that no legend has to be looked up. The colours can be told apart by who sees few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import log
from typing import Any

from ipcmap.bench.runner import Point, Result

__all__ = ["bars", "in_bytes", "lines", "trips"]

# ipcmap's are warm and strong, the others' cold or grey; each keeps its own in every panel.
_COLOURS = {
    "ipcmap.Ring": "#d55e00",
    "ipcmap.Ring, lease": "#e69f00",
    "ipcmap.Queue": "#d55e00",
    "ipcmap.Pipe": "#a8325e",
    "ipcmap.ProcessPoolExecutor": "#d55e00",
    "ipcmap.Pool": "#e69f00",
    "multiprocessing.Queue": "#0b4f7d",
    "multiprocessing.SimpleQueue": "#2e86c1",
    "multiprocessing.Pipe": "#74b3de",
    "multiprocessing Manager().Queue": "#8a8f98",
    "faster-fifo": "#00664b",
    "faster-fifo, raw bytes": "#2fa084",
    "pyzmq, ipc": "#6b5b95",
    "posix_ipc.MessageQueue": "#5f5f5f",
    "iceoryx2, polling": "#1a1a1a",
}
_OTHER = "#6f7782"
_MARKERS = dict(zip(_COLOURS, "oDoPoDsv^<H8ph*", strict=True))
_GREY = "#6f7782"

_FEW_DECADES = 30.0  # an axis that spans less has labels between 1, 10 and 100 too
_LABEL_GAP = 0.062  # of a panel's height, between two labels of lines


def _short(peer: str) -> str:
    return peer.replace("multiprocessing Manager()", "mp Manager()").replace(
        "multiprocessing.", "mp."
    )


def _is_ours(peer: str) -> bool:
    return peer.startswith("ipcmap")


def _colour(peer: str) -> str:
    return _COLOURS.get(peer, _OTHER)


# Lines


def lines(
    axes: Any, points: Sequence[Point], figure: str, scale: float, label: str, of: str
) -> None:
    """Draw a line for each peer, both axes logarithmic, labelled at its end."""
    names = dict.fromkeys(result.peer for point in points for result in point.results)
    begins, ends = {}, {}
    for name in sorted(names, key=lambda name: (_is_ours(name), name)):
        at = [(p.x, r.figures[figure] * scale) for p in points for r in p.results if r.peer == name]
        ours = _is_ours(name)
        axes.plot(
            *zip(*at, strict=True),
            color=_colour(name),
            marker=_MARKERS.get(name, "."),
            linewidth=2.8 if ours else 1.3,
            markersize=7 if ours else 5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            zorder=3 if ours else 2,
        )
        begins[name], ends[name] = at[0], at[-1]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [point.x for point in points]
    in_size = "byte" in of
    axes.set_xticks(ticks, [_short_bytes(x) if in_size else str(x) for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(of)
    axes.yaxis.tick_right()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.text(0, 1.03, label, transform=axes.transAxes, fontsize=9.5, color=_GREY)
    _plain(axes.yaxis)
    first = min(ticks)
    _label_beginnings(axes, {name: y for name, (x, y) in begins.items() if x == first}, first)
    for name, begin in begins.items():
        if begin[0] != first:
            _write(axes, name, ends[name], (4, 9), "offset points", ha="right", va="bottom")


def _label_beginnings(axes: Any, begins: dict[str, float], first: float) -> None:
    """Write each name at the left, as near to its line as the others let it."""
    low, high = axes.get_ylim()
    order = sorted(begins, key=lambda name: begins[name])
    places = _spread([log(begins[name] / low) / log(high / low) for name in order])
    for name, place in zip(order, places, strict=True):
        _write(
            axes,
            name,
            (first, begins[name]),
            (-0.045, place),
            "axes fraction",
            ha="right",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": _colour(name),
                "linewidth": 0.7,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def _write(
    axes: Any,
    peer: str,
    at: tuple[float, float],
    place: tuple[float, float],
    unit: str,
    **options: Any,
) -> None:
    axes.annotate(
        _short(peer),
        at,
        place,
        textcoords=unit,
        fontsize=9.5,
        fontweight="bold" if _is_ours(peer) else "normal",
        color=_colour(peer),
        **options,
    )


def _spread(heights: Sequence[float]) -> list[float]:
    """Return heights, from the lowest up, moved as little as keeps a gap between them."""
    groups: list[list[float]] = []  # each: the sum of its heights; how many
    for height in heights:
        groups.append([height, 1.0])
        while len(groups) > 1 and _top(groups[-2]) + _LABEL_GAP > _bottom(groups[-1]):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
        if _bottom(groups[-1]) < 0.0:
            groups[-1][0] = _LABEL_GAP * groups[-1][1] * (groups[-1][1] - 1) / 2
    return [_bottom(group) + _LABEL_GAP * n for group in groups for n in range(int(group[1]))]


def _bottom(group: Sequence[float]) -> float:
    return group[0] / group[1] - _LABEL_GAP * (group[1] - 1) / 2


def _top(group: Sequence[float]) -> float:
    return group[0] / group[1] + _LABEL_GAP * (group[1] - 1) / 2


# Bars


def bars(
    axes: Any, point: Point, figure: str, scale: float, label: str, *, log_axis: bool = False
) -> None:
    """Draw a bar for each peer, the best on top, with its value beside it."""
    results = point.results[::-1]
    values = [result.figures[figure] * scale for result in results]
    drawn = axes.barh(
        range(len(results)), values, color=[_colour(result.peer) for result in results], height=0.62
    )
    axes.bar_label(drawn, [_value(value) for value in values], padding=4, fontsize=9.5)
    longest = max(values, default=0) or 1.0
    if log_axis:
        axes.set_xscale("log")
        axes.set_xlim(min([v for v in values if v > 0], default=1) / 3, 5 * longest)
    else:
        axes.set_xlim(0, 1.2 * longest)
        axes.xaxis.set_major_locator(import_module("matplotlib.ticker").MaxNLocator(5))
    _plain(axes.xaxis)
    axes.set_xlabel(label)
    _peers_at_the_side(axes, results)


# Round trips

_PERCENTILES = ("p50", "o", "median"), ("p99", "|", "99 % within"), ("p999", ">", "99.9 % within")


def trips(axes: Any, point: Point) -> None:
    """Draw median and tails of each peer on one line, on a logarithmic scale."""
    results = point.results[::-1]
    for place, result in enumerate(results):
        colour = _colour(result.peer)
        values = [result.figures[name] * 1e6 for name, _, _ in _PERCENTILES]
        axes.plot(
            values,
            [place] * len(values),
            color=colour,
            linewidth=2.6 if result.ours else 1.3,
            zorder=2,
        )
        for value, (_, marker, _) in zip(values, _PERCENTILES, strict=True):
            axes.plot(
                [value],
                [place],
                marker,
                color=colour,
                markersize=10 if marker == "|" else 7,
                markeredgewidth=1.8 if marker == "|" else 0,
                zorder=3,
            )
        axes.annotate(
            _value(values[0]),
            (values[0], place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=colour,
        )
    for _, marker, label in _PERCENTILES:
        axes.plot(
            [], [], marker, color=_GREY, label=label, markeredgewidth=1.8 if marker == "|" else 0
        )
    axes.legend(
        frameon=False,
        fontsize=9,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=3,
        handletextpad=0.2,
        columnspacing=1.0,
        borderpad=0,
    )
    axes.set_xscale("log")
    axes.set_ylim(-0.6, len(results) - 0.2)
    axes.set_xlabel("µs")
    _plain(axes.xaxis)
    _peers_at_the_side(axes, results)


# Names and numbers


def _peers_at_the_side(axes: Any, results: Sequence[Result]) -> None:
    axes.set_yticks(range(len(results)), [_short(result.peer) for result in results], fontsize=9.5)
    for text, result in zip(axes.get_yticklabels(), results, strict=True):
        text.set_fontweight("bold" if result.ours else "normal")
    axes.tick_params(axis="y", length=0)
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


def _value(value: float) -> str:
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _number(value: float) -> str:
    for unit, size in ("M", 1e6), ("k", 1e3):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def in_bytes(count: int) -> str:
    """Return a number of bytes as people write it: 4 KiB."""
    for unit, size in ("MiB", 1 << 20), ("KiB", 1 << 10):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count} B"


def _short_bytes(count: int) -> str:
    return in_bytes(count).removesuffix("iB").removesuffix(" B").replace(" ", "")
