"""The allocator when it is broken off anywhere: by death, exception or damage."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from children import Fork
from ipcmap import ArenaFull, BusyError, CorruptError, StaleHandle
from ipcmap._core import reference_sections as sections
from ipcmap._core.layout import ALLOCATOR_SECTION, BYTES_IN_USE, JOURNAL
from ipcmap._core.reference_allocator import GIVE_BACK
from ipcmap._core.reference_cells import Cell
from places import WORDS, Place

# Deaths


@pytest.fixture
def place(engine: str) -> Place:
    """A fresh region, shared with children forked from here on."""
    return Place(engine=engine)


@pytest.fixture
def trapped() -> Place:
    """The same of the reference engine, under whose words a trap can stand."""
    return Place()


def churn(place: Place, slot: int, seed: int, counter: int) -> None:
    """Allocate and free for ever as ``slot``, and count the rounds in a word."""
    chance, place.slot, mine = random.Random(seed), slot, []
    while True:
        mine.append(place.allocator.allocate(chance.choice([0, 64, 100, 5000, GIVE_BACK])))
        if len(mine) > 8:
            place.allocator.free(mine.pop(chance.randrange(len(mine))))
        place.words[counter] += 1


def test_a_storm_of_deaths_loses_no_block_and_no_byte(place: Place, chance: random.Random) -> None:
    """A hundred killed at random moments; after each sweep all is as at the beginning."""
    kept = [place.allocator.allocate(200) for _ in range(5)]
    for cell in kept:
        place.view(cell)[:] = b"k" * 200
    counter = place.layout.slot_table // 8

    for victim in range(50):
        before, pids = [place.words[counter + i] for i in (0, 1)], []
        for i in (0, 1):
            pids.append(os.fork())
            if pids[i] == 0:
                try:
                    churn(place, 2 + i, victim, counter + i)
                finally:
                    os._exit(1)
        more = chance.randrange(1, 100)
        while any(place.words[counter + i] < before[i] + more for i in (0, 1)):
            os.sched_yield()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status)
        place.allocator.sweep(2)
        place.allocator.sweep(3)

        assert list(place.allocator.owned_by(2)) == list(place.allocator.owned_by(3)) == []
        assert place.in_use() == 5 * 200
    assert place.allocator.sweep(2) == 0
    assert list(place.allocator.owned_by(7)) == kept
    assert all(bytes(place.view(cell)) == b"k" * 200 for cell in kept)


class Killing:
    """Words that end the process by SIGKILL at the n-th access to them."""

    def __init__(self, words: memoryview, accesses: int) -> None:
        self.words, self.left = words, accesses

    def count(self) -> None:
        """Count an access, and die at the last."""
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getitem__(self, index: int | slice) -> object:
        self.count()
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.count()
        self.words[index] = value


@pytest.mark.parametrize("nbytes", [100, GIVE_BACK])
def test_a_death_before_any_access_of_allocate_and_free_is_repaired(
    trapped: Place, fork: Fork, nbytes: int
) -> None:
    """Each load and store in turn is the last; a sweep then finds all, and the counts are exact."""
    kept = trapped.allocator.allocate(nbytes)
    expected = trapped.in_use()

    def die_at(access: int) -> None:
        trapped.slot = 1
        trapped.allocator._words = Killing(trapped.words, access)  # type: ignore[assignment]
        trapped.allocator.free(trapped.allocator.allocate(nbytes))
        os._exit(3)

    accesses = 0
    while True:
        accesses += 1
        ended = fork(die_at, accesses).wait()
        other = trapped.allocator.allocate(nbytes)
        assert trapped.in_use() == expected + nbytes + sum(
            cell.nbytes for cell in trapped.allocator.owned_by(1)
        )
        trapped.allocator.free(other)
        assert trapped.allocator.sweep(1) <= 1
        assert trapped.in_use() == expected
        if ended == 3:
            break
        assert ended == -signal.SIGKILL
    trapped.allocator.check(kept)
    assert accesses > 30


def retired(place: Place, slot: int) -> Iterator[int]:
    """Yield the tags of blocks whose free was not finished."""
    for size_class in place.layout.classes:
        for index in range(place.words[size_class.high_water]):
            tag = place.words[size_class.tags + index]
            if tag & 1 << 21 and tag & 0xFFFFF == slot:
                yield tag


def test_a_sweep_that_died_is_finished_by_the_next(trapped: Place, fork: Fork) -> None:
    """Its own slot has what it had begun to free."""
    trapped.slot = 1
    for nbytes in (10, 5000, GIVE_BACK, GIVE_BACK):
        trapped.allocator.allocate(nbytes)

    def die_at(access: int) -> None:
        trapped.slot = 2
        trapped.allocator._words = Killing(trapped.words, access)  # type: ignore[assignment]
        trapped.allocator.sweep(1)

    for access in range(20, 200, 7):
        fork(die_at, access).wait()
    trapped.slot = 7
    trapped.allocator.sweep(1)
    trapped.allocator.sweep(2)

    assert [*retired(trapped, 1), *retired(trapped, 2)] == []
    assert trapped.in_use() == 0


# Exceptions, threads, forks


def test_handlers_that_raise_anywhere_lose_nothing(
    place: Place, fork: Fork, chance: random.Random
) -> None:
    """No section stays held, and the owner's sweep finds whatever the caller does not have."""

    class Raised(Exception):
        pass

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    place.slot = 1
    previous = signal.signal(signal.SIGALRM, handle)
    raised = 0
    try:
        for _ in range(1000):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4))
                while True:
                    place.allocator.free(place.allocator.allocate(chance.choice([10, GIVE_BACK])))
            except Raised:
                raised += 1
            held = sections.unlock(place.pages.address + ALLOCATOR_SECTION) == 0
            assert not held
            place.allocator.sweep(1)
            assert place.in_use() == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert raised == 1000
    assert fork(place.allocator.allocate, 10).wait() == 0


