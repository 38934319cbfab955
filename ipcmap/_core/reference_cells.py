"""The cells of an arena, and the tags that say whose they are: the reading half.

The header of reference_allocator names the shared fields and the sync points. What makes
no sense is CorruptError where a handle names it, and is skipped where a search meets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ipcmap._core.layout import (
    GENERATION_SHIFT,
    KIND_SHIFT,
    KINDS,
    OWNER,
    RETIRED,
    SMALLEST_CELL,
    STATE,
    USED,
    WARM,
    Kind,
    Layout,
    SizeClass,
)
from ipcmap.errors import CorruptError, StaleHandle

__all__ = ["Cell", "Cells", "Census"]

_CHUNK = 4096  # cells that a count copies at once


class Cell(NamedTuple):
    """A handle of a block: good while its cell's tag says the same."""

    offset: int
    nbytes: int
    generation: int
    kind: int


class Census(NamedTuple):
    """What the tags of one class say."""

    blocks: int
    nbytes: int
    damaged: int  # cells whose tag or length makes no sense
    warm: int  # cells whose memory is kept for the next block, or is being given back


class Cells:
    """The cells of an arena as a process reads them.

    Args:
        words: The arena as words, from its first byte.
        layout: Its places.
    """

    def __init__(self, words: memoryview, layout: Layout) -> None:
        self._words, self.layout = words, layout

    def check(self, cell: Cell) -> None:
        """Raise :class:`StaleHandle` or :class:`CorruptError` where a handle is not good."""
        self._tag_of(cell)

    def tag_word(self, cell: Cell) -> tuple[int, int]:
        """Return the number of a block's tag among the words, and what is there but the owner.

        For a handle that looks often; where it finds anything else, ``check`` says what it is.
        """
        size_class, index, tag = self._tag_of(cell)
        return size_class.tags + index, tag & ~OWNER

    def find(self, offset: int, generation: int, kind: int) -> Cell:
        """Return the handle of a block, its length read from the arena; errors as ``check``."""
        cell = Cell(offset, 0, generation, kind)
        size_class, index, _ = self._tag_of(cell)  # A1 take
        nbytes = self._words[size_class.lengths + index]
        if nbytes > size_class.cell_nbytes:
            raise CorruptError(
                f"length of a block is damaged: offset={offset}, nbytes={nbytes}; make a new arena"
            )
        return cell._replace(nbytes=nbytes)

    def tag(self, cell: Cell) -> tuple[int, int]:
        """Return owner and kind of the block that a handle names; (0, -1) where it is gone."""
        found = self.layout.locate(cell.offset)
        tag = self._words[found[0].tags + found[1]] if found else 0
        if not tag & USED or tag & RETIRED or tag >> GENERATION_SHIFT != cell.generation:
            return 0, -1
        return tag & OWNER, tag >> KIND_SHIFT & KINDS - 1

    def owned_by(self, slot: int) -> Iterator[Cell]:
        """Yield the blocks of a slot: each was its own at some moment of the search."""
        for size_class, index, tag in self._tags_of(slot):
            if not tag & RETIRED:
                yield self._cell(size_class, index, tag)

    def of_kind(self, kind: int) -> Iterator[Cell]:
        """Yield the blocks of a kind: each was one at some moment of the search."""
        for size_class in self.layout.classes:
            for start, tags in self._chunks(size_class):  # A1 take, A3 retire, A4 retag
                for index, tag in enumerate(tags, start):
                    if (
                        tag & USED
                        and tag >> KIND_SHIFT & KINDS - 1 == kind
                        and not tag & RETIRED
                        and not self.layout.is_damaged(tag)
                    ):
                        yield self._cell(size_class, index, tag)

    def census(self) -> list[tuple[SizeClass, Census]]:
        """Count every class from its tags; exact where nobody changes them meanwhile."""
        return [(size_class, self._count(size_class)) for size_class in self.layout.classes]

    def pass_on(self, cell: Cell, owner: int, kind: int) -> Cell | None:
        """Retag a block of a ring's, without the section: the ring's own guards the tag.

        Returns:
            The block with its length; ``None`` where there is none of this generation.
        """
        found = self.layout.locate(cell.offset)
        if found is None:
            return None
        size_class, index = found
        tag = self._words[size_class.tags + index]
        nbytes = self._words[size_class.lengths + index]
        if (
            self.layout.is_damaged(tag)
            or tag & (USED | RETIRED) != USED
            or tag >> GENERATION_SHIFT != cell.generation
            or not Kind.RECORD <= tag >> KIND_SHIFT & KINDS - 1 <= Kind.LEAVING
            or not SMALLEST_CELL <= nbytes <= size_class.cell_nbytes
        ):
            return None
        new = cell.generation << GENERATION_SHIFT | kind << KIND_SHIFT | USED | owner
        self._words[size_class.tags + index] = new  # A4 retag
        return Cell(cell.offset, nbytes, cell.generation, kind)

    # Tags

    def _tag_of(self, cell: Cell) -> tuple[SizeClass, int, int]:
        found = self.layout.locate(cell.offset)
        if found is None:
            raise CorruptError(
                f"handle is damaged: no block begins at offset={cell.offset}; "
                "take it from Arena.allocate"
            )
        size_class, index = found
        tag = self._words[size_class.tags + index]  # A1 take, A3 retire
        if self.layout.is_damaged(tag):
            raise CorruptError(
                f"tag of a block is damaged: offset={cell.offset}, tag={tag:#x}; make a new arena"
            )
        expected = cell.generation << GENERATION_SHIFT | cell.kind << KIND_SHIFT | USED
        if tag & ~OWNER != expected:
            raise StaleHandle(
                f"block of this handle was freed: offset={cell.offset}, "
                f"handle: generation={cell.generation} kind={cell.kind}, "
                f"now: generation={tag >> GENERATION_SHIFT} "
                f"kind={tag >> KIND_SHIFT & KINDS - 1} used={bool(tag & USED)}; "
                "allocate another"
            )
        return size_class, index, tag

    def _tags_of(self, slot: int) -> Iterator[tuple[SizeClass, int, int]]:
        for size_class in self.layout.classes:
            for start, tags in self._chunks(size_class):  # A1 take, A3 retire, A4 retag
                for index, tag in enumerate(tags, start):
                    if tag & USED and tag & OWNER == slot and not self.layout.is_damaged(tag):
                        yield size_class, index, tag

    def _chunks(self, size_class: SizeClass) -> Iterator[tuple[int, list[int]]]:
        high = self._high_water(size_class)
        for start in range(0, high, _CHUNK):
            first = size_class.tags + start
            tags = self._words[first : first + min(_CHUNK, high - start)].tolist()
            # The mark of a large arena can be wrong by billions of cells that no memory was
            # ever given to: to look at them all takes it, and hours.
            if len(tags) == _CHUNK and not any(tags):
                raise self._mark_is_damaged(size_class, high)
            yield start, tags

    def _cell(self, size_class: SizeClass, index: int, tag: int) -> Cell:
        nbytes = min(self._words[size_class.lengths + index], size_class.cell_nbytes)
        kind = tag >> KIND_SHIFT & KINDS - 1
        return Cell(size_class.offset(index), nbytes, tag >> GENERATION_SHIFT, kind)

    def _high_water(self, size_class: SizeClass) -> int:
        high: int = self._words[size_class.high_water]
        if high > size_class.capacity:
            raise self._mark_is_damaged(size_class, high)
        return high

    def _mark_is_damaged(self, size_class: SizeClass, high: int) -> CorruptError:
        return CorruptError(
            f"high-water mark is damaged: cells of {size_class.cell_nbytes} bytes, "
            f"mark={high}, cells={size_class.capacity}; make a new arena"
        )

    def _count(self, size_class: SizeClass) -> Census:
        blocks = nbytes = damaged = warm = 0
        for start, tags in self._chunks(size_class):  # A1 take, A2 free
            first = size_class.lengths + start
            lengths = self._words[first : first + len(tags)].tolist()
            for tag, length in zip(tags, lengths, strict=True):
                if not tag & (STATE | WARM):
                    continue
                if self.layout.is_damaged(tag):
                    damaged += 1
                elif tag & (RETIRED | WARM):
                    warm += 1
                elif length > size_class.cell_nbytes:
                    damaged += 1
                else:
                    blocks += 1
                    nbytes += max(length, SMALLEST_CELL)
        return Census(blocks, nbytes, damaged, warm)
