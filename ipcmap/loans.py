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

from ipcmap.errors import BusyError, IpcmapError

__all__ = ["Attachment", "Claim", "Lease"]


class _Loan:
    """A view for the time of a ``with`` block, which belongs to one process."""

    __slots__ = ("_abort", "_lent", "_pid", "_take", "_view")

    def __init__(self, take: Callable[[], memoryview], abort: Callable[[], None]) -> None:
        self._pid, self._lent = 0, False
        self._view = memoryview(b"")
        self._take, self._abort = take, abort

    def __del__(self) -> None:
        # A signal handler raised on the way into the block, or on the way out of it.
        if getattr(self, "_lent", False) and self._pid == os.getpid():
            with contextlib.suppress(IpcmapError):
                self._end(self._take_back(), self._abort)

    def __enter__(self) -> memoryview:
        if self._pid:
            raise BusyError(
                f"{type(self).__name__.lower()} is for one with block, and was entered before; "
                "ask the ring for another"
            )
        try:
            self._view = self._take()
            self._pid = os.getpid()
            self._lent = True
            return self._view
        except BaseException:
            self._view = memoryview(b"")
            self._pid = 0
            self._abort()
            raise

    def _take_back(self) -> Any:
        """End the view; return what it showed if another view does so still, else ``None``."""
        view, self._view = self._view, memoryview(b"")
        if not view.nbytes and isinstance(view.obj, bytes):  # a handler broke off after this
            return None
        window = weakref.ref(view.obj)
        with contextlib.suppress(BufferError):  # an array over it
            view.release()
        del view
        return window()

    def _end(self, window: Any, end: Callable[[], None]) -> None:
        """End the loan; where a view still shows the bytes, with the last of them."""
        if window is None:
            end()
        else:
            # Who writes or reads through one must not hit another's block.
            weakref.finalize(window, _in_process, end, self._pid).atexit = False
        self._lent = False


class Claim(_Loan):
    """Room for one record, to be filled in place: what :meth:`Ring.claim` returns.

    Its ``with`` block gives the room as a writable memoryview.
    """

    __slots__ = ("_commit",)

    def __init__(
        self,
        take: Callable[[], memoryview],
        commit: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        super().__init__(take, abort)
        self._commit = commit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid():  # forked since: it is the parent's
            return
        window = self._take_back()
        if window is None and kind is None:
            try:
                self._end(None, self._commit)
            except BaseException:
                self._end(None, self._abort)
                raise
            return
        self._end(window, self._abort)
        if kind is None:
            raise BusyError(
                "claim cannot be committed under its views: slices or arrays over it are alive, "
                "so it was aborted; release them (memoryview.release, del array) inside the with "
                "block"
            )


class Lease(_Loan):
    """One record, shown where it lies: what :meth:`Ring.lease` returns.

    Its ``with`` block gives the record as a read-only memoryview.
    """

    __slots__ = ("_free",)

    def __init__(
        self,
        take: Callable[[], memoryview],
        free: Callable[[], None],
        give_back: Callable[[], None],
    ) -> None:
        super().__init__(take, give_back)
        self._free = free

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid():  # forked since: it is the parent's
            return
        window = self._take_back()
        self._end(window, self._free)
        if kind is None and window is not None:
            raise BusyError(
                "lease cannot end under its views: slices or arrays over the record are alive, and "
                "it ends with the last of them; release them (memoryview.release, del array) inside "
                "the with block, or copy what outlives it"
            )


def _in_process(end: Callable[[], None], pid: int) -> None:
    if pid == os.getpid():
        end()


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
