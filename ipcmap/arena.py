"""The arena: one reserved region, from which the family's shared objects get their bytes.

It reserves much and touches little: addresses are taken once and never grow, and
pages cost memory when they are first touched. Every later child inherits it at the
same addresses. A handle of a block can therefore be sent to children that already
run, and the default arena is mapped at import, before any of them.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

from ipcmap._core import backend as default_engine
from ipcmap._core import engines
from ipcmap._core.allocators import allocators
from ipcmap._core.header import check_header, write_header
from ipcmap._core.layout import (
    MAX_PROCESSES,
    MIN_RESERVE,
    SLOTS_SECTION,
    SWEPT_AT,
    WORD,
    Kind,
    Layout,
)
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_burial import keeps
from ipcmap._core.reference_sections import initialise
from ipcmap._deadline import Deadline
from ipcmap.block import Block, Inside
from ipcmap.errors import ArenaFull, BusyError, ClosedError, IpcmapError, NotInherited
from ipcmap.family import ExitRecord, Family
from ipcmap.memory_limits import free_memory
from ipcmap.pages import byte_count, reserve_pages

__all__ = ["Arena", "ArenaStatistics", "ClassStatistics", "default_arena", "sweep_arenas"]

_FOR_EVER = Deadline(None)
_SWEEP_EVERY = 10**9  # nanoseconds
_RESERVE_FOR_LIMIT = 64  # a class of blocks has 1/64 of the reserve
_SMALLEST_DEFAULT, _LARGEST_DEFAULT = 1 << 40, 1 << 44  # bytes of a default reserve


@dataclass(frozen=True)
class ClassStatistics:
    """The blocks of one length of cell, as they were counted."""

    cell_nbytes: int
    blocks: int
    bytes_in_use: int


@dataclass(frozen=True)
class ArenaStatistics:
    """An arena as it was: a snapshot, counted anew from the owner tags of all blocks.

    Attributes:
        reserved: Bytes of addresses.
        limit: The most bytes in use.
        blocks: Blocks that were allocated and not freed.
        bytes_in_use: Their lengths added up, each as 64 bytes at least.
        damaged: Cells whose bookkeeping makes no sense; they are never handed out.
        bytes_kept: Memory of freed blocks that is kept for the next ones, at most: the
            length of all cells of 1 MiB and more that keep theirs.
        classes: The same by length of cell, of those that have blocks.
    """

    reserved: int
    limit: int
    blocks: int
    bytes_in_use: int
    damaged: int
    bytes_kept: int
    classes: tuple[ClassStatistics, ...]


class Arena:
    """One region of shared memory that hands out blocks to this process and its children.

    Args:
        limit: The most bytes in use, and never more than the reserve; ``None`` =
            half of what the cgroup (its ancestors included) or the machine has free.
        reserve: Bytes of addresses, 64 MiB at least. The largest block is about
            a quarter of it, and where the kernel refuses so much it is halved,
            down to 64 MiB. ``None`` = 64 times the limit, from 1 to 16 TiB.
        backend: The engine, ``"native"`` or ``"reference"``; ``None`` = the one that
            ``ipcmap.backend`` names.
        max_processes: How many processes can use it at a time.

    Raises:
        ValueError: A figure out of range, or an engine that is not built here.
        OSError: The kernel has no room even for 64 MiB (``ENOMEM``).

    Example:
        >>> import os
        >>> arena = Arena()
        >>> block = arena.allocate(5)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     block.view()[:] = b"hello"
        ...     os._exit(0)
        >>> _ = os.waitpid(pid, 0)
        >>> bytes(block.view())
        b'hello'
        >>> block.free()
        >>> arena.close()
    """

    __slots__ = ("__weakref__", "_engine", "_id", "_inside", "_limit", "_name", "_reserved")

    def __init__(
        self,
        limit: SupportsIndex | None = None,
        *,
        reserve: SupportsIndex | None = None,
        backend: str | None = None,
        max_processes: int = 4096,
    ) -> None:
        self._engine = default_engine if backend is None else backend
        if self._engine not in engines:
            raise ValueError(f"engine is not built here: backend={backend!r}, built: {[*engines]}")
        if not 1 <= max_processes <= MAX_PROCESSES:
            raise ValueError(
                f"max_processes must be 1 to {MAX_PROCESSES}: max_processes={max_processes}"
            )
        self._limit = free_memory() // 2 if limit is None else byte_count("limit", limit)
        if self._limit < 0:
            raise ValueError(f"limit must not be negative: limit={limit}")
        if reserve is None:
            wanted = 1 << (self._limit * _RESERVE_FOR_LIMIT).bit_length()
            reserve = min(max(wanted, _SMALLEST_DEFAULT), _LARGEST_DEFAULT)
        asked = byte_count("reserve", reserve)
        if asked < MIN_RESERVE:
            raise ValueError(f"reserve must be at least {MIN_RESERVE} bytes: reserve={asked}")
        pages = reserve_pages(asked, MIN_RESERVE)
        layout = Layout(pages.nbytes, max_processes)
        self._limit = min(self._limit, pages.nbytes)
        self._reserved = pages.nbytes
        self._id = int.from_bytes(os.urandom(8), "little")
        self._name = f"arena {self._id:016x}, {self._reserved} bytes"
        words = pages.window().cast("Q")
        initialise(pages.address + SLOTS_SECTION)
        family = Family(
            words[layout.slot_table // WORD :],
            pages.address + layout.slot_table,
            pages.address + SLOTS_SECTION,
            max_processes,
        )
        make = allocators[self._engine]
        allocator = make(words, pages.address, layout, self._limit, family.slot)
        allocator.initialise()
        family.on_death(_free_blocks_of_the_dead(weakref.ref(self)))
        self._inside: Inside | None = Inside(pages, words, allocator, family)
        write_header(words, layout, engine=self._engine, arena_id=self._id, limit=self._limit)
        _arenas[self._id] = self

    # Facts

    @property
    def limit(self) -> int:
        """The most bytes in use."""
        return self._limit

    @property
    def reserved(self) -> int:
        """The bytes of addresses that it has."""
        return self._reserved

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called in this process."""
        return self._inside is None

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._reserved} bytes"
        return f"<ipcmap.Arena {self._id:016x}: {state}>"

    def statistics(self) -> ArenaStatistics:
        """Count the blocks and their bytes; exact where nobody changes them meanwhile.

        Raises:
            ClosedError: The arena is closed.
            CorruptError: Its bookkeeping is damaged.
        """
        counts = self._open().allocator.census()
        classes = tuple(
            ClassStatistics(size_class.cell_nbytes, census.blocks, census.nbytes)
            for size_class, census in counts
            if census.blocks
        )
        return ArenaStatistics(
            self._reserved,
            self._limit,
            sum(of_class.blocks for of_class in classes),
            sum(of_class.bytes_in_use for of_class in classes),
            sum(census.damaged for _, census in counts),
            sum(census.warm * size_class.cell_nbytes for size_class, census in counts),
            classes,
        )

    # Blocks

    def allocate(self, nbytes: SupportsIndex) -> Block:
        """Take a block of ``nbytes`` bytes, whose content is unspecified.

        It begins at a multiple of its length, rounded up to a power of two from
        64 on, or at a page. It lives until :meth:`Block.free`, whatever becomes
        of the handle, or until the process that allocated it has died and a sweep
        finds that. Where there is no room, a sweep is made first.

        Raises:
            ArenaFull: Beyond the limit, or the addresses for its length are used up.
            BusyError: Called from a signal handler that interrupted such a call.
            ClosedError: The arena is closed.
            CorruptError: The bookkeeping is damaged.
            ValueError: ``nbytes`` is negative.
        """
        if type(nbytes) is not int:
            nbytes = byte_count("nbytes", nbytes)
        if nbytes < 0:
            raise ValueError(f"length must not be negative: nbytes={nbytes}")
        return Block._made(self, self._allocate(nbytes, Kind.BYTES))

    def _allocate(self, nbytes: int, kind: int, deadline: Deadline = _FOR_EVER) -> Cell:
        inside = self._open()
        try:
            return inside.allocator.allocate(nbytes, kind, deadline)
        except ArenaFull:
            if not inside.family.sweep():
                raise
            return inside.allocator.allocate(nbytes, kind, deadline)

    def _block_at(self, offset: int, generation: int, kind: int) -> Block:
        """Return a handle of a block that is there still; called by pickle."""
        return Block._made(self, self._open().allocator.find(offset, generation, kind))

    # The family

    def sweep(self) -> int:
        """Look who of the family has died, and free what they had; return how many they were.

        Raises:
            ClosedError: The arena is closed.
            CorruptError: The bookkeeping is damaged.
        """
        return self._open().family.sweep()

    def _sweep_if_due(self) -> None:
        """Sweep, if nobody of the family has for a while: for whoever waits in vain."""
        inside, now = self._open(), time.monotonic_ns()
        # Who waits often and shortly, or who are many, must not sweep all the time.
        if not 0 <= now - inside.words[SWEPT_AT] < _SWEEP_EVERY:
            inside.words[SWEPT_AT] = now
            inside.family.sweep()

    def deaths(self) -> list[ExitRecord]:
        """Sweep, then return who of the family died of what, oldest first.

        Of very many deaths the last 1024 are remembered. A process is of the family
        once it has used the arena.

        Raises:
            ClosedError: The arena is closed.
            CorruptError: The bookkeeping is damaged.

        Example:
            >>> import os
            >>> arena = Arena()
            >>> pid = os.fork()
            >>> if pid == 0:
            ...     _ = arena.allocate(100)
            ...     os._exit(3)
            >>> _ = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            >>> [(record.pid == pid, record.exitcode) for record in arena.deaths()]
            [(True, 3)]
            >>> arena.statistics().blocks
            0
            >>> _ = os.waitpid(pid, 0)
            >>> arena.close()
        """
        family = self._open().family
        family.sweep()
        return family.deaths()

    # The end

    def close(self) -> None:
        """Unmap it from this process; other processes keep theirs. Twice is once.

        For the others this process has left: its blocks are freed by the next sweep.

        Raises:
            BusyError: Views of its blocks are alive; the message says how many.
                The arena stays open.
        """
        # One load: another thread may close at the same time.
        inside = self._inside
        if inside is None:
            return
        views = inside.pages.count_windows() - 1  # all but the arena's own
        if views:
            raise BusyError(
                f"arena cannot be closed under its views: {views} alive, {self._name}; "
                "release them (memoryview.release, del array), then close"
            )
        self._inside = None

    def __reduce__(self) -> tuple[Callable[[int], Arena], tuple[int]]:
        return inherited_arena, (self._id,)

    # Inside

    def _open(self) -> Inside:
        inside = self._inside
        if inside is None:
            raise ClosedError(f"arena is closed: {self._name}; make another")
        return inside


