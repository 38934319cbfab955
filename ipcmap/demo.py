"""``ipcmap demo``: forked workers count the words of real files through one mapping.

The same files are then counted by ``multiprocessing.Pool``, and before both by this
process alone, whose totals the workers' must equal word by word, though one of them
is killed at half-way.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import stat
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ipcmap.demo_crew import Counts, Crew, Death

__all__ = ["Corpus", "Counts", "Report", "Run", "find_files", "run"]

_BINARY_PROBE = 8192  # bytes at the start of a file in which a NUL means binary
_READ = 1 << 20  # bytes

_word = re.compile(r"\w+")

Advance = Callable[[str, int, int], None]
"""Called with the name of a run, the files it has counted so far, and how many there are."""


# The work: files, and the words in them


@dataclass(frozen=True)
class Corpus:
    """The files to count, largest first, and how many were passed over for what reason."""

    root: Path
    files: list[Path]
    sizes: list[int]
    skipped: dict[str, int]

    @property
    def nbytes(self) -> int:
        """The length of all files together."""
        return sum(self.sizes)


def standard_library() -> Corpus:
    """Return the sources of the standard library, which every machine has."""
    root = Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages"}
    return _corpus(root, (p for p in root.rglob("*.py") if installed.isdisjoint(p.parts)))


def find_files(root: Path) -> Corpus:
    """Return every readable text file at or below ``root``; links are not followed.

    Raises:
        OSError: ``root`` is missing or cannot be read.
    """
    if stat.S_ISDIR(root.stat().st_mode):
        os.scandir(root).close()
        return _corpus(root, root.rglob("*"))
    return _corpus(root, iter([root]))


def _corpus(root: Path, paths: Iterator[Path]) -> Corpus:
    skipped: Counter[str] = Counter()
    found: list[tuple[int, Path]] = []
    for path in paths:
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            size = _text_size(path)
        except OSError:
            skipped["unreadable"] += 1
        else:
            if size is None:
                skipped["binary"] += 1
            else:
                found.append((size, path))
    found.sort(key=lambda file: (-file[0], file[1]))
    return Corpus(root, [path for _, path in found], [size for size, _ in found], dict(skipped))


def _text_size(path: Path) -> int | None:
    """Return the length of a text file, ``None`` for a binary one.

    Reads it to the end, so that each of the runs to compare finds it in the page cache.
    """
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_READ):
            if not size and b"\0" in chunk[:_BINARY_PROBE]:
                return None
            size += len(chunk)
    return size


def count_words(path: Path) -> Counts:
    """Count the words of one file; bytes that are no UTF-8 separate words."""
    return Counter(_word.findall(path.read_bytes().decode("utf-8", "replace")))


# Three ways to do it, each yielding one count a file


def _alone(corpus: Corpus) -> Iterator[Counts]:
    return map(count_words, corpus.files)


def _pooled(corpus: Corpus, workers: int) -> Iterator[Counts]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(count_words, corpus.files)
        pool.close()
        pool.join()


def _forked(corpus: Corpus, workers: int, kill: bool, deaths: list[Death]) -> Iterator[Counts]:
    with closing(Crew(corpus.files, workers, count_words)) as crew:
        yield from crew.run(kill=kill)
        deaths += crew.deaths


# The comparison


@dataclass(frozen=True)
class Run:
    """One way of counting: what it came to, how long it took, and whether that is right."""

    name: str
    words: int
    distinct_words: int
    seconds: float
    megabytes_per_second: float
    correct: bool


@dataclass(frozen=True)
class Report:
    """What the demo found."""

    root: str
    files: int
    nbytes: int
    workers: int
    skipped: dict[str, int]
    most_common: list[tuple[str, int]]
    runs: list[Run] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        """Whether every run came to the totals of the single process."""
        return all(run.correct for run in self.runs)

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values, for JSON."""
        return {**asdict(self), "correct": self.correct}


def run(corpus: Corpus, workers: int, advance: Advance, *, kill: bool = True) -> Report:
    """Count ``corpus`` alone, with ``workers`` forked workers, and with a ``Pool``.

    One of the forked workers is killed at half-way, unless ``kill`` is false.

    Raises:
        BrokenError: A worker failed, or they died one after the other.
    """
    deaths: list[Death] = []
    ways: dict[str, Callable[[], Iterator[Counts]]] = {
        "one process": lambda: _alone(corpus),
        f"ipcmap, {workers} forked": lambda: _forked(corpus, workers, kill, deaths),
        f"multiprocessing.Pool({workers})": lambda: _pooled(corpus, workers),
    }
    expected: Counter[str] | None = None
    runs = []
    for name, way in ways.items():
        totals: Counter[str] = Counter()
        began = time.perf_counter()
        for done, counts in enumerate(way(), 1):
            totals.update(counts)
            advance(name, done, len(corpus.files))
        seconds = time.perf_counter() - began
        if expected is None:
            expected = totals
        runs.append(
            Run(
                name=name,
                words=totals.total(),
                distinct_words=len(totals),
                seconds=seconds,
                megabytes_per_second=corpus.nbytes / 1e6 / seconds,
                correct=totals == expected,
            )
        )
    assert expected is not None
    return Report(
        root=str(corpus.root),
        files=len(corpus.files),
        nbytes=corpus.nbytes,
        workers=workers,
        skipped=corpus.skipped,
        most_common=expected.most_common(10),
        runs=runs,
        deaths=deaths,
    )