def test_a_handler_inside_a_change_is_refused_and_the_change_goes_on(trapped: Place) -> None:
    """It gets an error instead of a deadlock."""
    answers = []

    class Handled(Killing):
        def count(self) -> None:
            self.left -= 1
            if not self.left:
                with pytest.raises(BusyError, match="signal handler"):
                    trapped.allocator.allocate(1)
                answers.append("refused")

    trapped.allocator._words = Handled(trapped.words, 5)  # type: ignore[assignment]
    cell = trapped.allocator.allocate(100)

    assert answers == ["refused"]
    trapped.allocator.free(cell)
    trapped.allocator._words = trapped.words
    assert trapped.in_use() == 0


@pytest.mark.parametrize("call", ["free", "retag", "sweep"])
def test_a_block_that_changes_hands_at_the_last_moment_is_left_alone(
    trapped: Place, call: str
) -> None:
    """Between the look at a tag and its change another process frees the cell and takes it."""
    cell = trapped.allocator.allocate(100)
    other = Place.beside(trapped, slot=1)
    taken: list[Cell] = []

    class Overtaken(Killing):
        """Words on which the other process acts after the first look at the tag."""

        def __getitem__(self, index: int | slice) -> object:
            tag = trapped.tag(cell)
            found: Any = self.words[index]
            if isinstance(index, slice):
                found = memoryview(found.tobytes()).cast("Q")
            looked = index == tag or (isinstance(index, slice) and index.start == tag)
            if looked and not taken:
                other.allocator.free(cell)
                taken.append(other.allocator.allocate(90))
            return found

    trapped.allocator._words = Overtaken(trapped.words, 0)  # type: ignore[assignment]
    if call == "sweep":
        assert trapped.allocator.sweep(7) == 0
    else:
        arguments = (cell, 5) if call == "retag" else (cell,)
        with pytest.raises(StaleHandle):
            getattr(trapped.allocator, call)(*arguments)
    trapped.allocator._words = trapped.words

    assert taken[0].offset == cell.offset
    assert list(trapped.allocator.owned_by(1)) == taken
    assert trapped.in_use() == 90


