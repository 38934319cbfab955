"""Large cells that are free keep their memory for the next block, within a bound."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest

from children import Fork
from ipcmap import Arena, ArenaFull, CorruptError
from ipcmap._core.layout import RETIRED, STATE, WARM, WARM_BYTES, SizeClass
from ipcmap._core.reference_allocator import GIVE_BACK, KEEP, Allocator
from ipcmap._core.reference_cells import Cell
from ipcmap._deadline import Deadline
from places import MIB, WORDS, Place
from test_allocator_deaths import Killing


@pytest.fixture
def place(engine: str) -> Place:
    """A fresh region that keeps 8 MiB, a quarter of its limit."""
    return Place(32 * MIB, reserve=1 << 34, engine=engine)


@pytest.fixture
def trapped() -> Place:
    """The same of the reference engine, under whose words a trap can stand."""
    return Place(32 * MIB, reserve=1 << 34)


def filled(place: Place, nbytes: int = MIB) -> Cell:
    """Return a block, some of whose bytes are not zero."""
    cell = place.allocator.allocate(nbytes)
    place.view(cell)[:4] = place.view(cell)[-4:] = b"full"
    return cell


def is_empty(place: Place, cell: Cell) -> bool:
    """Return whether the memory of a block was given back: its pages read as zeros."""
    return bytes(place.view(cell)[:4]) + bytes(place.view(cell)[-4:]) == bytes(8)


def class_of(place: Place, cell: Cell) -> SizeClass:
    """Return the class of a cell."""
    found = place.layout.locate(cell.offset)
    assert found
    return found[0]


def is_retired(place: Place, cell: Cell) -> bool:
    """Return whether a cell's memory was being given back."""
    return bool(place.words[place.tag(cell)] & RETIRED)


