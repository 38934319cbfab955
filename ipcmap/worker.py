"""What runs in a worker of an executor: tasks from its ring, answers into everybody's.

Each worker has a cell in shared memory. Its first word says which task it has in hand; that
word alone is changed in one step by both sides. It is stored before a task begins
and stays until the next begins.

Shared fields, a cell each       written by
  0  task    u64   worker; the executor, CONDEMNED alone   number of the task that was last begun
  1  begun   u64   worker     when, by the monotonic clock in nanoseconds
  2  done    u64   worker     how many tasks it has answered
  3  busy    u64   worker     nanoseconds from a task's begin to its answer, summed up
  4  ready   u64   worker     1 = the initializer is done

Sync points
  T1 begin    worker: task goes from the last number to this one, in one step; not if it
              is condemned, and then nothing is begun
              executor: task goes from a number to that number, condemned; not if the worker is
              at another by now
  T2 answer   worker: the answer is in the ring of results
              executor: takes what is there before it looks at the cell of a dead worker

If a worker dies
  before T1          what it has taken is not begun, and given to another
  between T1 and T2  the task in its cell is lost, and no other
  after T2           no task is
So a condemned worker, which the executor is about to kill, costs the task that it was
condemned for and never another.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipcmap._core.atomics import NBYTES as SECTION_NBYTES
from ipcmap._core.atomics import atomic_words, initialise
from ipcmap.block import Block
from ipcmap.errors import ClosedError
from ipcmap.messages import (
    KEYWORDS,
    RAISED,
    RETURNED,
    TAIL,
    UNLOADABLE,
    UNPREPARED,
    forms_of,
    load,
    pickled_error,
    put,
)
from ipcmap.ring import Ring

__all__ = [
    "BEGUN",
    "BUSY",
    "CELL",
    "CONDEMNED",
    "DONE",
    "KNOWN_FUNCTIONS",
    "READY",
    "TASK",
    "Blueprint",
    "Cells",
    "resident_bytes",
]

CELL: Final = 8  # words, a cache line
TASK, BEGUN, DONE, BUSY, READY = range(5)
CONDEMNED: Final = 1 << 63
KNOWN_FUNCTIONS: Final = 256  # that a worker keeps; the executor counts along
_PAGE = os.sysconf("SC_PAGESIZE")
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Packages that load a BLAS: where one is loaded, its threads are to be counted now.
_NUMERIC = ("numpy", "scipy", "torch")


class Cells:
    """The cells of all workers, in a block of the arena."""

    def __init__(self, block: Block, engine: str, address: int) -> None:
        view = block.view()
        self.words = view[SECTION_NBYTES:].cast("Q")
        self._atomic = atomic_words(engine, view[SECTION_NBYTES:], address)
        self.condemn_or_begin = self._atomic.compare_exchange

    @staticmethod
    def nbytes(count: int) -> int:
        """Return how many bytes a block of so many cells needs."""
        return SECTION_NBYTES + 8 * CELL * count


@dataclass(frozen=True)
class Blueprint:
    """What every worker of an executor has: by fork, or by pickle from a zygote made early.

    Attributes:
        results: Where answers go.
        block: The cells.
        engine: Of the arena.
        initializer: Called first, or ``None``.
        initargs: With these.
        max_tasks: After how many tasks a worker ends, 0 = never.
        max_rss: With how many bytes resident it ends after a task, 0 = never.
        blas_threads: How many threads a BLAS may use.
        dump: What makes a record of a result that has no short form.
    """

    results: Ring
    block: Block
    engine: str
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks: int
    max_rss: int
    blas_threads: int
    dump: Callable[[Any], bytes | Sequence[bytes | memoryview]]

    def initialise(self) -> None:
        """Make the cells, before anybody uses them."""
        self.block.view()[:] = bytes(self.block.nbytes)
        initialise(self._address())

    def cells(self) -> Cells:
        """Return the cells."""
        return Cells(self.block, self.engine, self._address())

    def _address(self) -> int:
        return self.block._arena._open().pages.address + self.block.offset

    def work(self, index: int, tasks: Ring) -> None:
        """Be the worker of this index: what its process runs."""
        _Worker(self, index, tasks).run()


class _Worker:
    """One worker, in its process."""

    def __init__(self, blueprint: Blueprint, index: int, tasks: Ring) -> None:
        self.blueprint, self.tasks, self.results = blueprint, tasks, blueprint.results
        cells = blueprint.cells()
        self.swap = cells.condemn_or_begin
        self.at = CELL * index
        self.cell = cells.words[self.at : self.at + CELL]
        self.known: dict[int, None] = {}
        self.functions: dict[int, Callable[..., Any]] = {}
        self.unloadable: dict[int, BaseException] = {}  # functions, and why

    def run(self) -> None:
        """Work until there is nothing to come, or it is time for a fresh process."""
        limit_blas(self.blueprint.blas_threads)
        if not self._prepare():
            return
        self.cell[READY] = 1
        with contextlib.suppress(ClosedError):
            self._serve()

    def _prepare(self) -> bool:
        """Call the initializer; return whether it came off."""
        if self.blueprint.initializer is None:
            return True
        try:
            self.blueprint.initializer(*self.blueprint.initargs)
        except BaseException as error:
            logging.getLogger("concurrent.futures").critical(
                "Exception in initializer:", exc_info=True
            )
            put(self.results, pickled_error(error), TAIL.pack(0, UNPREPARED))
            return False
        return True

    def _serve(self) -> None:
        get, put_answer, unpack, pack = (
            self.tasks.get,
            self.results.put,
            TAIL.unpack_from,
            TAIL.pack,
        )
        swap, cell, at, clock = self.swap, self.cell, self.at + TASK, time.monotonic_ns
        functions, tail = self.functions, -TAIL.size
        dump, load = forms_of(self.results, self.blueprint.dump)
        max_tasks, max_rss = self.blueprint.max_tasks, self.blueprint.max_rss
        last = done = busy = 0
        while True:
            record = get()
            number, function = unpack(record, tail)
            if not number:
                self._learn(function, record)
                continue
            # Before it begins: no task is charged with the time since the last began.
            cell[BEGUN] = begun = clock()
            if not swap(at, last, number):  # T1 begin
                self._await_the_end()
            last = number
            kind = UNLOADABLE
            try:
                do, args = functions[function], load(record)
                kind = RAISED
                result = do(*args)
                body = dump(result)
                if type(body) is bytes:
                    put_answer(body + pack(number, RETURNED))  # T2 answer
                else:
                    put(self.results, body, pack(number, RETURNED))  # T2 answer
            except BaseException as error:
                self._tell(error, number, kind, function)
            # What a task was about must not stay while there is no other.
            do = args = result = body = record = None  # type: ignore[assignment]
            done += 1
            busy += clock() - begun
            cell[DONE], cell[BUSY] = done, busy
            if done == max_tasks or (max_rss and resident_bytes() > max_rss):
                return

    def _tell(self, error: BaseException, number: int, kind: int, function: int) -> None:
        """Answer with an exception."""
        if kind == UNLOADABLE:
            error = self.unloadable.get(function & ~KEYWORDS, error)
        put(self.results, pickled_error(error), TAIL.pack(number, kind))  # T2 answer

    def _learn(self, number: int, record: bytes) -> None:
        """Keep a function; the oldest goes, as the executor knows."""
        known = self.known
        known.pop(number, None)
        known[number] = None
        try:
            function = load(record)
        except BaseException as error:
            self.unloadable[number] = error
        else:
            self.functions[number] = function
            self.functions[number | KEYWORDS] = functools.partial(_call, function)
        if len(known) > KNOWN_FUNCTIONS:
            oldest = next(iter(known))
            for kept in (known, self.functions, self.unloadable):
                kept.pop(oldest, None)
            self.functions.pop(oldest | KEYWORDS, None)

    @staticmethod
    def _await_the_end() -> None:
        while True:
            signal.pause()


def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def resident_bytes(pid: int | str = "self") -> int:
    """Return how much memory a process has resident, 0 where that cannot be told."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def limit_blas(threads: int) -> None:
    """Give each BLAS so many threads: those that are loaded, and those to come."""
    for name in _BLAS:
        os.environ.setdefault(name, str(threads))
    if any(name in sys.modules for name in _NUMERIC):
        with contextlib.suppress(ImportError):
            importlib.import_module("threadpoolctl").threadpool_limits(threads)
