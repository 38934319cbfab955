"""Results that ``--json`` has saved: of one run, or of several on the same machine put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipcmap.bench.machine import Machine
from ipcmap.bench.rows import ROWS
from ipcmap.bench.runner import SCHEMA, Missing, Outcome, Point, Report, Result, RowReport

__all__ = ["Unusable", "load"]


class Unusable(ValueError):
    """A file has no result that can be shown; the text says why."""


def load(files: Sequence[Path]) -> Report:
    """Return what files have; of a row that is in several, the last is taken.

    Raises:
        OSError: A file cannot be read.
        Unusable: It is no result, or one of another machine or version than the first.
    """
    first, *others = (_load(file) for file in files)
    rows = {row.name: row for row in first.rows}
    for file, other in zip(files[1:], others, strict=True):
        if difference := _difference(first, other):
            raise Unusable(
                f"{files[0]} and {file} cannot be compared: {difference}; "
                "measure them on one machine, with the same versions"
            )
        rows |= {row.name: row for row in other.rows}
    return replace(first, rows=list(rows.values()))


def _load(file: Path) -> Report:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        schema = found["schema"]
        if schema != SCHEMA:
            raise Unusable(
                f"{file} has another form: schema={schema}, here it is {SCHEMA}; measure it again"
            )
        return _report(found)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Unusable(
            f"{file} is no result of ipcmap bench --json: {type(error).__name__}: {error}; "
            "save one by ipcmap bench --json > FILE"
        ) from None


def _report(found: dict[str, Any]) -> Report:
    return Report(
        found["version"],
        found["engine"],
        found["quick"],
        Machine(**found["machine"]),
        found["peers"],
        [Missing(**missing) for missing in found["missing"]],
        [
            RowReport(
                **{
                    **row,
                    "points": [_point(point, row["name"]) for point in row["points"]],
                    "failures": [Outcome(**failure) for failure in row["failures"]],
                }
            )
            for row in found["rows"]
        ],
    )


def _point(found: dict[str, Any], row: str) -> Point:
    point = Point(**{**found, "results": [Result(**result) for result in found["results"]]})
    for result in point.results:
        for figure in ROWS[row].figures:  # what will be shown of it
            float(result.figures[figure.name])
    return point


def _difference(one: Report, other: Report) -> str | None:
    def facts(report: Report) -> dict[str, object]:
        machine = {**vars(report.machine)}
        del machine["load_average"]
        return {
            "version": report.version,
            "engine": report.engine,
            "quick": report.quick,
            **machine,
        }

    theirs = facts(other)
    for name, value in facts(one).items():
        if value != theirs[name]:
            return f"{name}={value!r} and {theirs[name]!r}"
    return None
