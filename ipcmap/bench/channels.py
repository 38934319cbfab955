"""Channels of bytes or objects, as every peer offers them: ipcmap's and the standard library's.

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
from typing import Any, Generic, TypeVar

from ipcmap._core import libc
from ipcmap.arena import Arena
from ipcmap.connection import Pipe
from ipcmap.queues import Queue
from ipcmap.ring import Ring

__all__ = [
    "STANDARD",
    "Can",
    "Channel",
    "Peer",
    "Receiver",
    "Sender",
    "Terms",
    "Unfit",
    "die_with_the_parent",
    "nothing",
]

Made_co = TypeVar("Made_co", covariant=True)

_CAPACITY = 1 << 20  # bytes, where a row does not say; at least _LONGEST_BACKLOG records
_LONGEST_BACKLOG = 64  # records
_MOST_IN_A_BATCH = 1000  # records
_LONGEST_INLINE = 1 << 16  # bytes of a record that is in the ring itself
_ENTRY = 24  # bytes that a longer one takes there


class Unfit(Exception):
    """A peer cannot do what a row asks of it on this machine; the text says why."""


class Can(enum.Flag):
    """What a peer must be able to do to take part in a row."""

    BYTES = enum.auto()
    OBJECTS = enum.auto()
    TASKS = enum.auto()
    MANY_PRODUCERS = enum.auto()
    MANY_CONSUMERS = enum.auto()
    BATCHES = enum.auto()
    SLEEP = enum.auto()  # a consumer that has nothing to do leaves the CPU
    ONE_PROCESS = enum.auto()  # no server beside it, whose memory would have to be counted
    PIPE = SLEEP | ONE_PROCESS
    QUEUE = PIPE | MANY_PRODUCERS | MANY_CONSUMERS


@dataclass(frozen=True)
class Terms:
    """What a channel is asked to be.

    Attributes:
        nbytes: The length of a record.
        folder: For files of its own; removed after the run.
        consumers: How many processes take from it.
        capacity: Bytes of records that it should hold; 0 = what suits ``nbytes``.
        objects: Whether what is sent are objects, and not bytes.
    """

    nbytes: int
    folder: str
    consumers: int = 1
    capacity: int = 0
    objects: bool = False

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

    put: Callable[[Any], object]
    put_many: Callable[[list[Any]], object] | None = None
    finish: Callable[[], object] = nothing


@dataclass(frozen=True)
class Receiver:
    """A consumer's end.

    ``take`` is what is timed: like ``get``, but it may return the length alone.
    """

    get: Callable[[], Any]
    get_many: Callable[[], Sequence[Any]] | None = None
    take: Callable[[], Any] | None = None
    finish: Callable[[], object] = nothing


@dataclass(frozen=True)
class Channel:
    """How its ends are opened, and the processes beside it that work for it."""

    sender: Callable[[], Sender]
    receiver: Callable[[], Receiver]
    helpers: Sequence[int] = ()
    close: Callable[[], object] = nothing


@dataclass(frozen=True)
class Peer(Generic[Made_co]):
    """Somebody to compare with.

    Attributes:
        name: What results show.
        make: Makes a channel, or a pool of workers.
        module: What must be importable; empty = the standard library, or ipcmap.
        install: What pip is asked for where it is not.
        can: What it is able to do.
        shortest: Bytes of a record from which on it takes part.
        longest: Bytes of the longest record that it takes.
        ours: Whether it is ipcmap.
    """

    name: str
    make: Callable[[Terms], Made_co]
    module: str = ""
    install: str = ""
    can: Can = Can.BYTES | Can.OBJECTS | Can.QUEUE
    shortest: int = 0
    longest: int = 1 << 40
    ours: bool = False

    def open(self, terms: Terms) -> Made_co:
        """Make one.

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


def _own_queue(terms: Terms) -> Channel:
    queue: Queue[Any] = Queue(capacity=terms.room, arena=_own_arena(os.getpid()))
    return Channel(
        lambda: Sender(queue.put, queue.put_many),
        lambda: Receiver(queue.get, partial(queue.get_many, _MOST_IN_A_BATCH)),
    )


def _own_pipe(terms: Terms) -> Channel:
    return _of_a_pipe(Pipe(duplex=False, arena=_own_arena(os.getpid())), terms)


def _of_a_pipe(ends: tuple[Any, Any], terms: Terms) -> Channel:
    read, write = ends
    if terms.objects:
        return Channel(lambda: Sender(write.send), lambda: Receiver(read.recv))
    return Channel(lambda: Sender(write.send_bytes), lambda: Receiver(read.recv_bytes))


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
    return _of_a_pipe(_fork.Pipe(duplex=False), terms)


def _manager_queue(terms: Terms) -> Channel:
    # An address in the abstract namespace leaves no file, whoever is killed.
    address = f"\0ipcmap-bench-{os.getpid()}-{os.urandom(8).hex()}"
    manager = managers.SyncManager(address, ctx=_fork)
    manager.start(die_with_the_parent, (os.getpid(),))
    queue = manager.Queue(terms.backlog)
    server: int = manager._process.pid  # type: ignore[attr-defined]
    return Channel(
        lambda: Sender(queue.put), lambda: Receiver(queue.get), (server,), manager.shutdown
    )


def die_with_the_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, or has ended."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


STANDARD = (
    Peer("ipcmap.Ring", _ring, can=Can.BYTES | Can.BATCHES | Can.QUEUE, ours=True),
    Peer(
        "ipcmap.Ring, lease",
        partial(_ring, in_place=True),
        can=Can.BYTES,
        shortest=1 << 16,
        ours=True,
    ),
    Peer("ipcmap.Queue", _own_queue, can=Can.OBJECTS | Can.QUEUE, ours=True),
    # Pipes have no lock: one process at each end.
    Peer("ipcmap.Pipe", _own_pipe, can=Can.BYTES | Can.OBJECTS | Can.PIPE, ours=True),
    Peer("multiprocessing.Queue", _queue),
    Peer("multiprocessing.SimpleQueue", _simple_queue),
    Peer("multiprocessing.Pipe", _pipe, can=Can.BYTES | Can.OBJECTS | Can.PIPE),
    Peer(
        "multiprocessing Manager().Queue",
        _manager_queue,
        can=Can.BYTES | Can.OBJECTS | Can.QUEUE & ~Can.ONE_PROCESS,
    ),
)
