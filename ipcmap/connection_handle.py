"""Pipes: two ends, and objects or bytes from one to the other, as multiprocessing has them.

What is sent goes through a ring as long as the other side is awake or has not slept for long,
and through a pair of sockets while it sleeps. The ring is fast and makes no system call
where both run. The sockets are what the
kernel knows of a pipe: they wake who waits in select, poll or a recv, and they end when
every process that held the other end has closed it or died, which no count in shared
memory could promise.

    sender ---> ring (mode RING) --------------------------> receiver
           `--> packets of a socket (mode SLEEPING, WATCHED) --'

Shared fields, of each direction          written by    guard
  mode    the ring's word CLOSED          receiver; a   the producers' section
                                          sender: SLEEPING alone
          RING       0: put into the ring
          SLEEPING   1: the receiver sleeps, or did so last; send packets
          WATCHED    2: it was asked for its descriptor, and may be in select at any
                        time; send packets, for good

Sync points
  C1 mode    receiver: stores the mode, in the section
             sender: commits to the ring in RING alone; sends a packet in the others
                     alone, both in the section
  C2 flip    receiver: SLEEPING becomes RING, in the section, only if the socket is empty

So what lies in the ring is older than any packet, and while packets are sent the ring gets
nothing: the receiver takes what the ring has, then packets, and has the order in which one
process sent. A descriptor is readable exactly if there is a packet, or the end. What was
left in the ring when it was first asked for is told of by an eventfd beside the socket.

If a process dies
  sender, before the commit or packet    nothing was sent
  sender, after it                       it is delivered
  sender, amid a message of more than one packet (over 32 KiB)   the rest never comes;
             what did is dropped when another message begins, or at the end. So it is where
             a task is cancelled amid one (aio/connections.py)
  receiver                               what it had taken goes with it; the mode stays, and
             the next who receives goes on in it
  every process with the other end       the kernel says so: EOFError here, after what
             was sent; BrokenPipeError where one sends

A put into the ring asks the kernel whether anybody is there once in 100 µs at most. What was
sent in less than that after the last receiver died is lost in the ring, as it would be in
a pipe's buffer. A receiver that waits at the ring, for 10 ms at most, asks the kernel
after it: so long may it take until it hears that the last sender was killed. Who closes an
end says so at once, by SLEEPING, in both directions: the others ask the kernel then. SLEEPING
is right at any time and from anybody, it only costs.

Not promised: several processes or threads that receive from one end at a time need a lock,
as in multiprocessing; without one, each message still goes to one of them, but one
who sleeps may hear of it a second late. So do senders, for messages of more than a packet.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import queue
import select
import socket
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ipcmap._core import libc
from ipcmap._core.reference_sections import Reentered, inside
from ipcmap._core.ring_layout import CLOSED, READ_POS, ROOM_END, WRITE_POS
from ipcmap._deadline import Deadline
from ipcmap.errors import ArenaFull, BusyError, ClosedError, IpcmapError, RecordTooLarge
from ipcmap.ring import Ring

__all__ = ["SLEEPING", "SLICE", "WATCHED", "ConnectionHandle", "Message"]

_RING, SLEEPING, WATCHED = range(3)  # modes

_MOST_LARGE = 16  # messages on their way before one that needs a block waits
_PACKET = 1 << 15  # bytes of a message in one packet
_WHOLE, _FIRST, _NEXT = b"\0", b"\1", b"\2"  # how a packet begins

_AT_RING = 10e-3  # seconds to wait at the ring, asleep there as well, before packets are asked for
_SHORT = 5e-3  # seconds: after a sleep of less, the ring is worth another try
_ASK = 100e-6  # seconds between two questions whether anybody is there
SLICE = 1.0  # seconds of one sleep, for whoever shares an end without a lock

_FOR_EVER = Deadline(None)
_NOW = Deadline(0)
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_GONE = {errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN}

_now = time.monotonic

Result = TypeVar("Result")


class ConnectionHandle:
    """An end as one process has it: the half of :class:`ipcmap.Connection` that nobody calls."""

    def __init__(self, handle: int, incoming: Ring | None, outgoing: Ring | None) -> None:
        """Made by :func:`Pipe`, and by pickle.

        Args:
            handle: Our socket, which is closed with this object.
            incoming: The ring of what we receive.
            outgoing: The ring of what we send.
        """
        self._handle: int | None = handle
        self._in, self._out = incoming, outgoing
        self._others: list[Callable[[], None]] = []  # close the descriptors of fileno()
        self._watch = -1  # what fileno() returns; -1 = not asked for yet
        self._left = -1  # an eventfd, readable while the ring has what came before WATCHED
        self._asked = 0.0  # when we asked last whether somebody receives
        self._short = True  # whether the last sleep was
        self._partial: list[bytes] = []  # of a message in several packets
        self._missing = 0  # bytes of it
        self._begun: Message | None = None  # of which some packets were sent, and more are to come

    # Sending

    def _send(self, data: bytes | memoryview) -> None:
        ring: Any = self._out
        words = ring._core._words
        if self._begun is not None:
            self._finish_begun(ring)
        while True:
            if words[CLOSED]:
                if self._send_packets(ring, data):
                    return
                continue
            now = _now()
            if now - self._asked > _ASK:
                self._check_receivers()
                self._asked = now
            try:
                if len(data) <= ring._inline:
                    ring.put(data, SLICE)
                else:
                    ring._put_within(_MOST_LARGE, bytes(data), Deadline(SLICE))
                return
            except queue.Full:  # ask again whether somebody receives
                self._asked = 0.0
            except ClosedError:  # C1 mode: it has changed
                pass
            except (ArenaFull, RecordTooLarge):  # packets take no room in the arena
                self._set_mode(ring, SLEEPING)

    def _check_receivers(self) -> None:
        poll = select.poll()
        poll.register(self._check_open(), 0)  # the end is always told
        if poll.poll(0):
            raise BrokenPipeError(
                errno.EPIPE, "nobody has the other end of the pipe any more: all closed it or died"
            )

    def _send_now(self, message: Message) -> bool:
        """Send a message as far as it goes without a wait; return whether that is all.

        Raises:
            Stalled: Somebody is stopped in the section.
        """
        ring: Any = self._out
        words, data = ring._core._words, message.data
        while True:
            if not words[CLOSED] and not message.sent:
                now = _now()
                if now - self._asked > _ASK:
                    self._check_receivers()
                    self._asked = now
                try:
                    if len(data) <= ring._inline:
                        ring.put(data, 0)
                    else:
                        ring._put_within(_MOST_LARGE, data, _NOW)
                    return True
                except (queue.Full, ArenaFull, RecordTooLarge):  # the kernel tells of room
                    self._set_mode(ring, SLEEPING, _NOW)
                except ClosedError:  # C1 mode: it has changed
                    pass
            try:
                for packet in _packets(data, message.sent):
                    if not self._try_packet(ring, packet, not message.sent, _NOW):
                        break
                    message.sent += 1
                else:
                    self._begun = None
                    return True
            except BlockingIOError:
                self._begun = message if message.sent else None
                return False

    def _finish_begun(self, ring: Ring) -> None:
        """Send the rest of what a task has begun: a message amid it would be the end of it."""
        message, self._begun = self._begun, None
        if message is None or message.pid != os.getpid():  # forked since: it is the parent's
            return
        for packet in _packets(message.data, message.sent):
            self._send_packet(ring, packet, first=False)
            message.sent += 1

    def _send_packets(self, ring: Ring, data: bytes | memoryview) -> bool:
        """Send a message through the kernel; ``False`` = the mode has changed, nothing is sent."""
        first = True
        for packet in _packets(data):
            if not self._send_packet(ring, packet, first=first):
                return False
            first = False
        return True

    def _send_packet(self, ring: Any, packet: bytes, *, first: bool) -> bool:
        while True:
            try:
                return self._try_packet(ring, packet, first)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._check_open(), select.POLLOUT)
                poll.poll(SLICE * 1000)

    def _try_packet(
        self, ring: Any, packet: bytes, first: bool, deadline: Deadline = _FOR_EVER
    ) -> bool:
        handle, core = self._check_open(), ring._core

        def attempt() -> bool:
            if first and not core._words[CLOSED]:  # C1 mode
                return False
            libc.send(handle, packet, len(packet), _SEND)
            return True

        try:
            return _inside(core, attempt, deadline)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            raise BrokenPipeError(
                errno.EPIPE, "nobody has the other end of the pipe any more: all closed it or died"
            ) from None

    # Receiving

    def _receive(self) -> bytes:
        ring: Any = self._in
        words = ring._core._words
        if not words[CLOSED]:
            record = self._get_at_ring(ring)
            if record is not None:
                return record
            self._short = False
        while True:
            self._set_mode(ring, SLEEPING)
            message = self._take(ring)
            if message is not None:
                return message
            if not (self._short and self._flip(ring)):
                self._sleep(SLICE)
                continue
            self._short = False
            record = self._get_at_ring(ring)
            if record is not None:
                self._short = True
                return record

    def _receive_now(self) -> bytes | None:
        """Return the oldest message that is all there, ``None`` = there is none now.

        From then on what is sent to this end goes through the kernel, as after ``fileno()``.

        Raises:
            Stalled: Somebody is stopped in the section.
        """
        ring: Any = self._in
        self._set_mode(ring, WATCHED, _NOW)
        message = self._take(ring)
        if message is None:  # another process may have taken what the ring had
            self._tell_of_the_rest(ring)
        return message

    def _take(self, ring: Any) -> bytes | None:
        """Take a message where nothing is put into the ring; ``None`` = there is none now."""
        while True:
            # What the ring has is older than any packet.
            if self._has_left(ring):
                try:
                    left: bytes = ring.get(0)
                except (queue.Empty, ClosedError):  # another was faster
                    continue
                self._tell_of_the_rest(ring)
                return left
            packet = self._read()
            if packet is None:
                return None
            if packet:
                message = self._message(packet)
                if message is not None:
                    return message
            elif not self._has_left(ring):
                if self._missing:
                    self._partial, self._missing = [], 0
                    raise OSError("got end of file during message: who sent it died or gave it up")
                raise EOFError

    def _get_at_ring(self, ring: Any) -> bytes | None:
        try:
            record: bytes = ring.get(_AT_RING)
            return record
        except (queue.Empty, ClosedError):
            return None
        except BaseException:
            # By a signal handler. One that comes again and again must not keep us from the end.
            self._leave_ring(ring)
            raise

    def _read(self) -> bytes | None:
        """Return a packet; ``None`` = there is none, empty = there will never be one."""
        packet = ctypes.create_string_buffer(_PACKET + 16)
        while True:
            try:
                nbytes = libc.recv(self._check_open(), packet, len(packet), socket.MSG_DONTWAIT)
                return packet.raw[:nbytes]
            except BlockingIOError:
                return None
            except ConnectionResetError:  # told once, of what was not taken at the other end
                continue

    def _message(self, packet: bytes) -> bytes | None:
        """Return the message of a packet, ``None`` where it is not all."""
        kind = packet[:1]
        if kind == _WHOLE:
            self._partial, self._missing = [], 0
            return packet[1:]
        if kind == _FIRST:
            self._partial, self._missing = [packet[9:]], int.from_bytes(packet[1:9], "little")
            self._missing -= len(packet) - 9
        elif self._missing:
            self._partial.append(packet[1:])
            self._missing -= len(packet) - 1
            if not self._missing:
                partial, self._partial = self._partial, []
                return b"".join(partial)
        return None

    def _has_left(self, ring: Ring) -> bool:
        """Return whether the ring has a record, and not padding alone; or one that came back."""
        core = ring._core
        moved = core._words[READ_POS] != core._words[WRITE_POS]
        return (moved and core.backlog_records() > 0) or core.count_returned() > 0

    def _set_mode(self, ring: Ring, mode: int, deadline: Deadline = _FOR_EVER) -> None:
        """Have senders send packets from here on, if they do not yet; who waits at the ring looks."""
        core = ring._core
        words = core._words

        def change() -> None:
            words[ROOM_END] = 0  # or a put would not look whether the ring takes any
            words[CLOSED] = max(words[CLOSED], mode)  # C1 mode

        if words[CLOSED] < mode:
            _inside(core, change, deadline)
            core.wake_next(core.consumers)

    def _flip(self, ring: Ring) -> bool:
        """Have senders use the ring again, if that loses no packet."""
        words, handle = ring._core._words, self._check_open()

        def change() -> bool:
            empty = not any(fcntl.ioctl(handle, termios.FIONREAD, bytes(4)))
            if words[CLOSED] == SLEEPING and empty and not self._missing:
                words[CLOSED] = _RING  # C2 flip
                return True
            return False

        if words[CLOSED] != SLEEPING:
            return False
        return _inside(ring._core, change)

    def _sleep(self, seconds: float) -> bool:
        """Wait for a packet or the end; return whether there is either."""
        poll, began = select.poll(), _now()
        poll.register(self._check_open(), select.POLLIN)
        found = bool(poll.poll(seconds * 1000))
        if seconds:
            self._short = _now() - began < _SHORT
        return found

    def _end_of_receiving(self) -> None:
        """Have senders ask the kernel with the next message, and not in 100 µs."""
        self._leave_ring(self._in)

    def _end_of_sending(self) -> None:
        """Have who waits at the ring ask the kernel now, and not in 10 ms."""
        self._leave_ring(self._out)

    def _leave_ring(self, ring: Ring | None) -> None:
        if ring is not None:
            with contextlib.suppress(IpcmapError):
                self._set_mode(ring, SLEEPING)

    # The descriptor

    def _watch_both(self, handle: int) -> None:
        """Make a descriptor that is readable for packets, and for what the ring has left."""
        self._left = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        left = self._left
        self._others.append(lambda: os.close(left))
        epoll = select.epoll(2)
        self._others.append(epoll.close)
        epoll.register(handle, select.EPOLLIN)
        epoll.register(left, select.EPOLLIN)
        self._watch = epoll.fileno()

    def _tell_of_the_rest(self, ring: Ring) -> None:
        if self._left >= 0 and not self._has_left(ring):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._left)

    # Errors

    def _check_open(self) -> int:
        if self._handle is None:
            raise OSError("handle is closed: make another pipe, or close it later")
        return self._handle

    def _check_readable(self) -> None:
        self._check_open()
        if self._in is None:
            raise OSError("connection is write-only: receive at the other end")

    def _check_writable(self) -> None:
        self._check_open()
        if self._out is None:
            raise OSError("connection is read-only: send at the other end")


class Message:
    """What is sent without a wait, how many of its packets were sent, and by which process."""

    def __init__(self, data: bytes) -> None:
        self.data, self.sent, self.pid = data, 0, os.getpid()


def _packets(data: bytes | memoryview, sent: int = 0) -> Iterator[bytes]:
    """Yield the packets of a message from one on."""
    if len(data) <= _PACKET:
        yield _WHOLE + data
        return
    for begin in range(sent * _PACKET, len(data), _PACKET):
        head = _NEXT if begin else _FIRST + len(data).to_bytes(8, "little")
        yield head + data[begin : begin + _PACKET]


def _inside(core: Any, change: Callable[[], Result], deadline: Deadline = _FOR_EVER) -> Result:
    try:
        return inside(core._producers_section, deadline, change)
    except Reentered:
        raise BusyError(
            "pipe is in use by the code that this signal handler or finalizer interrupted: "
            f"pid={os.getpid()}; leave the handler first"
        ) from None
