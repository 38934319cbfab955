"""NumPy arrays that many tasks are given, each copied once: into a block that the workers read.

The parent copies a large array into a block of the default arena when it first pickles it, and
the pickle names the block. A worker's array is a window of that block. An array that
is a window of a file (``numpy.memmap``) is not copied at all: its pickle names the file.

A block is given back when nobody can read it any more:

* the parent's array is gone, or the call is over (``forget``): no later task is given it;
* the tasks that were given it are done;
* no worker has a window of it still, say in a global. Each answer says what its worker
  has, by the key of the block. A task that raises has no such answer: what it was given stays
  until the workers have ended. So it does where a worker's array waits for its garbage collection.

Calls of one lender come from one thread at a time, but for ``returned`` and the end of an
array: these are single steps of a dict.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import time
import weakref
from collections.abc import Callable, Collection
from typing import Any

import cloudpickle
import numpy as np

from ipcmap.arena import default_arena
from ipcmap.block import Block
from ipcmap.errors import ArenaFull
from ipcmap.structure import free_quietly

__all__ = ["Answer", "Answered", "Lender", "Parcel", "run"]

Key = tuple[int, int]  # offset and generation of a block
Worker = tuple[int, int]  # pid, and when it began to work


class Parcel:
    """An object that was pickled already, with its buffers beside it; loaded, it is that object."""

    def __init__(self, obj: Any, reduce: Callable[[Any], Any] | None = None) -> None:
        file, self._buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        pickler = _Pickler(file, 5, buffer_callback=self._buffers.append)
        pickler.reduce = reduce
        pickler.dump(obj)
        self._pickled = file.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self._pickled, self._buffers)


def _unpacked(pickled: bytes, buffers: list[Any]) -> Any:
    return pickle.loads(pickled, buffers=buffers)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes functions by value where they have no name, and arrays as the lender says."""

    reduce: Callable[[Any], Any] | None

    def reducer_override(self, obj: Any) -> Any:
        if self.reduce is not None and isinstance(obj, np.ndarray):
            reduced = self.reduce(obj)
            if reduced is not NotImplemented:
                return reduced
        return super().reducer_override(obj)


# The parent


