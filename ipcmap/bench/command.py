"""``ipcmap bench``: arguments, what goes to the screen, JSON, exit codes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path

from ipcmap.bench import plot, rows, runner, saved
from ipcmap.bench.rows import ROWS, Row
from ipcmap.terminal import Progress, print_table

__all__ = ["add_arguments", "run"]

GOOD, WRONG, USAGE = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``ipcmap bench`` takes."""
    names = ", ".join(ROWS)
    parser.add_argument(
        "rows", nargs="*", type=_row, metavar="ROW", help=f"what to measure (default: all): {names}"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer and shorter measurements: a look, and no figures to quote",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--load",
        type=Path,
        action="append",
        metavar="FILE",
        help="show what --json has saved, and measure nothing; more than once = put together",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the result, as .svg or .png; needs matplotlib",
    )


def _row(text: str) -> Row:
    if text not in ROWS:
        raise argparse.ArgumentTypeError(f"no row is named {text!r}; there are {', '.join(ROWS)}")
    return ROWS[text]


def run(options: argparse.Namespace) -> int:
    """Measure or load, show each row, and return the exit code."""
    if options.plot and (trouble := _cannot_plot(options.plot)):
        print(f"ipcmap bench: {trouble}", file=sys.stderr)
        return USAGE
    try:
        report = _load(options) if options.load else _measure(options)
    except saved.Unusable as error:
        print(f"ipcmap bench: {error}", file=sys.stderr)
        return USAGE
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    if options.plot:
        try:
            plot.draw(report, options.plot)
        except ImportError as error:
            print(f"ipcmap bench: matplotlib cannot be imported: {error}", file=sys.stderr)
            return WRONG
    return GOOD if report.correct else WRONG


def _load(options: argparse.Namespace) -> runner.Report:
    report = saved.load(options.load)
    wanted = {row.name for row in options.rows} or {*ROWS}
    if absent := sorted({row.name for row in options.rows} - {row.name for row in report.rows}):
        raise saved.Unusable(
            f"what was loaded has no row {', '.join(absent)}; "
            f"it has {', '.join(row.name for row in report.rows)}"
        )
    report = replace(report, rows=[row for row in report.rows if row.name in wanted])
    if not options.json:
        _print_head(report)
        for row in report.rows:
            _print_row(ROWS[row.name], row)
    return report


def _measure(options: argparse.Namespace) -> runner.Report:
    effort = rows.QUICK if options.quick else rows.FULL
    peers, missing = runner.find_peers()
    report = runner.start_report(peers, missing, quick=options.quick)
    if not options.json:
        _print_head(report)
    if report.machine.busy:
        print(
            "ipcmap bench: the machine is busy, so figures will be too low: "
            f"load average={report.machine.load_average:.2f}, CPUs={report.machine.affinity}; "
            "run it again when the machine is quiet",
            file=sys.stderr,
        )
    watched = sys.stderr.isatty()
    with runner.scratch() as folder:
        for row in dict.fromkeys(options.rows or ROWS.values()):
            with Progress("measurements") as progress:

                def advance(
                    stage: str, done: int, total: int, progress: Progress = progress
                ) -> None:
                    if watched or done == total:
                        progress.advance(stage, done, total)

                report.rows.append(runner.run_row(row, peers, effort, folder, advance))
            if not options.json:
                _print_row(row, report.rows[-1])
    return report


def _cannot_plot(file: Path) -> str | None:
    if file.suffix not in plot.SUFFIXES:
        return f"--plot must name a file that ends in {' or '.join(plot.SUFFIXES)}, not {file}"
    if not file.absolute().parent.is_dir():
        return f"cannot write {file}: there is no folder {file.absolute().parent}"
    if util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib, which is not installed; pip install 'ipcmap[bench]'"
    return None


def _print_head(report: runner.Report) -> None:
    print(f"ipcmap {report.version}, {report.engine} engine, on {report.machine.text()}")
    for missing in report.missing:
        print(f"left out: {missing.peer} cannot be imported; {missing.way_out}")
    sys.stdout.flush()


def _print_row(row: Row, report: runner.RowReport) -> None:
    print(f"\n{row.name}: {row.title}")
    if len(report.points) == 1:
        _print_point(row, report.points[0])
    else:
        _print_sweep(row, report)
    for failure in report.failures:
        word = {"left out": "left out", "failed": "FAILED", "wrong": "WRONG"}[failure.kind]
        print(f"{word}: {failure.peer}: {failure.reason}")
    sys.stdout.flush()


def _print_point(row: Row, point: runner.Point) -> None:
    print_table(
        ["", *(figure.heading for figure in row.figures), "to the best peer"],
        [
            [
                result.peer,
                *(figure.text(result.figures[figure.name]) for figure in row.figures),
                _ratio(result),
            ]
            for result in point.results
        ],
    )


def _print_sweep(row: Row, report: runner.RowReport) -> None:
    """Print the first figure of each peer at each point, and below them the ratios."""
    figure = row.figures[0]
    names = dict.fromkeys(result.peer for point in report.points for result in point.results)
    at = [{result.peer: result for result in point.results} for point in report.points]
    lines = [
        [name, *(figure.text(p[name].figures[figure.name]) if name in p else "" for p in at)]
        for name in names
    ]
    lines += [
        [f"{name}, to the best peer", *(_ratio(p.get(name)) for p in at)]
        for name in names
        if any(name in p and p[name].ours for p in at)
    ]
    print_table([f"{figure.heading}, by {row.axis}", *(f"{p.x:,}" for p in report.points)], lines)


def _ratio(result: runner.Result | None) -> str:
    return f"{result.ratio:.2f}x" if result and result.ratio is not None else ""
