"""The command line: ``ipcmap``, or ``python -m ipcmap``.

Exit codes: 0 good, 1 a result is wrong or a run broke off, 2 usage, 130 Ctrl-C.
Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ipcmap import __version__, backend, demo
from ipcmap.bench import command as bench
from ipcmap.errors import IpcmapError
from ipcmap.terminal import Progress, print_table

__all__ = ["main"]

GOOD, WRONG, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("ipcmap: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (IpcmapError, OSError) as error:
        print(f"ipcmap: {error}", file=sys.stderr)
        return WRONG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipcmap", description="Parent/child IPC over one shared mapping."
    )
    parser.add_argument(
        "--version", action="version", version=f"ipcmap {__version__} ({backend} engine)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo",
        help="count the words of real files with forked workers",
        description="Forked workers count the words of real files through one anonymous mapping; "
        "the totals are checked word by word against a count by a single process.",
    )
    command.add_argument(
        "--workers",
        type=_workers,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="forked workers (default: one for each CPU of this process, %(default)s)",
    )
    command.add_argument(
        "--path",
        type=Path,
        metavar="DIR",
        help="a folder or file to count (default: the standard library's own sources)",
    )
    command.add_argument(
        "--kill",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="kill one of the workers at half-way, to show that nothing is lost (default: yes)",
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_demo)
    command = commands.add_parser(
        "bench",
        help="compare with whichever peers are installed",
        description="ipcmap and whichever peers are installed do the same work in turn, in one run; "
        "what they receive is checked. Medians, and ratios to the best peer.",
    )
    bench.add_arguments(command)
    command.set_defaults(run=bench.run)
    return parser


def _workers(text: str) -> int:
    try:
        workers = int(text)
    except ValueError:
        workers = 0
    if workers < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, not {text!r}")
    return workers


def _demo(options: argparse.Namespace) -> int:
    try:
        corpus = demo.find_files(options.path) if options.path else demo.standard_library()
    except OSError as error:
        print(f"ipcmap demo: cannot count {options.path}: {error.strerror}", file=sys.stderr)
        return USAGE
    with Progress("files") as progress:
        report = demo.run(corpus, options.workers, progress.advance, kill=options.kill)
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        _print_report(report)
    return GOOD if report.correct else WRONG


def _print_report(report: demo.Report) -> None:
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
    print(f"counted {report.root}, passed over: {skipped or 'nothing'}")
    if not report.files:
        print("found no text file there")
        return
    alone = report.runs[0]
    print_table(
        ["", "files", "MB", "words", "distinct", "seconds", "MB/s", "speed", "totals"],
        [
            [
                run.name,
                f"{report.files:,}",
                f"{report.nbytes / 1e6:,.1f}",
                f"{run.words:,}",
                f"{run.distinct_words:,}",
                f"{run.seconds:.2f}",
                f"{run.megabytes_per_second:.1f}",
                f"{alone.seconds / run.seconds:.2f}x",
                "right" if run.correct else "WRONG",
            ]
            for run in report.runs
        ],
    )
    if report.deaths:
        print_table(
            ["worker", "died of", "counted again in its place"],
            [
                [f"pid {death.pid}", death.cause, _below(report.root, death.redone)]
                for death in report.deaths
            ],
        )


def _below(root: str, path: str | None) -> str:
    return os.path.relpath(path, root) if path else "nothing: it was between two files"


if __name__ == "__main__":
    sys.exit(main())
