"""Channels of bytes, as every peer of a comparison offers them: ipcmap's and the standard library's.

A channel is made before the fork. Each of its ends is opened by the process that uses
it, since many a library cannot take an open socket or context across a fork.
"""

from __future__ import annotations

import enum
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import managers

from ipcmap._core import libc
from ipcmap.arena import Arena
from ipcmap.ring import Ring

__all__ = ["STANDARD", "Can", "Channel", "Peer", "Receiver", "Sender", "Terms", "Unfit", "nothing"]

_CAPACITY = 1 << 20  # bytes, where a row does not say; at least _LONGEST_BACKLOG records
_LONGEST_BACKLOG = 64  # records
_MOST_IN_A_BATCH = 1000  # records
_LONGEST_INLINE = 1 << 16  # bytes of a record that is in the ring itself
_ENTRY = 24  # bytes that a longer one takes there


class Unfit(Exception):
    """A peer cannot do what a row asks of it on this machine; the text says why."""


class Can(enum.Flag):
    """What a peer must be able to do to take part in a row."""

    NOTHING_MORE = 0
    MANY_PRODUCERS = enum.auto()
    MANY_CONSUMERS = enum.auto()
    BATCHES = enum.auto()
    SLEEP = enum.auto()  # a consumer that has nothing to do leaves the CPU
    ONE_PROCESS = enum.auto()  # no server beside it, whose memory would have to be counted
    ALL = MANY_PRODUCERS | MANY_CONSUMERS | BATCHES | SLEEP | ONE_PROCESS


@dataclass(frozen=True)
class Terms:
    """What a channel is asked to be.

    Attributes:
        nbytes: The length of a record.
        folder: For files of its own; removed after the run.
        consumers: How many processes take from it.
        capacity: Bytes of records that it should hold; 0 = what suits ``nbytes``.
    """

    nbytes: int
    folder: str
    consumers: int = 1
    capacity: int = 0

    @property
    def room(self) -> int:
        """Bytes of records that it should hold."""
        return self.capacity or max(_CAPACITY, _LONGEST_BACKLOG * self.nbytes)

    @property
    def backlog(self) -> int:
        """Records that it should hold."""
        return self.room // self.nbytes


def nothing() -> None:
    """Do nothing, where nothing is to be done."""


@dataclass(frozen=True)
class Sender:
    """A producer's end."""

    put: Callable[[bytes], object]
    put_many: Callable[[list[bytes]], object] | None = None
    finish: Callable[[], object] = nothing


@dataclass(frozen=True)
class Receiver:
    """A consumer's end.

    ``take`` is what is timed: like ``get``, but it may return the length alone.
    """

    get: Callable[[], bytes]
    get_many: Callable[[], Sequence[bytes]] | None = None
    take: Callable[[], bytes | int] | None = None
    finish: Callable[[], object] = nothing


@dataclass(frozen=True)
class Channel:
    """How its ends are opened, and the processes beside it that work for it."""

    sender: Callable[[], Sender]
    receiver: Callable[[], Receiver]
    helpers: Sequence[int] = ()
    close: Callable[[], object] = nothing


@dataclass(frozen=True)
class Peer:
    """Somebody to compare with.

    Attributes:
        name: What results show.
        make: Makes a channel.
        module: What must be importable; empty = the standard library, or ipcmap.
        install: What pip is asked for where it is not.
        can: What it is able to do.
        shortest: Bytes of a record from which on it takes part.
        longest: Bytes of the longest record that it takes.
        ours: Whether it is ipcmap.
    """

    name: str
    make: Callable[[Terms], Channel]
    module: str = ""
    install: str = ""
    can: Can = Can.ALL & ~Can.BATCHES
    shortest: int = 0
    longest: int = 1 << 40
    ours: bool = False

    def open(self, terms: Terms) -> Channel:
        """Make a channel.

        Raises:
            Unfit: The machine has no room for it, or does not allow it.
        """
        try:
            return self.make(terms)
        except OSError as error:
            raise Unfit(f"cannot be opened on this machine: {error}") from error


# ipcmap


@cache
def _own_arena(pid: int) -> Arena:
    """Return the arena of one measurement; pages that an earlier one has touched would be warm."""
    return Arena()


def _ring(terms: Terms, *, in_place: bool = False) -> Channel:
    # A long record is in a block of the arena, and takes an entry of the ring alone.
    in_blocks = terms.nbytes > _LONGEST_INLINE
    ring = Ring(_ENTRY * terms.backlog if in_blocks else terms.room, arena=_own_arena(os.getpid()))

    def length_of_a_lease() -> int:
        with ring.lease() as view:
            return view.nbytes

    receiver = Receiver(
        ring.get,
        partial(ring.get_many, _MOST_IN_A_BATCH),
        length_of_a_lease if in_place else None,
    )
    return Channel(lambda: Sender(ring.put, ring.put_many), lambda: receiver)


# The standard library

_fork = multiprocessing.get_context("fork")


def _queue(terms: Terms) -> Channel:
    queue = _fork.Queue()

    def finish() -> None:
        queue.close()
        queue.join_thread()

    return Channel(lambda: Sender(queue.put, finish=finish), lambda: Receiver(queue.get))


def _simple_queue(terms: Terms) -> Channel:
    queue = _fork.SimpleQueue()
    return Channel(lambda: Sender(queue.put), lambda: Receiver(queue.get))


def _pipe(terms: Terms) -> Channel:
    read, write = _fork.Pipe(duplex=False)
    return Channel(lambda: Sender(write.send_bytes), lambda: Receiver(read.recv_bytes))


def _manager_queue(terms: Terms) -> Channel:
    # An address in the abstract namespace leaves no file, whoever is killed.
    address = f"\0ipcmap-bench-{os.getpid()}-{os.urandom(8).hex()}"
    manager = managers.SyncManager(address, ctx=_fork)
    manager.start(_die_with_the_parent)
    queue = manager.Queue(terms.backlog)
    server: int = manager._process.pid  # type: ignore[attr-defined]
    return Channel(
        lambda: Sender(queue.put), lambda: Receiver(queue.get), (server,), manager.shutdown
    )


def _die_with_the_parent() -> None:
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


STANDARD = (
    Peer("ipcmap.Ring", _ring, can=Can.ALL, ours=True),
    Peer("ipcmap.Ring, lease", partial(_ring, in_place=True), shortest=1 << 16, ours=True),
    Peer("multiprocessing.Queue", _queue),
    Peer("multiprocessing.SimpleQueue", _simple_queue),
    Peer(
        "multiprocessing.Pipe",
        _pipe,
        can=Can.SLEEP | Can.ONE_PROCESS,  # without a lock: one process at each end
    ),
    Peer(
        "multiprocessing Manager().Queue",
        _manager_queue,
        can=Can.MANY_PRODUCERS | Can.MANY_CONSUMERS | Can.SLEEP,
    ),
)
