"""A descriptor that is readable when there may be something: for select, selectors and asyncio.

The descriptor is an epoll over two others: a pipe, into which others write, and a timer,
which rings if they have not for a slice. Whatever becomes of anyone, either it is readable,
or the timer is running.

It is quiet only after an attempt of this process has found nothing, through whichever
handle: each tells the listeners of the object here (``rearm``). So a loop that waits, tries,
and waits again when there is nothing, misses nothing and does not spin.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from ipcmap._core import libc
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_listeners import Listeners
from ipcmap._core.reference_sections import Stalled
from ipcmap._deadline import Deadline
from ipcmap.errors import ClosedError
from ipcmap.structure import free_quietly

__all__ = ["Key", "Listener", "rearm"]

Key = tuple[int, int, int, int]  # arena, offset and generation of an object; and its mark

_SLICE = libc.TimerSpec(libc.TimeSpec(0, 0), libc.TimeSpec(1, 0))
_NOW = Deadline(0)  # whoever is stopped in a section must not hold up a get that is over
_ALL = 1 << 16  # bytes: as many as a pipe holds


class Listener:
    """Readable while a ring may have something to get: what :meth:`Ring.listen` returns.

    To be waited for as a socket is, by anything that takes an object with ``fileno()``.
    It stays readable until a ``get``, ``get_many`` or ``lease`` of this process raises
    ``queue.Empty``, and becomes so again with the next record, with the end of the
    ring, and at the latest after a second, whoever was killed in between. Where the ring
    has ended it stays readable: the next ``get`` raises :class:`ClosedError`.

    It belongs to the process that made it; in a child forked since, it is closed.

    Example:
        >>> import select
        >>> from ipcmap import Ring
        >>> ring = Ring()
        >>> with ring.listen() as listener:
        ...     select.select([listener], [], [], 0)[0] == []
        ...     ring.put(b"hello")
        ...     select.select([listener], [], [], 0)[0] == [listener]
        ...     ring.get(timeout=0)
        True
        True
        b'hello'
    """

    __slots__ = (
        "__weakref__", "_arming", "_cell", "_ended", "_fd", "_key", "_listeners", "_lock",
        "_object", "_open", "_pid", "_pipe", "_timer",
    )  # fmt: skip

    def __init__(
        self, listened_to: object, arena: int, listeners: Listeners, *, timed: bool = True
    ) -> None:
        """Refused to callers: a listener comes from :meth:`Ring.listen`.

        One that is not timed is the pipe alone: for a queue's end, which looks by itself.
        """
        self._open: list[Callable[[], object]] = []  # what closes the descriptors, the last first
        self._pid = os.getpid()
        self._arming = self._ended = False
        # For the threads that use one listener; a handler may come back to it.
        self._lock = threading.RLock()
        self._object, self._listeners = listened_to, listeners
        self._key: Key = (arena, *listeners.key)
        self._cell: Cell | None = None
        try:
            self._pipe = _open_pipe()
            self._open.append(partial(os.close, self._pipe))
            self._fd, self._timer = self._pipe, -1
            if timed:
                self._wait_for_timer_too()
            self._cell = listeners.listen(self._pipe, exact=not timed)
            _add(self)
            self._arm(_seen(listeners))
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the number of the descriptor, to be waited for and nothing else.

        Raises:
            ClosedError: It was closed, or belongs to the parent of this process.
        """
        if self.closed:
            raise ClosedError(
                f"listener is closed here: pid={os.getpid()}, made by pid={self._pid}; "
                "make another (Ring.listen)"
            )
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the parent of this process."""
        return self._ended or not self._open or self._pid != os.getpid()

    def close(self) -> None:
        """Give its descriptors back; the ring stays as it is. Twice is once.

        To be taken out of selectors and loops before.
        """
        if self._pid != os.getpid():  # forked since: locks may be held by threads that are not here
            self._drop()
            return
        _remove(self)
        with self._lock:
            self._ended = True
            if self._arming:  # this is a handler that has interrupted it: there it is closed
                return
            self._drop()
            cell, self._cell = self._cell, None
        if cell is not None:
            free_quietly(self._listeners.allocator, cell)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", None):
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:  # it may be an error
                self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a listener belongs to one process: pid={self._pid}; send the ring, and listen there"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"descriptor {self._fd}"
        return f"<ipcmap.Listener of pid {self._pid}: {state}>"

    # Inside

    def _wait_for_timer_too(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._timer = libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        self._open.append(partial(os.close, self._timer))
        epoll = select.epoll(2)
        self._open.append(epoll.close)
        epoll.register(self._pipe, select.EPOLLIN)
        epoll.register(self._timer, select.EPOLLIN)
        self._fd = epoll.fileno()

    def _arm(
        self, seen: int | None, deadline: Deadline = _NOW, seconds: float | None = None
    ) -> None:
        """Be quiet until something comes after ``seen``; or stay readable, if it has.

        Args:
            seen: What the attempt went by; ``None`` = nobody can look now: be quiet for a slice.
            deadline: When to stop waiting for the section.
            seconds: How long the slice is; ``None`` = as usual.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._ended or not self._open or self._cell is None:
                return
            before, self._arming = self._arming, True
            try:
                self._arm_cell(self._cell, seen, deadline, seconds)
            finally:
                self._arming = before
                if self.closed and not before:
                    self.close()

    def _arm_cell(
        self, cell: Cell, seen: int | None, deadline: Deadline, seconds: float | None
    ) -> None:
        # The timer first: from here on it rings, whatever breaks the rest off.
        if self._timer >= 0:
            slice_ = _SLICE if seconds is None else _slice_of(seconds)
            libc.timerfd_settime(self._timer, 0, slice_, None)
        self._drain()
        armed = self._timer >= 0  # or else readable in vain, if somebody is stopped
        with contextlib.suppress(Stalled, BlockingIOError):
            try:
                if seen is not None:
                    armed = self._listeners.arm(cell, seen, self._drain, deadline)
            finally:
                if not armed:
                    os.write(self._pipe, b"\0")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe, _ALL)

    def _drop(self) -> None:
        """Close the descriptors of this process."""
        while self._open:
            self._open.pop()()


