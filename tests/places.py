"""A small region with an allocator, without an arena around it."""

from __future__ import annotations

from ipcmap._core.allocators import allocators
from ipcmap._core.layout import BYTES_IN_USE, WARM_BYTES, Layout
from ipcmap._core.reference_cells import Cell
from ipcmap.pages import reserve_pages

MIB = 1 << 20
WORDS = 2**64


class Place:
    """A small region with an allocator, whose processes say themselves which slot is theirs."""

    def __init__(
        self, limit: int = 32 * MIB, *, reserve: int = 1 << 30, engine: str = "reference"
    ) -> None:
        self.engine = engine
        self.pages = reserve_pages(reserve, reserve)
        self._attach(limit, slot=7)
        self.allocator.initialise()

    @classmethod
    def beside(cls, place: Place, slot: int) -> Place:
        """Return the same region as another process would have it."""
        self = object.__new__(cls)
        self.engine = place.engine
        self.pages = place.pages
        self._attach(32 * MIB, slot)
        return self

    def _attach(self, limit: int, slot: int) -> None:
        self.layout = Layout(self.pages.nbytes, 100)
        self.bytes = self.pages.window()
        self.words = self.bytes.cast("Q")
        self.slot = slot
        self.allocator = allocators[self.engine](
            self.words, self.pages.address, self.layout, limit, lambda: self.slot
        )

    def view(self, cell: Cell) -> memoryview:
        """Return the bytes of a block."""
        return self.bytes[cell.offset : cell.offset + cell.nbytes]

    def tag(self, cell: Cell) -> int:
        """Return the number of the word that is a cell's tag."""
        found = self.layout.locate(cell.offset)
        assert found
        return found[0].tags + found[1]

    def in_use(self) -> int:
        """Return the bytes in use as the tags have them; the counts must say the same."""
        census = self.allocator.census()
        total = sum(counted.nbytes for _, counted in census)
        for size_class, counted in census:
            assert self.words[size_class.used] == counted.blocks
            assert self.words[size_class.used_nbytes] == counted.nbytes
            assert self.words[size_class.warm] == counted.warm
        assert self.words[BYTES_IN_USE] == total
        assert self.words[WARM_BYTES] == self.kept()
        return total

    def kept(self) -> int:
        """Return the bytes of warm cells as the tags have them."""
        return sum(counted.warm * c.cell_nbytes for c, counted in self.allocator.census())
