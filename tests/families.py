"""A table of process slots in a mapping of its own, and memory that counts the stores to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import pytest

from ipcmap import Mapping
from ipcmap._core import reference_sections as sections
from ipcmap._core import slot_layout as at
from ipcmap._core.reference_slots import SlotTable
from ipcmap._deadline import Deadline

SHARED = 1024  # bytes behind the section for a test's own words


class Raised(Exception):
    """What a signal handler raises."""


def raise_it() -> None:
    """Raise, as a signal handler might."""
    raise Raised


class Stores:
    """Count stores to several ranges of memory; act instead of one of them."""

    def __init__(self, last: int, act: Callable[[], object]) -> None:
        self.left = last
        self.act = act

    def watch(self, table: SlotTable) -> None:
        """Have every store of a table counted, shared or private."""
        table._words = cast(Any, _Watched(table._words, self))
        table._own = cast(Any, _Watched(table._own, self))


class _Watched:
    def __init__(self, words: memoryview, stores: Stores) -> None:
        self.words, self.stores = words, stores

    def __getitem__(self, index: Any) -> Any:
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.stores.left -= 1
        if not self.stores.left:
            self.stores.act()
        self.words[index] = value


class Place:
    """A mapping with a section, some words for the test, and a table."""

    def __init__(self, max_processes: int = 64, *, wipe: bool = True) -> None:
        begin = sections.NBYTES + SHARED
        self.mapping = Mapping.anonymous(begin + at.nbytes(max_processes))
        self.section = self.mapping.address
        sections.initialise(self.section)
        self.shared = self.mapping.view(sections.NBYTES, SHARED).cast("Q")
        self.words = self.mapping.view(begin).cast("Q")
        self.table = SlotTable(
            self.words, self.section + begin, self.section, max_processes, wipe=wipe
        )

    def pids(self) -> list[int]:
        """Return the pids of all members, in the order of their slots."""
        return [slot.pid for slot in self.table.members()]

    def wait_for(self, index: int, value: int = 1) -> None:
        """Wait until a word of the test's own has reached a value."""
        while self.shared[index] < value:
            os.sched_yield()

    def enter(self) -> None:
        """Hold the table's section."""
        if answer := sections.trylock(self.section):
            sections.enter(self.section, Deadline(10), [answer])

    def leave(self) -> None:
        """Let the table's section go."""
        assert sections.unlock(self.section) == 0


@pytest.fixture(params=[True, False], ids=["wiped", "unaided"])
def place(request: pytest.FixtureRequest) -> Place:
    """A fresh table, with the kernel's help at a fork and without."""
    return Place(wipe=request.param)
