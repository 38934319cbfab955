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
from typing import Any, ClassVar

from ipcmap.errors import BusyError, IpcmapError

__all__ = ["Attachment", "Claim", "Lease"]


class _Loan:
    """A view for the time of a ``with`` block, which belongs to one process."""

    __slots__ = ("_abort", "_lent", "_pid", "_take", "_view")

    _instead: ClassVar[str]  # what becomes of it where views are alive

    def __init__(self, take: Callable[[], memoryview], abort: Callable[[], None]) -> None:
        self._pid, self._lent = 0, False
        self._view: memoryview | None = None
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
            self._view = view = self._take()
            self._pid = os.getpid()
            self._lent = True
            return view
        except BaseException:
            self._view = None
            self._pid = 0
            self._abort()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid():  # forked since: it is the parent's
            return
        window = self._take_back()
        self._finish(window, well=kind is None)
        if kind is None and window is not None:
            raise BusyError(
                f"{type(self).__name__.lower()} cannot end under its views: slices or arrays over "
                f"it are alive, so {self._instead}; release them (memoryview.release, del array) "
                "inside the with block"
            )

    def _finish(self, window: Any, *, well: bool) -> None:
        """End the loan as the block ended: ``well``, or by an exception."""
        raise NotImplementedError

    def _take_back(self) -> Any:
        """End the view; return what it showed if another view does so still, else ``None``."""
        view, self._view = self._view, None
        if view is None:  # a handler broke off after this
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

    _instead = "it was aborted"

    def __init__(
        self,
        take: Callable[[], memoryview],
        commit: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        super().__init__(take, abort)
        self._commit = commit

    def _finish(self, window: Any, *, well: bool) -> None:
        if not well or window is not None:
            self._end(window, self._abort)
            return
        try:
            self._end(None, self._commit)
        except BaseException:
            self._end(None, self._abort)
            raise


class Lease(_Loan):
    """One record, shown where it lies: what :meth:`Ring.lease` returns.

    Its ``with`` block gives the record as a read-only memoryview.
    """

    __slots__ = ("_free",)

    _instead = "it ends with the last of them"

    def __init__(
        self,
        take: Callable[[], memoryview],
        free: Callable[[], None],
        give_back: Callable[[], None],
    ) -> None:
        super().__init__(take, give_back)
        self._free = free

    def _finish(self, window: Any, *, well: bool) -> None:
        self._end(window, self._free)


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
