"""What a handle of everything in which threads wait for each other has in common.

How: ``_core/reference_rooms.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from ipcmap._core import room_layout as at
from ipcmap._core.reference_monitor import Damaged
from ipcmap._core.reference_rooms import Full, Room, make
from ipcmap._core.reference_sections import Reentered
from ipcmap.arena import Arena, default_arena
from ipcmap.errors import BusyError, CorruptError, FamilyFull
from ipcmap.structure import Structure

__all__ = ["InRoom"]

_MOST = 1024  # cells, of 64 bytes


class InRoom(Structure):
    """What threads wait in."""

    _core_type: ClassVar[type[Room]]

    __slots__ = ("_core",)

    _core: Room

    def _make_room(self, arena: Arena | None, max_waiters: int | None) -> None:
        """Take a block for so many; ``None`` = one a process, 64 to 1024."""
        arena = arena or default_arena()
        if max_waiters is None:
            max_waiters = max(64, min(arena._open().family.max_processes, _MOST))
        if not 0 < max_waiters <= at.MAX_ENTRIES:
            raise ValueError(
                f"max_waiters must be 1 to {at.MAX_ENTRIES}: max_waiters={max_waiters}"
            )
        self._make(arena, at.nbytes(max_waiters), at.nbytes(0))
        make(self._memory, self._address, max_waiters)

    def _attach(self) -> None:
        with self._errors():
            family = self._arena._open().family
            self._core = self._core_type(self._memory, self._address, family)
        self._core.name = f"{type(self).__name__} at offset {self._cell.offset}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the core raises into what users see."""
        try:
            yield
        except Reentered:
            raise BusyError(
                f"a signal handler cannot use what it interrupted: {type(self).__name__}, "
                f"offset={self._cell.offset}, pid={os.getpid()}; return from the handler first"
            ) from None
        except Damaged as error:
            raise self._damaged(error) from None
        except Full:
            raise FamilyFull(
                f"as many threads wait as there is room for: max_waiters={self._core.entries}, "
                f"{type(self).__name__} at offset {self._cell.offset}; "
                "make it with a larger max_waiters"
            ) from None

    def _damaged(self, error: Damaged) -> CorruptError:
        return CorruptError(
            f"{type(self).__name__} was overwritten: {error}, offset={self._cell.offset}; "
            "make another, and look for a write beyond the end of a view"
        )
