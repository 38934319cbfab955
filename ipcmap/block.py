"""Bytes of an arena: the handle that the arena gives out for a block."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_cells import Cell
from ipcmap.errors import BusyError
from ipcmap.family import Family
from ipcmap.pages import Pages

__all__ = ["Block", "Inside"]


class Inside(NamedTuple):
    """What an open arena has."""

    pages: Pages
    words: memoryview  # keeps the one window that is the arena's own
    allocator: Allocator
    family: Family


class _Home(Protocol):
    """What a block needs of its arena."""

    def _open(self) -> Inside: ...

    def _block_at(self, offset: int, generation: int, kind: int) -> Block: ...


class Block:
    """Bytes of an arena: the handle that :meth:`Arena.allocate` returns.

    Its pickle names arena, place, generation and kind, and no bytes. Where it is
    loaded the arena must have been inherited (else :exc:`NotInherited`), and the
    block must be there still (else :exc:`StaleHandle`).

    Example:
        >>> import pickle
        >>> from ipcmap import default_arena
        >>> block = default_arena().allocate(3)
        >>> block.view()[:] = b"abc"
        >>> same = pickle.loads(pickle.dumps(block))
        >>> bytes(same.view())
        b'abc'
        >>> block.free()
        >>> same.view()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ipcmap.errors.StaleHandle: ...
    """

    __slots__ = ("_arena", "_cell", "_windows")

    _arena: _Home
    _cell: Cell
    _windows: list[weakref.ref[Any]]

    def __init__(self) -> None:
        """Refused: a block comes from :meth:`Arena.allocate`."""
        raise TypeError("a block is a part of an arena; call Arena.allocate(nbytes)")

    @classmethod
    def _made(cls, arena: _Home, cell: Cell) -> Block:
        self = object.__new__(cls)
        self._arena, self._cell, self._windows = arena, cell, []
        return self

    @property
    def offset(self) -> int:
        """Where it begins in its arena, in bytes."""
        return self._cell.offset

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self._cell.nbytes

    @property
    def generation(self) -> int:
        """Which use of its place this is."""
        return self._cell.generation

    def __repr__(self) -> str:
        cell = self._cell
        return (
            f"<ipcmap.Block of {cell.nbytes} bytes: offset {cell.offset}, "
            f"generation {cell.generation}>"
        )

    def view(self) -> memoryview:
        """Return the bytes themselves, without a copy.

        A view, a slice of it and an array over it keep the arena from being
        closed, and the block from being freed by this handle. Another handle of
        the block can still free it: views then show what its next owner writes.

        Raises:
            ClosedError: The arena is closed.
            CorruptError: The bookkeeping is damaged.
            StaleHandle: The block was freed.
        """
        inside = self._arena._open()
        inside.allocator.check(self._cell)
        window = inside.pages.window()
        self._windows = [known for known in self._windows if known() is not None]
        self._windows.append(weakref.ref(window.obj))
        return window[self.offset : self.offset + self.nbytes]

    def free(self) -> None:
        """Give the bytes back to the arena; every handle of the block is stale then.

        The memory of more than 512 KiB is kept for the next such block; what is beyond
        a bound for the arena (64 MiB, and a quarter of its limit) goes back to the system.

        Raises:
            BusyError: Views taken by this handle are alive, or a signal handler
                interrupted a change of the arena.
            ClosedError: The arena is closed.
            CorruptError: The bookkeeping is damaged.
            StaleHandle: The block was freed before.
        """
        allocator = self._arena._open().allocator
        if self._windows:
            views = sum(known() is not None for known in self._windows)
            if views:
                raise BusyError(
                    f"block cannot be freed under its views: {views} alive, {self!r}; "
                    "release them (memoryview.release, del array), then free"
                )
        allocator.free(self._cell)

    def __reduce__(self) -> tuple[Callable[..., Block], tuple[int, int, int]]:
        cell = self._cell
        return self._arena._block_at, (cell.offset, cell.generation, cell.kind)