# The open arenas of this process, by id; children inherit it by fork.
_arenas: weakref.WeakValueDictionary[int, Arena] = weakref.WeakValueDictionary()


def _free_blocks_of_the_dead(reference: weakref.ref[Arena]) -> Callable[[int, int], None]:
    """Return what a sweep does with a dead slot of an arena, without keeping the arena."""

    def free(slot: int, generation: int) -> None:
        arena = reference()
        inside = arena._inside if arena else None
        if inside is not None:
            pages, allocator, family = inside.pages, inside.allocator, inside.family

            def dead() -> bool:
                return family.is_dying(slot, generation)

            memory = inside.words.cast("B")
            keep = keeps(memory, pages.address, allocator, family.known, slot, dead)
            allocator.sweep(slot, keep, dead=dead, owner=family.known())

    return free


def inherited_arena(arena_id: int) -> Arena:
    """Return the arena of this id; called by pickle.

    Raises:
        NotInherited: This process does not have it.
    """
    arena = _arenas.get(arena_id)
    if arena is None:
        raise NotInherited(
            f"arena was not inherited: id={arena_id:016x}, pid={os.getpid()}; "
            "make it before this process is forked, and do not exec"
        )
    inside = arena._open()
    check_header(inside.words, inside.allocator.layout, engine=arena._engine, arena_id=arena_id)
    return arena


# Mapped here, so that every later child has it.
_default: Arena | None = None
with contextlib.suppress(OSError):
    _default = Arena()


def default_arena() -> Arena:
    """Return the arena that was mapped when ipcmap was imported.

    Every child forked since has it, so that what is made in it after a fork can
    be sent to children that already run. Where the import found no room for it
    (``RLIMIT_AS``), a call maps it, for later children.

    Raises:
        OSError: There is no room for it (``ENOMEM``).
    """
    global _default  # noqa: PLW0603
    if _default is None:
        _default = Arena()
    return _default


def sweep_arenas() -> None:
    """Sweep every open arena of this process, as far as that can be done now.

    For whoever is about to reap a child: until then the kernel says what it died of.
    """
    for reference in _arenas.valuerefs():
        arena = reference()
        with contextlib.suppress(IpcmapError, OSError):
            if arena is not None:
                arena.sweep()