class _Lent:
    """An array's copy in a block, which is given back with the last reference to this."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        arena = default_arena()
        self.block = block = arena.allocate(array.nbytes)
        end = weakref.finalize(self, _give_back, os.getpid(), arena._open().allocator, block._cell)
        end.atexit = False
        self.key: Key = block.offset, block.generation
        self.order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
        _window(block, array.dtype, array.shape, self.order)[...] = array


def _give_back(pid: int, allocator: Any, cell: Any) -> None:
    if pid == os.getpid():  # and not in a child that has a copy
        free_quietly(allocator, cell)


def _window(block: Block, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    return np.ndarray(shape, dtype, block.view(), order=order)


class Lender:
    """What the tasks of one executor are given, and who has it still.

    Args:
        max_nbytes: Arrays of more bytes are lent; ``None`` = none are.
        mode: What a worker may do: ``"r"`` read; ``"r+"`` or ``"w+"`` write, for all to see;
            ``"c"`` write into a copy of its own.
    """

    def __init__(self, max_nbytes: int | None, mode: str) -> None:
        self.max_nbytes, self.mode = max_nbytes, mode
        self._known: dict[int, tuple[weakref.ref[Any], _Lent]] = {}  # by the id of the array
        self._all: weakref.WeakValueDictionary[Key, _Lent] = weakref.WeakValueDictionary()
        self._kept: dict[Worker, tuple[int, list[_Lent]]] = {}  # as its last answer says
        self._doubtful: list[_Lent] = []
        self._giving: list[_Lent] = []

    def pack(self, obj: Any) -> tuple[Parcel, list[_Lent]]:
        """Return what :func:`run` is called with, and what is lent until :meth:`returned`."""
        lent: list[_Lent] = []
        self._giving = lent
        return Parcel([obj], self._reduce), lent

    def returned(self, lent: list[_Lent], answer: Any) -> None:
        """Note what came of a task: its :class:`Answer`, or something else."""
        if isinstance(answer, Answered):
            count, _ = self._kept.get(answer.worker, (0, None))
            if answer.count > count:
                kept = [one for key in answer.kept if (one := self._all.get(key)) is not None]
                self._kept[answer.worker] = answer.count, kept
        else:
            self._doubtful += lent
        lent.clear()

    def forget(self, pids: Collection[int]) -> None:
        """Lend no array again that was lent before; of workers there are only these."""
        self._known.clear()
        for worker in list(self._kept):
            if worker[0] not in pids:
                del self._kept[worker]
        if not pids:
            self._doubtful.clear()

    def _reduce(self, array: np.ndarray[Any, Any]) -> Any:
        mapped = _file_of(array)
        if mapped is not None:
            return _from_file, (*mapped, array.dtype, array.shape, array.strides)
        if (
            self.max_nbytes is None
            or array.nbytes <= self.max_nbytes
            or type(array) is not np.ndarray
            or array.dtype.hasobject
        ):
            return NotImplemented
        try:
            lent = self._lend(array)
        except ArenaFull:  # by value it waits for room
            return NotImplemented
        self._giving.append(lent)
        return _borrowed, (lent.block, array.dtype, array.shape, lent.order, self.mode)

    def _lend(self, array: np.ndarray[Any, Any]) -> _Lent:
        name, known = id(array), self._known
        reference, lent = known.get(name, (None, None))
        if reference is None or lent is None or reference() is not array:
            lent = _Lent(array)

            def gone(reference: weakref.ref[Any]) -> None:
                if known.get(name, (None,))[0] is reference:
                    known.pop(name, None)

            known[name] = weakref.ref(array, gone), lent
            self._all[lent.key] = lent
        return lent


def _file_of(array: np.ndarray[Any, Any]) -> tuple[str, str, int, int, int] | None:
    """Return the file that an array is a window of: name, mode, begin, length, where in it."""
    base: Any = array
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.memmap) or not base.filename or base.mode == "c":
        return None
    low, high = np.lib.array_utils.byte_bounds(array)
    begin = base.offset + low - base.ctypes.data
    mode = "r" if base.mode == "r" or not array.flags.writeable else "r+"
    return os.fspath(base.filename), mode, begin, high - low, array.ctypes.data - low


# The workers


def _from_file(
    filename: str,
    mode: Any,
    begin: int,
    nbytes: int,
    at: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Any:
    whole = np.memmap(filename, np.uint8, mode, begin, (nbytes,))
    return np.ndarray(shape, dtype, whole, at, strides).view(np.memmap)


_windows: list[tuple[Key, weakref.ref[Any]]] = []  # of blocks, that this worker was given
_answers = itertools.count(1)
_worker: Worker = 0, 0


def _borrowed(block: Block, dtype: Any, shape: tuple[int, ...], order: Any, mode: str) -> Any:
    view = block.view()
    array = np.ndarray(
        shape, dtype, view if mode in ("r+", "w+") else view.toreadonly(), order=order
    )
    if mode == "c":
        return array.copy(order)
    _windows.append(((block.offset, block.generation), weakref.ref(view.obj)))
    return array


def run(task: list[Callable[[], Any]]) -> Answer:
    """Do a task: what a worker calls."""
    return Answer(task.pop()())  # its caller would keep the arrays until it has answered


class Answer:
    """What came of a task; loaded, it is :class:`Answered`."""

    def __init__(self, result: Any) -> None:
        self._result = result
        self._parts: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        global _worker  # noqa: PLW0603
        if not self._parts:  # or pickle has a second look, since there are buffers
            parcel, self._result = Parcel(self._result), None
            _windows[:] = [known for known in _windows if known[1]() is not None]
            if _worker[0] != os.getpid():
                _worker = os.getpid(), time.monotonic_ns()
            kept = tuple({key for key, _ in _windows})
            self._parts = parcel, _worker, next(_answers), kept
        return Answered, self._parts


class Answered:
    """The result of a task, and which blocks its worker has windows of.

    Attributes:
        result: What the task returned.
        worker: Which worker.
        count: How many answers it has given.
        kept: The keys of the blocks.
    """

    def __init__(self, result: Any, worker: Worker, count: int, kept: tuple[Key, ...]) -> None:
        self.result, self.worker, self.count, self.kept = result, worker, count, kept
