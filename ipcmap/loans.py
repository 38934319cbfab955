"""What a ring lends for the time of a ``with`` block: a record to fill, or one to read.

Both are blocks of this process alone, so neither holds up anybody else, and the sweep
of a dead process finds them. When the block ends, so do the views.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ipcmap.errors import BusyError

__all__ = ["Attachment", "Claim", "Lease"]


class _Loan:
    """A view for the time of a ``with`` block, which belongs to one process."""

    __slots__ = ("_pid", "_view")

    def __init__(self) -> None:
        self._pid = 0
        self._view = memoryview(b"")

    def _lend(self, view: memoryview) -> memoryview:
        self._pid, self._view = os.getpid(), view
        return view

    def _begin(self) -> None:
        if self._pid:
            raise BusyError(
                f"{type(self).__name__.lower()} is for one with block, and was entered before; "
                "ask the ring for another"
            )

    def _take_back(self) -> Any:
        """End the view; return what it showed if another view does so still, else ``None``."""
        view, self._view = self._view, memoryview(b"")
        window = weakref.ref(view.obj)
        with contextlib.suppress(BufferError):  # an array over it
            view.release()
        del view
        return window()


class Claim(_Loan):
    """Room for one record, to be filled in place: what :meth:`Ring.claim` returns.

    Its ``with`` block gives the room as a writable memoryview.
    """

    __slots__ = ("_abort", "_commit", "_take")

    def __init__(
        self,
        take: Callable[[], memoryview],
        commit: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        super().__init__()
        self._take, self._commit, self._abort = take, commit, abort

    def __enter__(self) -> memoryview:
        self._begin()
        return self._lend(self._take())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid():  # forked since: it is the parent's
            return
        alive = self._take_back() is not None
        if kind is not None or alive:
            self._abort()
        else:
            self._commit()
        if kind is None and alive:
            raise BusyError(
                "claim cannot be committed under its views: slices or arrays over it are alive, "
                "so it was aborted; release them (memoryview.release, del array) inside the with "
                "block"
            )


class Lease(_Loan):
    """One record, shown where it lies: what :meth:`Ring.lease` returns.

    Its ``with`` block gives the record as a read-only memoryview.
    """

    __slots__ = ("_free", "_take")

    def __init__(self, take: Callable[[], memoryview], free: Callable[[], None]) -> None:
        super().__init__()
        self._take, self._free = take, free

    def __enter__(self) -> memoryview:
        self._begin()
        return self._lend(self._take())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid():  # forked since: it is the parent's
            return
        window = self._take_back()
        if window is None:
            self._free()
            return
        weakref.finalize(window, _free_own, self._free, self._pid).atexit = False
        if kind is None:
            raise BusyError(
                "lease cannot end under its views: slices or arrays over the record are alive, and "
                "it ends with the last of them; release them (memoryview.release, del array) inside "
                "the with block, or copy what outlives it"
            )


def _free_own(free: Callable[[], None], pid: int) -> None:
    if pid == os.getpid():
        free()


class Attachment:
    """A promise to put something into a ring: what :meth:`Ring.attach_producer` returns.

    It lasts until :meth:`detach`, the end of its ``with`` block, or the end of the
    process, and belongs to the process that made it.
    """

    __slots__ = ("_leave", "_pid")

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave, self._pid = leave, os.getpid()

    def detach(self) -> None:
        """Take it back; the last one ends the ring. Twice is once.

        Raises:
            BusyError: A signal handler interrupted a change of the ring.
            CorruptError: The ring is damaged.
        """
        if self._pid == os.getpid():
            self._leave()
            self._pid = 0

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
