"""Pipes: two ends, and objects or bytes from one to the other, as multiprocessing has them.

How: ``connection_handle.py``. What is sent is a pickle, so that an object can be received
as bytes and bytes as an object, as in multiprocessing.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import socket
from collections import ChainMap
from multiprocessing import reduction
from multiprocessing.context import BufferTooShort
from typing import Any, Self

from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.connection_handle import SLEEPING, SLICE, WATCHED, ConnectionHandle
from ipcmap.ended_pipes import made
from ipcmap.errors import ArenaFull
from ipcmap.ring import Ring

__all__ = ["Connection", "Pipe"]

_CAPACITY = 1 << 16  # bytes of each ring; what needs more than half goes in a block
_PLAIN = {bytes, str, int, float, bool, type(None)}


def Pipe(duplex: bool = True, *, arena: Arena | None = None) -> tuple[Connection, Connection]:  # noqa: N802
    """Return the two ends of a pipe.

    Args:
        duplex: Whether both ends send and receive; ``False`` = the first receives, the
            second sends.
        arena: Where its rings are; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it. Where pipes that have ended take it up,
            the call frees them, which may take two seconds.
        OSError: No descriptor is left.

    Example:
        >>> from ipcmap import Process
        >>> ours, theirs = Pipe()
        >>> def double():
        ...     theirs.send(2 * theirs.recv())
        >>> worker = Process(target=double)
        >>> worker.start()
        >>> ours.send(21)
        >>> ours.recv()
        42
        >>> worker.join()
        >>> ours.close(), theirs.close()
        (None, None)
    """
    made.free_ended()
    while True:
        try:
            rings = [Ring(_CAPACITY, arena=arena) for _ in range(1 + duplex)]
            break
        except ArenaFull:
            if not made.free_for_want():
                raise
    sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.add({os.fstat(one.fileno()).st_ino for one in sockets}, rings)
    first, second = (one.detach() for one in sockets)
    if duplex:
        return Connection(first, rings[0], rings[1]), Connection(second, rings[1], rings[0])
    return Connection(first, rings[0], None), Connection(second, None, rings[0])


class Connection(ConnectionHandle):
    """One end of a pipe, from :func:`Pipe`; ``multiprocessing.connection.Connection``'s interface.

    It goes by fork, and by pickle to processes that have its arena. It may be waited for in
    ``multiprocessing.connection.wait``, ``select`` and loops: its descriptor is readable if
    there is a message, or the end. Once the descriptor was asked for, messages go through
    the kernel.

    It is closed when the object is gone. What a process holds of it ends with the process,
    however that ends.

    Example:
        >>> reader, writer = Pipe(duplex=False)
        >>> writer.send({"level": 3})
        >>> writer.close()
        >>> reader.recv()
        {'level': 3}
        >>> reader.recv()
        Traceback (most recent call last):
        EOFError
        >>> reader.close()
    """

    # Objects

    def send(self, obj: Any) -> None:
        """Send an object.

        Args:
            obj: What pickle takes, or multiprocessing's reducers do (sockets, connections).

        Raises:
            BrokenPipeError: Nobody has the other end any more.
            OSError: It was closed here, or only receives.
        """
        self._check_writable()
        self._send(_dumps(obj))

    def recv(self) -> Any:
        """Take the oldest object, waiting for one.

        Raises:
            EOFError: All was taken, and nobody has the other end any more.
            OSError: It was closed here, or only sends; or who sent died amid a message.
        """
        self._check_readable()
        return pickle.loads(self._receive())

    # Bytes

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send bytes, as one message.

        Args:
            buf: Any object with a contiguous buffer.
            offset: Where they begin in it, in bytes.
            size: How many; ``None`` = to the end.

        Raises:
            ValueError: They do not lie in ``buf``.
            BrokenPipeError: As :meth:`send`, and the rest as there.
        """
        self._check_writable()
        data = buf if type(buf) is bytes else memoryview(buf)
        if isinstance(data, memoryview):
            data = data.cast("B") if data.nbytes else b""
        length = len(data)
        if offset < 0:
            raise ValueError(f"offset is negative: offset={offset}")
        if length < offset:
            raise ValueError(f"buffer length < offset: nbytes={length}, offset={offset}")
        if size is None:
            size = length - offset
        elif size < 0:
            raise ValueError(f"size is negative: size={size}")
        elif offset + size > length:
            raise ValueError(
                f"buffer length < offset + size: nbytes={length}, offset={offset}, size={size}"
            )
        self._send(data if size == length else data[offset : offset + size])

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Take the oldest message as bytes, waiting for one.

        Args:
            maxlength: The most bytes to take; a longer message is an error, after which
                nothing can be received any more.

        Raises:
            ValueError: ``maxlength`` is negative.
            EOFError: As :meth:`recv`, and the rest as there.
            OSError: The message is longer.
        """
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError(f"negative maxlength: maxlength={maxlength}")
        data = self._receive()
        if maxlength is not None and len(data) > maxlength:
            if self._out is None:
                self.close()
            else:
                self._end_of_receiving()
                self._in = None
            raise OSError(
                f"bad message length: nbytes={len(data)}, maxlength={maxlength}; "
                "nothing more can be received here"
            )
        return data

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Take the oldest message into a buffer, waiting for one; return its length.

        Args:
            buf: A writable object with a contiguous buffer.
            offset: Where to begin in it, in bytes.

        Raises:
            multiprocessing.BufferTooShort: It does not fit; its first argument is the message.
            ValueError: ``offset`` is not in the buffer.
            EOFError: As :meth:`recv`, and the rest as there.
        """
        self._check_readable()
        with memoryview(buf) as given, given.cast("B") as view:
            if offset < 0:
                raise ValueError(f"negative offset: offset={offset}")
            if offset > view.nbytes:
                raise ValueError(f"offset too large: offset={offset}, nbytes={view.nbytes}")
            data = self._receive()
            if view.nbytes < offset + len(data):
                raise BufferTooShort(data)
            view[offset : offset + len(data)] = data
            return len(data)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Return whether there is something to receive, or the end.

        Args:
            timeout: Seconds to wait for it; ``None`` = for ever, 0 = do not wait.

        Raises:
            OSError: It was closed here, or only sends.
        """
        self._check_readable()
        ring = self._in
        if ring is None or self._has_left(ring):
            return True
        deadline = Deadline(timeout)
        while True:
            remaining = deadline.remaining()
            if remaining:  # from here on there are packets, of which poll(2) hears
                self._set_mode(ring, SLEEPING)
            if self._has_left(ring) or self._sleep(deadline.slice(SLICE)):
                return True
            if not remaining:
                self._tell_of_the_rest(ring)
                return self._has_left(ring)

    # Facts and the end

    def fileno(self) -> int:
        """Return the number of a descriptor that is readable when :meth:`poll` is true.

        From then on what is sent to this end goes through the kernel.

        Raises:
            OSError: It was closed here.
        """
        handle = self._check_open()
        ring = self._in
        if self._watch >= 0:
            if ring is not None:  # another process may have taken what it had
                self._tell_of_the_rest(ring)
            return self._watch
        if ring is not None:
            self._set_mode(ring, WATCHED)
            if self._has_left(ring):
                self._watch_both(handle)
                return self._watch
        self._watch = handle
        return handle

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called here."""
        return self._handle is None

    @property
    def readable(self) -> bool:
        """Whether it receives."""
        return self._in is not None

    @property
    def writable(self) -> bool:
        """Whether it sends."""
        return self._out is not None

    def close(self) -> None:
        """Let go of this end in this process. Twice is once."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            self._end_of_receiving()
            self._end_of_sending()
        finally:
            os.close(handle)
            while self._others:
                self._others.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # What multiprocessing does for its own: a thread of this process hands the
        # descriptor to whoever loads the pickle.
        return _restored, (reduction.DupFd(self._check_open()), self._in, self._out)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"descriptor {self._handle}"
        ways = [way for way, there in (("in", self._in), ("out", self._out)) if there]
        return f"<ipcmap.Connection {' and '.join(ways)}: {state}>"


def _restored(duplicate: Any, incoming: Ring | None, outgoing: Ring | None) -> Connection:
    return Connection(duplicate.detach(), incoming, outgoing)


class _Pickler(pickle.Pickler):
    """A pickler with multiprocessing's reducers, without a table of its own for each object."""

    dispatch_table: Any = ChainMap(  # noqa: RUF012
        reduction.ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        copyreg.dispatch_table,
    )


def _dumps(obj: Any) -> bytes:
    if type(obj) in _PLAIN:
        return pickle.dumps(obj, 5)
    file = io.BytesIO()
    _Pickler(file, 5).dump(obj)
    return file.getvalue()