def test_freed_memory_is_kept_for_the_next_block(place: Place) -> None:
    """Whatever its length, a cell holds what stood there, until there is more than the bound."""
    for nbytes in (GIVE_BACK, GIVE_BACK // 2):
        cell = filled(place, nbytes)
        place.allocator.free(cell)

        assert not is_empty(place, cell)
        assert place.allocator.allocate(nbytes).offset == cell.offset
    assert place.kept() == 0


def test_what_is_beyond_the_bound_is_given_back(place: Place) -> None:
    """Of twenty, eight are kept, and the others are empty: but no block loses a byte."""
    used, cells = filled(place), [filled(place) for _ in range(20)]
    for cell in cells:
        place.allocator.free(cell)

    assert sum(is_empty(place, cell) for cell in cells) == 12
    assert place.kept() == 8 * MIB
    assert not is_empty(place, used)
    assert place.in_use() == MIB


def test_the_bound_of_a_large_arena_is_a_fixed_one(engine: str) -> None:
    """An idle arena is no burden."""
    place = Place(1 << 30, reserve=1 << 34, engine=engine)
    cells = [filled(place, 8 * MIB) for _ in range(10)]
    for cell in cells:
        place.allocator.free(cell)

    assert place.kept() == KEEP == 64 * MIB
    assert sum(is_empty(place, cell) for cell in cells) == 2


def test_a_cell_longer_than_the_bound_is_never_kept(place: Place) -> None:
    """Its memory goes back at once, and shorter ones need not go with it."""
    small, large = filled(place), filled(place, 10 * MIB)
    place.allocator.free(small)
    place.allocator.free(large)

    assert (is_empty(place, small), is_empty(place, large)) == (False, True)
    assert place.kept() == MIB


def test_what_is_kept_makes_way_for_blocks_at_the_limit(place: Place) -> None:
    """Blocks and kept memory together stay within the limit."""
    cells = [filled(place) for _ in range(8)]
    for cell in cells:
        place.allocator.free(cell)
    assert place.kept() == 8 * MIB
    block = place.allocator.allocate(28 * MIB)

    assert place.kept() == 4 * MIB
    with pytest.raises(ArenaFull):
        place.allocator.allocate(5 * MIB)
    warm = [place.allocator.allocate(MIB) for _ in range(4)]
    assert place.kept() == 0
    assert {cell.offset for cell in warm} <= {cell.offset for cell in cells}
    assert not any(is_empty(place, cell) for cell in warm)
    assert place.in_use() == block.nbytes + 4 * MIB


def test_warm_cells_are_taken_before_others(place: Place, chance: random.Random) -> None:
    """Wherever the search begins."""
    cells = [filled(place) for _ in range(30)]
    chance.shuffle(cells)
    for cell in cells:
        place.allocator.free(cell)
    warm = {cell.offset for cell in cells if not is_empty(place, cell)}
    taken = []
    for _ in warm:
        place.words[class_of(place, cells[0]).cursor] = chance.randrange(40)
        taken.append(place.allocator.allocate(MIB).offset)

    assert len(warm) == 8
    assert set(taken) == warm


def test_a_sweep_keeps_within_the_bound_as_well(place: Place) -> None:
    """A sweeper without a slot leaves the rest to the next call that can."""
    place.slot = 1
    cells = [filled(place) for _ in range(20)]
    place.slot = 7
    place.allocator.sweep(1)
    assert place.kept() == 20 * MIB

    place.allocator.free(place.allocator.allocate(5))
    assert place.kept() == 8 * MIB
    place.slot = 1
    more = [filled(place) for _ in range(20)]
    place.slot = 7
    place.allocator.sweep(1, owner=7)
    assert place.kept() == 8 * MIB
    assert sum(is_empty(place, cell) for cell in {*cells, *more}) >= 12
    assert place.in_use() == 0


def test_the_statistics_say_how_much_is_kept() -> None:
    """It is no block, and not in use."""
    arena = Arena(256 * MIB)
    arena.allocate(3 * MIB).free()
    statistics = arena.statistics()

    assert (statistics.blocks, statistics.bytes_in_use) == (0, 0)
    assert statistics.bytes_kept == 4 * MIB
    arena.close()


# Deaths and damage


def test_a_death_before_any_access_while_memory_is_given_back_is_repaired(
    trapped: Place, fork: Fork
) -> None:
    """A sweep gives back what was being given back, and no cell is lost."""
    accesses = 0
    while True:
        accesses += 1
        cells = [filled(trapped) for _ in range(9)]
        for cell in cells[:8]:
            trapped.allocator.free(cell)
        ended = fork(free_and_die_at, trapped, cells[8], accesses).wait()
        trapped.allocator.sweep(1)
        tag = trapped.words[trapped.tag(cells[8])]
        if tag & STATE:  # it had not come to free it
            trapped.allocator.free(cells[8])
        trapped.allocator.free(trapped.allocator.allocate(5))  # what the dead one had left to trim

        assert trapped.in_use() == 0
        assert trapped.kept() <= 8 * MIB
        assert not any(is_retired(trapped, cell) for cell in cells)
        if ended == 3:
            break
        assert ended == -signal.SIGKILL
    assert accesses > 40
    assert trapped.words[class_of(trapped, cells[0]).high_water] == 9


def free_and_die_at(place: Place, cell: Cell, access: int) -> None:
    """Free a block, and with it bring about an excess."""
    place.slot = 1
    place.allocator._words = Killing(place.words, access)  # type: ignore[assignment]
    place.allocator.free(cell)
    os._exit(3)


@pytest.mark.parametrize("raises", [False, True])
def test_a_child_that_a_handler_forked_while_memory_was_given_back_leaves_it_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """It goes on when the cell has another block, whose bytes are not its own to empty."""
    inside, (read_end, write_end) = Allocator._inside, os.pipe()
    children: list[int] = []

    def fork_after_a3(allocator: Allocator, *change: Any, deadline: Deadline) -> object:
        result: object = inside(allocator, *change, deadline=deadline)
        if is_retired(place, cell) and not children:
            children.append(os.fork())  # as a handler might between any two bytecodes
            if children[0] == 0:
                os.read(read_end, 1)
                if raises:
                    raise SystemExit
        return result

    cell = filled(place, 10 * MIB)
    monkeypatch.setattr(Allocator, "_inside", fork_after_a3)
    try:
        place.allocator.free(cell)
    finally:
        if children[0] == 0:
            os._exit(0)
    block = filled(place, 10 * MIB)
    os.write(write_end, b"x")
    os.waitpid(children[0], 0)
    os.close(read_end)
    os.close(write_end)

    assert block.offset == cell.offset
    assert not is_empty(place, block)
    assert (place.in_use(), place.kept()) == (10 * MIB, 0)


def test_two_that_give_back_at_once_never_empty_a_block(place: Place, fork: Fork) -> None:
    """Each finds in its large blocks what it wrote there."""

    def work(mark: int) -> None:
        chance, mine = random.Random(mark), []
        place.slot = mark
        for _ in range(150):
            cell = place.allocator.allocate(chance.choice([1, 2, 3]) * MIB)
            place.view(cell)[:: MIB // 4] = bytes([mark]) * (cell.nbytes // (MIB // 4))
            mine.append(cell)
            if len(mine) > 4:
                cell = mine.pop(chance.randrange(4))
                found = bytes(place.view(cell)[:: MIB // 4])
                assert found == bytes([mark]) * (cell.nbytes // (MIB // 4))
                place.allocator.free(cell)

    children = [fork(work, mark) for mark in (1, 2)]

    assert [child.wait() for child in children] == [0, 0]
    place.allocator.sweep(1)
    place.allocator.sweep(2)
    assert place.in_use() == 0


@pytest.mark.parametrize("owner", [0, 7])
@pytest.mark.parametrize("nbytes", [100, 5000])
def test_a_warm_or_retired_tag_on_a_small_cell_costs_no_neighbour_its_bytes(
    place: Place, nbytes: int, owner: int
) -> None:
    """The memory of a small cell is never given back, whatever its tag says."""
    cells = [filled(place, nbytes) for _ in range(5)]
    for cell, bits in ((cells[1], WARM), (cells[3], 3 << 20 | 1)):
        tag = place.tag(cell)
        place.words[tag] = place.words[tag] & ~(STATE | WARM) | bits
    place.words[WARM_BYTES] = 1 << 40
    place.allocator.sweep(1, owner=owner)
    place.allocator.free(place.allocator.allocate(9 * MIB))

    assert not any(is_empty(place, cell) for cell in cells)
    assert place.in_use() == 3 * nbytes


def test_scribbled_counts_of_warm_cells_end_in_a_legal_outcome(
    engine: str, chance: random.Random
) -> None:
    """They say where to look; the tags say what is there, and a sweep puts the counts right."""
    for _ in range(60):
        place = Place(engine=engine)
        cells = [filled(place) for _ in range(6)]
        word = chance.choice([class_of(place, cells[0]).warm, WARM_BYTES])
        for cell in cells[:3]:
            place.allocator.free(cell)
        place.words[word] = chance.choice([0, 1, 19, 2**63, WORDS - 1, chance.randrange(WORDS)])
        more = [filled(place) for _ in range(5)]
        offsets = {cell.offset for cell in cells[3:] + more}
        assert len(offsets) == 8
        for cell in more:
            place.allocator.free(cell)
        assert not any(is_empty(place, cell) for cell in cells[3:])
        place.allocator.sweep(50)
        assert place.in_use() == 3 * MIB


def test_a_damaged_mark_of_one_class_does_not_keep_others_from_being_trimmed(place: Place) -> None:
    """Who allocates in that class is told."""
    cells = [filled(place) for _ in range(9)]
    large = place.allocator.allocate(4 * MIB)
    place.allocator.free(large)
    place.words[class_of(place, large).high_water] = WORDS - 1
    for cell in cells:
        place.allocator.free(cell)

    assert place.words[WARM_BYTES] == 8 * MIB
    with pytest.raises(CorruptError, match="high-water mark is damaged"):
        place.allocator.allocate(4 * MIB)
