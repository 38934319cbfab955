"""The allocator of the native engine, whose busiest methods are written in C."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ipcmap._core import native
from ipcmap._core.layout import Layout
from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_cells import Cell

__all__ = ["NativeAllocator"]


class NativeAllocator(native.Cells, Allocator):
    """What an arena of this engine has.

    ``allocate``, ``free``, ``retag``, ``pass_on`` and ``check`` are those of C, which call
    Allocator's own for whatever is unusual. All others are Allocator's, on the same words.
    """

    def __init__(
        self,
        words: memoryview,
        address: int,
        layout: Layout,
        limit: int,
        owner: Callable[[], int],
    ) -> None:
        Allocator.__init__(self, words, address, layout, limit, owner)
        classes = tuple(
            (
                size_class.cell_nbytes,
                size_class.capacity,
                size_class.high_water,
                size_class.tags,
                size_class.lengths,
                size_class.first_cell,
            )
            for size_class in layout.classes
        )
        most = min(limit, sys.maxsize)
        self.places(words, most, self._keep, layout.max_processes, owner, classes)

    def _trim_own(self) -> None:
        """Give back what is too much, as this process."""
        self._trim(self._owner())


native.bind_cells(
    Cell,
    allocate=Allocator.allocate,
    free=Allocator.free,
    retag=Allocator.retag,
    pass_on=Allocator.pass_on,
    check=Allocator.check,
    trim=NativeAllocator._trim_own,
)