def test_threads_and_processes_at_once_lose_nothing(place: Place, fork: Fork) -> None:
    """Each finds in its blocks what it wrote there."""

    def work(mark: int) -> None:
        chance = random.Random(mark)
        mine: list[Cell] = []
        for _ in range(400):
            cell = place.allocator.allocate(chance.randrange(300))
            place.view(cell)[:] = bytes([mark]) * cell.nbytes
            mine.append(cell)
            if len(mine) > 20:
                cell = mine.pop(chance.randrange(20))
                assert bytes(place.view(cell)) == bytes([mark]) * cell.nbytes
                place.allocator.free(cell)
        for cell in mine:
            assert bytes(place.view(cell)) == bytes([mark]) * cell.nbytes
            place.allocator.free(cell)

    children = [fork(work, 1), fork(work, 2)]
    threads = [threading.Thread(target=work, args=(mark,)) for mark in (3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [child.wait() for child in children] == [0, 0]
    assert place.in_use() == 0


def test_a_child_forked_while_a_thread_allocates_works(place: Place, fork: Fork) -> None:
    """The section that the parent's thread held at that moment is not the child's to wait for."""
    stop = threading.Event()

    def allocate_for_ever() -> None:
        while not stop.is_set():
            place.allocator.free(place.allocator.allocate(10))

    def child() -> None:
        for _ in range(50):
            place.allocator.free(place.allocator.allocate(10))

    thread = threading.Thread(target=allocate_for_ever)
    thread.start()
    try:
        assert [fork(child).wait() for _ in range(20)] == [0] * 20
    finally:
        stop.set()
        thread.join()
    assert place.in_use() == 0


# Damage


@pytest.mark.parametrize(
    "tag", [1, 1 << 20, 1 << 23, WORDS - 1, 1 << 20 | 1, 5 << 32 | 1 << 20 | 999, 5 << 32 | 5 << 20]
)
def test_a_scribbled_tag_is_noticed_and_never_handed_out(place: Place, tag: int) -> None:
    """A handle gets CorruptError; everyone else goes on without the cell."""
    cell = place.allocator.allocate(100)
    place.words[place.tag(cell)] = tag

    for use in (place.allocator.check, place.allocator.free):
        with pytest.raises(CorruptError, match="tag of a block is damaged"):
            use(cell)
    assert cell.offset not in {place.allocator.allocate(100).offset for _ in range(50)}
    place.allocator.sweep(7)
    assert sum(census.damaged for _, census in place.allocator.census()) == 1
    assert place.in_use() == 0


def test_a_scribbled_length_is_noticed(place: Place) -> None:
    """The block can still be freed by its handle."""
    cell = place.allocator.allocate(100)
    found = place.layout.locate(cell.offset)
    assert found
    place.words[found[0].lengths + found[1]] = 129

    with pytest.raises(CorruptError, match="nbytes=129"):
        place.allocator.find(cell.offset, cell.generation, 0)
    place.allocator.free(cell)
    place.allocator.sweep(7)
    assert place.in_use() == 0


@pytest.mark.parametrize("offset", [-1, 0, 7, 128, 1 << 30, 1 << 80])
def test_a_handle_of_no_block_is_damaged(place: Place, offset: int) -> None:
    """It never reaches memory."""
    with pytest.raises(CorruptError, match="no block begins at"):
        place.allocator.find(offset, 1, 0)


def test_scribbled_counts_and_hints_end_in_a_legal_outcome(
    engine: str, chance: random.Random
) -> None:
    """The right result, ArenaFull or CorruptError; no overlap, and a sweep puts it right."""
    outcomes = {"right": 0, ArenaFull: 0, CorruptError: 0}
    for _ in range(300):
        place = Place(engine=engine)
        cells = [place.allocator.allocate(100) for _ in range(20)]
        size_class = place.layout.classes[1]
        word = chance.choice(
            [size_class.cursor, size_class.used, size_class.used_nbytes, BYTES_IN_USE, JOURNAL]
        )
        place.words[word] = chance.choice([0, 1, 19, 21, 2**63, WORDS - 1, chance.randrange(WORDS)])
        for cell in cells[:10]:
            place.allocator.free(cell)
        taken = set(cells[10:])
        for _ in range(20):
            try:
                cell = place.allocator.allocate(100)
            except (ArenaFull, CorruptError) as error:
                outcomes[type(error)] += 1
            else:
                assert cell.offset not in {other.offset for other in taken}
                taken.add(cell)
                outcomes["right"] += 1
        place.allocator.sweep(50)
        assert place.in_use() == len(taken) * 100
    assert outcomes["right"] > 1000


@pytest.mark.parametrize("mark", [0, 3, 19, 50])
def test_a_scribbled_high_water_mark_within_bounds_costs_no_block_its_bytes(
    place: Place, mark: int
) -> None:
    """Cells above it are looked at before they are taken."""
    cells = [place.allocator.allocate(100) for _ in range(20)]
    place.words[place.layout.classes[1].high_water] = mark

    offsets = {place.allocator.allocate(100).offset for _ in range(40)}
    assert len(offsets) == 40
    assert not offsets & {cell.offset for cell in cells}


def test_a_high_water_mark_out_of_bounds_is_noticed(place: Place) -> None:
    """By every call that would go by it."""
    place.words[place.layout.classes[0].high_water] = WORDS - 1

    for call in (lambda: place.allocator.allocate(1), lambda: place.allocator.sweep(7)):
        with pytest.raises(CorruptError, match="high-water mark is damaged"):
            call()
    assert place.allocator.allocate(100).nbytes == 100


def test_a_high_water_mark_amid_cells_that_were_never_used_is_noticed() -> None:
    """In a reserve of 16 TiB there are billions of them, all of which a search would touch."""
    place = Place(reserve=1 << 44)
    cell = place.allocator.allocate(1)
    place.words[place.layout.classes[0].high_water] = place.layout.classes[0].capacity - 1

    calls: list[Callable[[], object]] = [
        place.allocator.census,
        lambda: place.allocator.sweep(8),
        lambda: list(place.allocator.of_kind(9)),
    ]
    for call in calls:
        with pytest.raises(CorruptError, match="high-water mark is damaged"):
            call()
    assert place.allocator.find(cell.offset, cell.generation, cell.kind) == cell
