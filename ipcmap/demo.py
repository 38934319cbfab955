"""``ipcmap demo``: forked workers count the words of real files through one mapping.

    parent                         one anonymous mapping                worker 1..N
    hands out file numbers  --->   tasks:   [ 7 | 8 | 9 |   |   ]  ---> takes a number, reads the file
    adds up, draws progress <---   results: [   | {"if": 3, …}  ]  <--- puts its count of words

Each direction is a circle of slots guarded by three semaphores; the mapping alone
would synchronise nothing. The same files are then counted by
``multiprocessing.Pool``, and before both by this process alone, whose totals the
workers' must equal word by word.
"""

from __future__ import annotations

import marshal
import multiprocessing
import os
import re
import signal
import stat
import sysconfig
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from ipcmap._core import Semaphore, libc
from ipcmap.errors import BrokenError
from ipcmap.mapping import Mapping

__all__ = ["Corpus", "Report", "Run", "find_files", "run"]

_BINARY_PROBE = 8192  # bytes at the start of a file in which a NUL means binary
_READ = 1 << 20  # bytes
_POLL = 0.2  # seconds between two looks at who is still alive
_NO_MORE = 2**64 - 1  # the task that ends a worker

_word = re.compile(r"\w+")

Counts = dict[str, int]
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


def _forked(corpus: Corpus, workers: int) -> Iterator[Counts]:
    files = len(corpus.files)
    # A word of one letter and what parts it from the next are 2 bytes, its entry is 8.
    longest = 5 * max(corpus.sizes, default=0) + 4096
    task_slots, result_slots = 2 * workers, 2 * workers
    tasks_nbytes = SlotQueue.nbytes(task_slots, 8)
    results_nbytes = SlotQueue.nbytes(result_slots, longest)
    with ExitStack() as cleanup:
        # Reserved, not promised: only what the counts really fill becomes memory.
        shared = cleanup.enter_context(
            Mapping.anonymous(tasks_nbytes + results_nbytes, reserve=True)
        )
        tasks = SlotQueue(shared, 0, task_slots, 8)
        cleanup.callback(tasks.close)
        results = SlotQueue(shared, tasks_nbytes, result_slots, longest)
        cleanup.callback(results.close)
        children: list[int] = []
        cleanup.callback(_end, children)
        for _ in range(workers):
            _fork_worker(corpus, tasks, results, children)

        numbers = iter([*range(files), *[_NO_MORE] * workers])
        for number in islice(numbers, task_slots):
            tasks.put(number.to_bytes(8, "little"))
        for _ in range(files):
            while (record := results.get(_POLL)) is None:
                _raise_if_one_died(children)
            if (number := next(numbers, None)) is not None:
                tasks.put(number.to_bytes(8, "little"))
            yield marshal.loads(record)
        for pid in children.copy():
            os.waitpid(pid, 0)
            children.remove(pid)


def _fork_worker(corpus: Corpus, tasks: SlotQueue, results: SlotQueue, children: list[int]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        children.append(pid)
        return
    status = 1
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was asked
            return
        # Ctrl-C goes to the whole terminal; the parent ends its workers itself.
        signal.signal(signal.SIGINT, lambda *_: None)
        while (number := _number(tasks.get())) != _NO_MORE:
            results.put(marshal.dumps(dict(count_words(corpus.files[number]))))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _number(task: bytes | None) -> int:
    assert task is not None
    return int.from_bytes(task, "little")


def _raise_if_one_died(children: list[int]) -> None:
    for pid in children.copy():
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            continue
        children.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        if code:
            how = f"signal={signal.Signals(-code).name}" if code < 0 else f"exit code={code}"
            raise BrokenError(
                f"worker died before its files were counted: pid={pid}, {how}; run the demo again"
            )


def _end(children: list[int]) -> None:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


class SlotQueue:
    """A circle of slots in a mapping: a bounded queue of short records.

    Shared bytes at ``offset``: u64 records put, changed in turn by those who put;
    u64 records taken, changed in turn by those who take; then the slots, each a
    u64 length and its bytes. ``free`` counts empty slots and ``filled`` full ones.
    Whoever is killed in ``put`` or ``get`` may stop his own side for ever, never
    the other; the parent is alone on its sides, and watches for deaths.
    """

    def __init__(self, mapping: Mapping, offset: int, slots: int, slot_nbytes: int) -> None:
        self._mapping, self._offset = mapping, offset
        self._slots, self._slot_nbytes = slots, slot_nbytes
        self._free, self._filled = Semaphore(slots), Semaphore(0)
        self._putting, self._taking = Semaphore(1), Semaphore(1)

    @staticmethod
    def nbytes(slots: int, slot_nbytes: int) -> int:
        """Return the length in bytes that such a queue takes in a mapping."""
        return 16 + slots * (8 + slot_nbytes)

    def put(self, record: bytes) -> None:
        """Append a record, waiting while all slots are full."""
        if len(record) > self._slot_nbytes:
            raise ValueError(
                f"record does not fit its slot: nbytes={len(record)}, slot={self._slot_nbytes}"
            )
        self._free.acquire()
        with self._putting:
            slot = self._next(self._offset)
            self._mapping.write(slot, len(record).to_bytes(8, "little") + record)
        self._filled.release()

    def get(self, timeout: float | None = None) -> bytes | None:
        """Take the oldest record; ``None`` if there was none for ``timeout`` seconds."""
        if not self._filled.acquire(timeout=timeout):
            return None
        with self._taking:
            slot = self._next(self._offset + 8)
            length = int.from_bytes(self._mapping.read(slot, 8), "little")
            record = self._mapping.read(slot + 8, length)
        self._free.release()
        return record

    def close(self) -> None:
        """Let go of the semaphores in this process."""
        for semaphore in (self._free, self._filled, self._putting, self._taking):
            semaphore.close()

    def _next(self, counter: int) -> int:
        count = int.from_bytes(self._mapping.read(counter, 8), "little")
        self._mapping.write(counter, (count + 1).to_bytes(8, "little"))
        return self._offset + 16 + count % self._slots * (8 + self._slot_nbytes)


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

    @property
    def correct(self) -> bool:
        """Whether every run came to the totals of the single process."""
        return all(run.correct for run in self.runs)

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values, for JSON."""
        return {**asdict(self), "correct": self.correct}


def run(corpus: Corpus, workers: int, advance: Advance) -> Report:
    """Count ``corpus`` alone, with ``workers`` forked workers, and with a ``Pool``.

    Raises:
        BrokenError: A worker died.
    """
    ways: dict[str, Callable[[], Iterator[Counts]]] = {
        "one process": lambda: _alone(corpus),
        f"ipcmap, {workers} forked": lambda: _forked(corpus, workers),
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
    )