def _slice_of(seconds: float) -> libc.TimerSpec:
    nanoseconds = int(seconds * 1e9)
    return libc.TimerSpec(libc.TimeSpec(0, 0), libc.TimeSpec(*divmod(nanoseconds, 10**9)))


def _seen(listeners: Listeners) -> int | None:
    """Return what a first attempt goes by, ``None`` where somebody is stopped in the section."""
    with contextlib.suppress(Stalled):
        return listeners.seen(_NOW)
    return None


def rearm(key: Key, seen: int | None) -> None:
    """Tell this process's listeners of an attempt that went by ``seen`` and found nothing."""
    for reference in _listening.get(key, ()):
        listener = reference()
        if listener is not None:
            listener._arm(seen)


def _open_pipe() -> int:
    """Return a pipe in one descriptor, opened as producers will open it."""
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    reading, writing = os.pipe2(flags)
    path = f"/proc/{os.getpid()}/fd/{reading}"
    try:
        return os.open(path, os.O_RDWR | flags)
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(
            error.errno,
            "producers reach a listener through /proc, where this process does not find itself; "
            "mount /proc, or wait in Ring.get(timeout=...)",
            path,
        ) from None
    finally:
        os.close(reading)
        os.close(writing)


# The open listeners of this process, by what they listen to. A tuple is replaced and never
# changed, so that whoever goes through one needs no lock.
_listening: dict[Key, tuple[weakref.ref[Listener], ...]] = {}
_changing = threading.RLock()


def _add(listener: Listener) -> None:
    with _changing:
        known = _listening.get(listener._key, ())
        _listening[listener._key] = (*known, weakref.ref(listener))


def _remove(listener: Listener) -> None:
    with _changing:
        known = _listening.get(listener._key, ())
        left = tuple(one for one in known if one() not in (listener, None))
        if left:  # in one step: the others are never missing, for a thread or after a handler
            _listening[listener._key] = left
        else:
            _listening.pop(listener._key, None)


def _forget_all() -> None:
    """Close the parent's listeners in a child."""
    global _changing  # noqa: PLW0603
    _changing = threading.RLock()  # another thread of the parent may have had it
    for reference in [one for known in _listening.values() for one in known]:
        listener = reference()
        if listener is not None:
            listener._drop()
    _listening.clear()


os.register_at_fork(after_in_child=_forget_all)
