"""The ends of pipes, whose recv and send are awaited.

A task that receives does what ``poll`` and ``recv`` would, but never waits for the rest of
a message: what has come of one stays with the end, for whoever receives next. A task that sends
goes on where the socket took no more of its message. The loop looks at an epoll over the
end's socket, not at the socket itself, so that it is free for other readers and writers.

The epoll has a timer besides: it rings when the end is closed here, and a second after
somebody was found to be stopped in the ring's section.

A send of the end's own that comes amid a message that a task has begun sends the rest of that
first. Who is cancelled before any packet of a message was sent has sent nothing; the rest of one that
was begun never comes, and who receives drops what did (``connection_handle.py``).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import time
from functools import partial
from typing import Any

from ipcmap import connection as connections
from ipcmap._core import libc
from ipcmap._core.reference_sections import Stalled
from ipcmap.aio.line import Line
from ipcmap.aio.watch import Where
from ipcmap.connection_handle import SLICE, Message

__all__ = ["Connection"]

_NEVER, _NOW = 0.0, 1e-9  # of a timer


class _Later(Exception):
    """Nothing can be received, or sent, just now."""


class _Readiness:
    """What a loop looks at: readable when an end is worth an attempt."""

    def __init__(self, connection: connections.Connection, events: int) -> None:
        self._connection, self._events, self._pid = connection, events, os.getpid()
        self._handle = connection._check_open()
        self._epoll = select.epoll(2)
        self._timer = -1
        try:
            self._timer = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            self._epoll.register(self._timer, select.EPOLLIN)
            self._epoll.register(self._handle, events)
        except BaseException:
            self.close()
            raise
        self._at_close = partial(_set_timer, self._timer, _NOW)
        connection._others.append(self._at_close)

    def fileno(self) -> int:
        """Return the number of the epoll."""
        return self._epoll.fileno()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the parent of this process."""
        return self._epoll.closed or self._pid != os.getpid()

    def close(self) -> None:
        """Give its descriptors back; the end stays as it is."""
        with contextlib.suppress(AttributeError, ValueError):
            self._connection._others.remove(self._at_close)
        self._epoll.close()
        timer, self._timer = self._timer, -1
        if timer >= 0:
            os.close(timer)

    def arm(self, seconds: float = _NEVER) -> None:
        """Be quiet until the end is ready; or for so long, where somebody is in the way."""
        _set_timer(self._timer, seconds)
        self._epoll.modify(self._handle, 0 if seconds else self._events)


class Connection:
    """An end of a pipe whose ``recv`` and ``send`` are awaited.

    Of the tasks of one loop, the one that waits longest receives, or sends, first. A task that is
    cancelled, or runs out of time, has received nothing. Nor has it sent anything, unless its
    message is longer than 32 KiB and was begun: then the other end drops what it has of it.

    What is sent to this end goes through the kernel from the first ``recv`` on, as after
    ``fileno()``. As with the end's own calls, several processes, threads or loops that use one
    end at a time need a lock.

    Args:
        connection: An :class:`ipcmap.Connection`, from :func:`ipcmap.Pipe`.

    Example:
        >>> import asyncio
        >>> from ipcmap import Pipe, Process, aio
        >>> ours, theirs = Pipe()
        >>> def double():
        ...     theirs.send(2 * theirs.recv())
        >>> async def main():
        ...     end = aio.Connection(ours)
        ...     await end.send(21)
        ...     return await end.recv()
        >>> worker = Process(target=double)
        >>> worker.start()
        >>> asyncio.run(main())
        42
        >>> worker.join()
        >>> ours.close(), theirs.close()
        (None, None)
    """

    def __init__(self, connection: connections.Connection) -> None:
        self.connection = connection
        listen_in = partial(_Readiness, connection, select.EPOLLIN)
        listen_out = partial(_Readiness, connection, select.EPOLLOUT)
        # The line has the connection by what it listens with, so its id is of no other.
        self._receiving = Where(Line, ("incoming", id(connection)), listen_in)
        self._sending = Where(Line, ("outgoing", id(connection)), listen_out)

    async def recv(self) -> Any:
        """Take the oldest object, when there is one.

        Raises:
            EOFError: All was taken, and nobody has the other end any more.
            OSError: It was closed here, or only sends; or who sent died amid a message.
        """
        return pickle.loads(await self.recv_bytes())

    async def recv_bytes(self) -> bytes:
        """Take the oldest message as bytes, when there is one.

        Raises:
            EOFError: As :meth:`recv`, and the rest as there.
        """
        line, connection = self._receiving.here(), self.connection

        def attempt(ready: _Readiness) -> bytes:
            connection._check_readable()
            try:
                message = connection._receive_now()
            except Stalled:
                ready.arm(SLICE)
                raise _Later from None
            if message is None:
                ready.arm()
                raise _Later
            return message

        connection._check_readable()
        if line.is_free():
            with contextlib.suppress(Stalled):
                message = connection._receive_now()
                if message is not None:
                    return message
        return await line.until(attempt, _Later)

    async def send(self, obj: Any) -> None:
        """Send an object, when there is room for it.

        Raises:
            BrokenPipeError: Nobody has the other end any more.
            OSError: It was closed here, or only receives.
        """
        self.connection._check_writable()
        await self._send(connections._dumps(obj))

    async def send_bytes(self, data: Any) -> None:
        """Send bytes as one message, when there is room for it.

        Args:
            data: Any object with a buffer; it is copied at once.

        Raises:
            BrokenPipeError: As :meth:`send`, and the rest as there.
        """
        self.connection._check_writable()
        await self._send(data if type(data) is bytes else memoryview(data).tobytes())

    async def _send(self, data: bytes) -> None:
        line, connection, message = self._sending.here(), self.connection, Message(data)

        def attempt(ready: _Readiness) -> None:
            connection._check_writable()
            try:
                if connection._send_now(message):
                    return
            except Stalled:
                ready.arm(SLICE)
            else:
                ready.arm()
            raise _Later

        try:
            if line.is_free():
                with contextlib.suppress(Stalled):
                    if connection._send_now(message):
                        return
            await line.until(attempt, _Later)
        finally:
            if connection._begun is message:  # and given up
                connection._begun = None

    def __repr__(self) -> str:
        return f"<ipcmap.aio.Connection: {self.connection!r}>"


def _set_timer(timer: int, seconds: float) -> None:
    spec = libc.TimerSpec(libc.TimeSpec(0, 0), libc.TimeSpec(*divmod(round(seconds * 1e9), 10**9)))
    libc.timerfd_settime(timer, 0, spec, None)
