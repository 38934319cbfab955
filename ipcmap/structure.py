"""What all shared objects in an arena have in common: a block, handles that travel, an end.

A structure belongs to the process that made it until somebody else can have a handle
of it; from then on it is the family's, and outlives every one of its processes. It is
shared by the first fork after its birth, and by the first pickle.

    made ---> its maker's:  freed with the last handle, or with the maker's death
    shared -> the family's: freed by destroy(), or with the arena
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

from ipcmap._core.layout import IDENTITY
from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_listeners import Place
from ipcmap._core.reference_sections import Stalled
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena, default_arena, inherited_arena
from ipcmap.errors import BusyError, IpcmapError

__all__ = ["Structure", "free_left_behind", "free_quietly", "leave_behind"]


class Structure:
    """Base of what lives in a block of an arena and is used through handles.

    A handle keeps the arena from being closed in its process.
    """

    _kind: ClassVar[int]
    # By class and engine, what is made in an arena of that engine; all others are what they say.
    _accelerated: ClassVar[dict[tuple[type[Structure], str], type[Any]]] = {}

    __slots__ = (
        "__weakref__", "_address", "_allocator", "_arena", "_cell", "_maker", "_memory", "_tag",
        "_tag_at", "_words",
    )  # fmt: skip

    _allocator: Allocator
    _arena: Arena
    _cell: Cell
    _maker: int  # pid of the one process that can have a handle, 0 = it is shared
    _memory: memoryview
    _address: int
    _words: memoryview  # of the arena
    _tag_at: int  # which of them is our block's tag
    _tag: int  # what it is while the handle is good, owned by the family

    def __new__(cls, *_: Any, arena: Arena | None = None, **__: Any) -> Self:
        if all(public is not cls for public, _engine in cls._accelerated):
            return object.__new__(cls)  # which may find its arena in another argument
        return cls._blank(arena or default_arena())

    @classmethod
    def _blank(cls, arena: Arena) -> Self:
        """Return a handle of nothing yet, of the class that the arena's engine has for it."""
        chosen: type[Self] = cls._accelerated.get((cls, arena._engine), cls)
        return object.__new__(chosen)

    def _make(self, arena: Arena | None, nbytes: int, zeroed: int) -> None:
        """Take a block, of which the first bytes are zeroed, and be its first handle."""
        arena = arena or default_arena()
        free_left_behind()
        cell = arena._allocate(nbytes, self._kind)
        self._place(arena, cell)
        self._memory[:zeroed] = bytes(zeroed)
        self._maker = os.getpid()
        _unshared.add(self)

    def _place(self, arena: Arena, cell: Cell) -> None:
        inside = arena._open()
        self._arena, self._cell, self._allocator = arena, cell, inside.allocator
        self._maker = 0
        self._words = inside.words
        self._tag_at, self._tag = inside.allocator.tag_word(cell)
        window = inside.pages.window()
        self._memory = window[cell.offset : cell.offset + cell.nbytes]
        self._address = inside.pages.address + cell.offset

    def _attach(self) -> None:
        """Make the rest of a handle whose block is there: a part of every subclass."""
        raise NotImplementedError

    def _place_of_listened(self) -> Place:
        """Return where it lies, for those who listen to it."""
        inside = self._arena._open()
        family = inside.family
        return Place(inside.pages.window(), inside.allocator, family.slot, family.known, self._cell)

    def _contents(self) -> Iterable[Cell]:
        """Name the blocks that end with this one, when nobody uses it any more."""
        return ()

    @classmethod
    def _restored(cls, arena_id: int, offset: int, generation: int) -> Self:
        """Return a handle of a structure that is there still; called by pickle."""
        arena = inherited_arena(arena_id)
        cell = arena._open().allocator.find(offset, generation, cls._kind)
        self = cls._blank(arena)
        self._place(arena, cell)
        self._attach()
        return self

    def __reduce__(self) -> tuple[Any, tuple[int, int, int]]:
        self._check()
        self._share()
        return self._restored, (self._arena._id, self._cell.offset, self._cell.generation)

    def destroy(self) -> None:
        """Free it for the whole family; every handle of it is stale then.

        It must not be in use: a call that another thread or process is making
        meanwhile may end in any way that a scribbled ring or lock does. What was
        never shared (by a fork, or by pickle) needs no such call: it is freed with its handle.

        Raises:
            BusyError: A signal handler interrupted a change of the arena.
            StaleHandle: It was destroyed before.
        """
        for cell in self._contents():
            free_quietly(self._allocator, cell)
        self._allocator.free(self._cell)
        self._maker = 0

    def _check(self) -> None:
        """Raise :class:`StaleHandle` where it was destroyed."""
        if self._words[self._tag_at] & IDENTITY != self._tag:
            self._allocator.check(self._cell)

    def _is_good(self) -> bool:
        return bool(self._words[self._tag_at] & IDENTITY == self._tag)

    def _share(self) -> None:
        if self._maker:
            self._allocator.retag(self._cell, owner=0)
            self._maker = 0
        _unshared.discard(self)

    def __del__(self) -> None:
        if getattr(self, "_maker", 0) == os.getpid():
            for cell in self._contents():
                free_quietly(self._allocator, cell)
            free_quietly(self._allocator, self._cell)


# What this process made and nobody else can have yet; and how to free what could not be
# freed when it was to be, since somebody was in the way.
_unshared: weakref.WeakSet[Structure] = weakref.WeakSet()
_left_behind: list[Callable[[], bool]] = []


def free_quietly(allocator: Allocator, cell: Cell) -> None:
    """Free a block, later where that cannot be done now, or not soon.

    So it is where a finalizer interrupted a change of its arena, or another is in one.
    """
    if not _is_freed(allocator, cell):
        leave_behind(lambda: _is_freed(allocator, cell))
    elif _left_behind:
        free_left_behind()


def _is_freed(allocator: Allocator, cell: Cell) -> bool:
    try:
        allocator.free(cell, Deadline(0))
    except (BusyError, Stalled):
        return False
    except IpcmapError:  # nor is it there any more
        pass
    return True


def leave_behind(free: Callable[[], bool]) -> None:
    """Have something freed later: call this again, until it returns ``True``."""
    _left_behind.append(free)


def free_left_behind() -> None:
    """Free what could not be freed before, up to the first that cannot be now."""
    for _ in range(len(_left_behind)):
        try:
            free = _left_behind.pop(0)
        except IndexError:  # another thread was faster
            return
        done = False
        try:
            done = free()
        finally:
            if not done:
                leave_behind(free)
        if not done:
            return


def _share_all() -> None:
    for structure in list(_unshared):
        try:
            structure._share()
        except IpcmapError:  # destroyed, or the arena is damaged: nothing that a fork could end
            _unshared.discard(structure)


# After the fork once more, for what another thread made while it was under way.
os.register_at_fork(before=_share_all, after_in_parent=_share_all)
