"""The allocator of the reference engine: one tag word decides who owns a block."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from ipcmap import ArenaFull, StaleHandle
from ipcmap._core import slot_layout
from ipcmap._core.layout import MIN_RESERVE, Layout
from ipcmap._core.reference_allocator import SEARCH
from ipcmap._core.reference_cells import Cell
from places import MIB, WORDS, Place

# The layout


@pytest.fixture
def place(engine: str) -> Place:
    """A fresh region, shared with children forked from here on."""
    return Place(engine=engine)


@pytest.mark.parametrize("reserved", [64 << 20, 100 << 20, (64 << 20) + 4096, 1 << 40, 1 << 44])
@pytest.mark.parametrize("max_processes", [1, 4096, 1 << 16])
def test_no_two_parts_of_an_arena_overlap(reserved: int, max_processes: int) -> None:
    """Header, slots, tags, lengths and cells stand one behind the other, within the reserve."""
    layout = Layout(reserved, max_processes)
    table = layout.slot_table
    ranges = [(0, 320), (table, table + slot_layout.nbytes(max_processes))]
    for size_class in layout.classes:
        line = 8 * size_class.high_water
        ranges.append((line, line + 64))
        words = (size_class.tags, size_class.lengths)
        ranges.extend((8 * word, 8 * (word + size_class.capacity)) for word in words)
        first = size_class.first_cell
        ranges.append((first, first + size_class.capacity * size_class.cell_nbytes))
    ranges.sort()

    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert ranges[-1][1] <= reserved
    assert layout.classes[-1].cell_nbytes >= reserved // 16


def test_every_cell_is_found_by_its_offset_and_nothing_else_is() -> None:
    """A place that is no beginning of a cell has no cell."""
    layout = Layout(64 << 20, 10)
    for size_class in layout.classes:
        last = size_class.capacity - 1
        for index in (0, last):
            offset = size_class.first_cell + index * size_class.cell_nbytes
            assert layout.locate(offset) == (size_class, index)
            assert layout.locate(offset + 8) is None
    for offset in (-64, 0, 128, 64 << 20, 1 << 70):
        assert layout.locate(offset) is None


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 128, 129, 4096, 4097, 10 * MIB])
def test_a_block_gets_the_smallest_cell_that_holds_it(nbytes: int) -> None:
    """Cells are powers of two from 64 bytes on."""
    layout = Layout(64 << 20, 10)
    number = layout.class_number(nbytes)

    assert layout.classes[number].cell_nbytes >= nbytes
    assert not number or layout.classes[number - 1].cell_nbytes < nbytes


def test_a_reserve_too_small_for_its_tables_is_refused() -> None:
    """The error has both figures."""
    with pytest.raises(ValueError, match="reserve=100000 bytes, max_processes=4096"):
        Layout(100_000, 4096)


# Allocate and free


def test_a_freed_cell_is_used_again_in_its_next_generation(place: Place) -> None:
    """The old handle is stale, for every use."""
    first = place.allocator.allocate(100)
    place.allocator.free(first)
    second = place.allocator.allocate(90)

    assert (second.offset, second.generation) == (first.offset, first.generation + 1)
    for use in (place.allocator.check, place.allocator.free):
        with pytest.raises(StaleHandle, match=r"generation=1 .* now: generation=2"):
            use(first)
    with pytest.raises(StaleHandle):
        place.allocator.retag(first, 1)
    place.allocator.check(second)
    assert place.in_use() == 90


def test_the_last_generation_is_followed_by_the_first(place: Place) -> None:
    """A generation never is 0, which no handle has."""
    cell = place.allocator.allocate(8)
    place.allocator.free(cell)
    place.words[place.tag(cell)] = (2**32 - 1) << 32

    assert place.allocator.allocate(8).generation == 1


def test_a_handle_of_another_kind_is_stale(place: Place) -> None:
    """A block of one kind is never taken for another."""
    cell = place.allocator.allocate(8, kind=7)

    assert place.allocator.find(cell.offset, cell.generation, 7) == cell
    with pytest.raises(StaleHandle, match=r"kind=8, now: .* kind=7"):
        place.allocator.find(cell.offset, cell.generation, 8)


def test_a_search_is_bounded_and_comes_round(place: Place) -> None:
    """Free cells out of its reach are found later, at a cost of few fresh cells."""
    cells = [place.allocator.allocate(64) for _ in range(1000)]
    for cell in cells[::-1][-500:]:
        place.allocator.free(cell)
    size_class = place.layout.classes[0]
    place.words[size_class.cursor] = 500
    for _ in range(500):
        place.allocator.allocate(64)

    assert place.words[size_class.high_water] <= 1000 + 500 // SEARCH + 2
    assert place.in_use() == 1000 * 64


def test_a_full_class_passes_on_to_the_next_larger_one(engine: str) -> None:
    """And after the last of all it is full; each cell is handed out once."""
    nbytes = MIB - 5
    place = Place(WORDS, reserve=MIN_RESERVE, engine=engine)
    larger = [c for c in place.layout.classes if c.cell_nbytes >= nbytes]
    cells = [place.allocator.allocate(nbytes) for c in larger for _ in range(c.capacity)]
    with pytest.raises(ArenaFull, match="no free cell of this length: nbytes=1048571"):
        place.allocator.allocate(nbytes)

    assert len({cell.offset for cell in cells}) == len(cells)
    assert place.in_use() == len(cells) * nbytes
    for cell in cells:
        place.allocator.free(cell)
    assert place.in_use() == 0
    assert place.allocator.allocate(16 * MIB).nbytes == 16 * MIB


def test_a_full_class_finds_the_one_cell_that_is_freed(engine: str) -> None:
    """Wherever the search begins."""
    place = Place(WORDS, reserve=MIN_RESERVE, engine=engine)
    size_class = next(c for c in place.layout.classes if c.capacity == 1024)
    cells = [place.allocator.allocate(size_class.cell_nbytes) for _ in range(1024)]
    place.allocator.free(cells[5])
    place.words[size_class.cursor] = 700

    assert place.allocator.allocate(size_class.cell_nbytes).offset == cells[5].offset


def test_beyond_the_limit_it_is_full_with_figures(engine: str) -> None:
    """The failed call takes nothing; after a free it works again."""
    place = Place(limit=1000, engine=engine)
    first = place.allocator.allocate(900)
    with pytest.raises(
        ArenaFull, match=r"nbytes=101, in use=900, limit=1000; .*Arena\(limit=\.\.\.\)"
    ) as caught:
        place.allocator.allocate(101)

    assert isinstance(caught.value, MemoryError)
    second = place.allocator.allocate(100)
    place.allocator.free(first)
    place.allocator.allocate(0)
    assert place.in_use() == second.nbytes + 64


def test_a_block_larger_than_the_largest_cell_says_so(engine: str) -> None:
    """No wait and no free would help."""
    place = Place(reserve=MIN_RESERVE, engine=engine)
    for nbytes in (16 * MIB + 1, WORDS, 1 << 100):
        with pytest.raises(ArenaFull, match=f"nbytes={nbytes}, largest=16777216 bytes"):
            place.allocator.allocate(nbytes)


class Model(RuleBasedStateMachine):
    """Any order of calls, against a dictionary of what each slot must have."""

    cells = Bundle("cells")
    engine = "reference"

    def __init__(self) -> None:
        super().__init__()
        self.place = Place(limit=4 * MIB, engine=self.engine)
        self.owned: dict[Cell, int] = {}
        self.freed: list[Cell] = []

    @rule(
        target=cells, nbytes=st.integers(0, 3 * MIB) | st.integers(0, 300), slot=st.integers(1, 3)
    )
    def allocate(self, nbytes: int, slot: int) -> object:
        """Take a block, filled with its own mark, unless that is beyond the limit."""
        self.place.slot = slot
        fits = sum(max(64, cell.nbytes) for cell in self.owned) + max(64, nbytes) <= 4 * MIB
        try:
            cell = self.place.allocator.allocate(nbytes)
        except ArenaFull:
            assert not fits
            return multiple()
        assert fits
        for other in self.owned:
            end = other.offset + other.nbytes
            assert cell.offset >= end or cell.offset + cell.nbytes <= other.offset
        self.owned[cell] = slot
        return cell

    @rule(cell=consumes(cells))
    def free(self, cell: Cell) -> None:
        """Give it back; once is all."""
        if cell in self.owned:
            self.place.allocator.free(cell)
            del self.owned[cell]
        with pytest.raises(StaleHandle):
            self.place.allocator.free(cell)

    @rule(cell=cells, slot=st.integers(1, 3))
    def retag(self, cell: Cell, slot: int) -> None:
        """Hand it over."""
        if cell in self.owned:
            self.place.allocator.retag(cell, slot)
            self.owned[cell] = slot

    @rule(slot=st.integers(1, 3), keep=st.booleans())
    def sweep(self, slot: int, keep: bool) -> None:
        """Free what a slot owns; keep what is large, or nothing."""
        gone = {c for c, s in self.owned.items() if s == slot and not (keep and c.nbytes > 100)}
        swept = self.place.allocator.sweep(slot, lambda cell: keep and cell.nbytes > 100)
        assert swept == len(gone)
        self.owned = {cell: slot for cell, slot in self.owned.items() if cell not in gone}

    @invariant()
    def everything_is_where_it_must_be(self) -> None:
        """Owners, lengths and bytes in use agree with the model."""
        for slot in range(1, 4):
            blocks = list(self.place.allocator.owned_by(slot))
            assert len(blocks) == len(set(blocks))
            assert set(blocks) == {cell for cell, owner in self.owned.items() if owner == slot}
        assert self.place.in_use() == sum(max(64, cell.nbytes) for cell in self.owned)


def test_any_order_of_calls_does_what_the_model_says(engine: str) -> None:
    """No overlap, no lost block, exact bytes."""
    model = type("Model", (Model,), {"engine": engine})
    run_state_machine_as_test(
        model, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
