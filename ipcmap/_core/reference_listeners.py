"""Listeners: descriptors that tell a process of a change, for select and its kin.

Whoever changes what others wait for wakes those who sleep (reference_parking), and calls
those who listen. A listener is a small block of the process that listens, and names a
pipe that this process holds open for reading and writing. Who changes something opens the
pipe by way of /proc/PID/fd/NUMBER, and writes a byte. A pipe can be opened in this way
long after a fork, by a process that was forked before it was made; an eventfd cannot. A
change takes this way only where the mark, which it reads in any case, says LISTENING.

Below, *the section* guards what is waited for, and the words here. Which one it is, and
where the words are, says the object: a ring for its records, and for its room; an event; a lock
or a semaphore, for what is there to take.

Shared fields
  in the section
    mark        LISTENING, if any listener is armed, perhaps too if none is; the upper half
                of the sleepers of a ring, a lock or a semaphore
    listeners   changes with each new listener, so that others look for it
    calls       how often the armed ones were called
    armed       of a block, by its process alone: if that has found nothing, and wants
                a byte, the number of the call to come
  before its block is a LISTENER, by its process alone
    pid, fd     whose descriptor, and which
    device, inode   what it is, to tell it from another's with the same pid and number
    bell        to which of the object's marks it listens, and EXACT

Sync points
  W1 listen   its block is a LISTENER; then, as it is first armed, `listeners` changes. So
              who begins to listen enters no section that it would have to wait for
              caller: `listeners` is not what it knows, so it looks for the blocks anew
  W2 arm      listener: its pipe is drained; then, in the section, nothing has changed
              since an attempt found nothing: armed, then LISTENING
  P5 look     changer: LISTENING, in the section in which it changes
  W3 call     changer: in the section again, if what it changed is still there: `calls` is
              one more, so that none is armed any more, then no LISTENING
  W4 write    changer: a byte into the pipe of each that was armed; in the same section if it
              is EXACT, after it if not

W2 and P5 are in one section: either the listener sees the change, or the changer sees
that it listens. A byte written before the pipe is drained belongs to a change that W2
sees, or that somebody used up; one written later stays. All that are armed are called,
besides the one sleeper of P6: neither kind waits for what the other does. A descriptor
stays readable until an attempt of its own process finds nothing.

Nobody but its process writes into a block, and so it can be freed, by that or by a sweep,
without the section. Who reads one that was freed meanwhile finds another tag, or what
names no pipe.

If a process dies (or a signal handler raises)
  listener    its pipe goes with it, and the sweep frees its block. Till then one change,
              if it was armed, looks for it in vain
  changer, before its change    nothing happened
           from there to W3     the next change calls; until then the listeners do not know
           W3 to W4             they do not know
  So no listener trusts the pipe alone. It has a timer besides, set anew with each W2, by
  which its descriptor is readable a slice later whoever may have died. What it then does
  is what a sleeper does at the end of a slice: look, and sweep. The same holds where
  a changer may not open the pipe: no /proc, another user, no descriptor left. What comes
  back by a sweep while a listener arms may also be noticed a slice later.

A byte too many, or a full pipe, does no harm: both say that there may be something. But one
that is EXACT (queue_ends) is readable only while there is something, as long as its
process alone takes, one thing at a time: a change that is gone by W3 calls nobody; a byte
comes in the section, in which the pipe is drained before W2; and who finds it readable
has not yet taken what the byte is for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ipcmap._core.layout import Kind
from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_sections import Reentered, Stalled, inside
from ipcmap._core.ring_layout import (
    B_ARMED,
    B_BELL,
    B_DEVICE,
    B_FD,
    B_INODE,
    B_PID,
    B_RING,
    B_RING_GENERATION,
    BLOCK_HEADER,
    EXACT,
    LISTENING,
    SLEEPING,
    WORD_MASK,
)
from ipcmap._core.slot_layout import MAX_PID
from ipcmap._deadline import Deadline

__all__ = ["Bell", "Listeners", "Place", "write_to"]

_NOW = Deadline(0)  # whoever is stopped in a section must not hold up a change that is over
_MAX_FD = 2**31 - 1

Target = tuple[int, int, int, int]  # pid, number, device and inode of a descriptor
Known = tuple[int, tuple[Cell, ...]]  # `listeners` when we looked, and what we saw


class Place(NamedTuple):
    """Where an object lies: its arena as this process has it, and its block there."""

    memory: memoryview  # of the arena
    allocator: Allocator
    slot: Callable[[], int]  # this process's, claimed if it has none
    known: Callable[[], int]  # the same, 0 = none
    cell: Cell


class ListenedTo(Protocol):
    """An object, as one process has it."""

    _place: Place
    _words: memoryview


class Bell(NamedTuple):
    """Where an object has the words of its listeners: indices."""

    mark: int
    listeners: int
    calls: int


class Listeners:
    """Those who listen for one kind of change, as one process sees them."""

    __slots__ = ("_bell", "_changed", "_inside", "_is_there", "_object", "_section", "_seen")

    def __init__(
        self,
        listened_to: ListenedTo,
        bell: Bell,
        section: int,
        changed: Callable[[int], bool],
        seen: Callable[[Deadline], int] = lambda _: 0,
        enter: Callable[..., Any] = inside,
        is_there: Callable[[], bool] = lambda: True,
    ) -> None:
        """Be those of an object.

        Args:
            listened_to: The object.
            bell: Which of its words are ours.
            section: What guards them, and what is waited for.
            changed: Called in the section: whether anything has changed since an
                attempt went by this figure.
            seen: What a first attempt goes by.
            enter: As ``reference_sections.inside``.
            is_there: Called in the section: whether a call would not be in vain.
        """
        self._object, self._bell, self._section = listened_to, bell, section
        self._changed, self._seen, self._inside = changed, seen, enter
        self._is_there = is_there

    @property
    def allocator(self) -> Allocator:
        """Whose blocks the listeners are."""
        return self._object._place.allocator

    @property
    def key(self) -> tuple[int, int, int]:
        """Which they are, of all in their arena: offset and generation of the object, and a word."""
        cell = self._object._place.cell
        return cell.offset, cell.generation, self._bell.mark

    def seen(self, deadline: Deadline) -> int:
        """Return what a first attempt goes by, for a first ``arm``.

        Raises:
            Stalled: Somebody is stopped in the section.
        """
        return self._seen(deadline)

    def listen(self, fd: int, *, exact: bool = False) -> Cell:
        """Make a listener of this process out of a pipe; it is not armed yet."""
        allocator, found = self._object._place.allocator, os.fstat(fd)
        cell = allocator.allocate(BLOCK_HEADER)
        try:
            block, ours = self._block(cell), self._object._place.cell
            block[B_RING], block[B_RING_GENERATION] = ours.offset, ours.generation
            block[B_ARMED], block[B_BELL] = 0, self._bell.mark | EXACT * exact
            block[B_PID], block[B_FD] = os.getpid(), fd
            block[B_DEVICE], block[B_INODE] = found.st_dev, found.st_ino
            return allocator.retag(cell, self._object._place.slot(), Kind.LISTENER)  # W1 listen
        except BaseException:
            self.unlisten(cell)
            raise

    def unlisten(self, cell: Cell) -> None:
        """Free the block of a listener of this process; twice is once."""
        owner, kind = self._object._place.allocator.tag(cell)
        if owner == self._object._place.slot() and kind in (Kind.BYTES, Kind.LISTENER):
            self._object._place.allocator.free(cell._replace(kind=kind))

    def arm(
        self, cell: Cell, seen: int, drain: Callable[[], object], deadline: Deadline = _NOW
    ) -> bool:
        """Ask for a byte with the next change; ``False`` = look again now.

        Args:
            cell: The block of a listener.
            seen: What the attempt went by that found nothing.
            drain: Called in the section, before all else: drains its pipe.
            deadline: When to stop waiting for the section.

        Raises:
            Stalled: Somebody is stopped in the section.
        """
        armed: bool = self._inside(self._section, deadline, self._arm, cell, seen, drain)
        return armed

    def _arm(self, cell: Cell, seen: int, drain: Callable[[], object]) -> bool:
        drain()
        if self._changed(seen):
            return False
        words, bell, block = self._object._words, self._bell, self._block(cell)
        if not block[B_ARMED]:  # the first time
            words[bell.listeners] = words[bell.listeners] + 1 & WORD_MASK  # W1 listen
        block[B_ARMED] = words[bell.calls] + 1 & WORD_MASK  # W2 arm
        words[bell.mark] |= LISTENING
        return True

    def call(self, known: Known = (-1, ())) -> Known:
        """Make the descriptors of all armed listeners readable.

        Where somebody is stopped in the section, the next change does it, or their timers.

        Args:
            known: What the call before returned, which spares a search.
        """
        with contextlib.suppress(Stalled, Reentered):
            while True:
                called = self._inside(self._section, _NOW, self._call, known)
                if not isinstance(called, int):
                    break
                # After the section in which `listeners` was read: all that it counts are there.
                cells = filter(self._is_ours, self._object._place.allocator.of_kind(Kind.LISTENER))
                known = called, tuple(cells)
            for target in called:
                write_to(target)
        return known

    def _call(self, known: Known) -> list[Target] | int:
        """Disarm all, inside, and return whom to write to; an ``int`` = whom we know is not all."""
        if not self._is_there():
            return []
        words, bell = self._object._words, self._bell
        if words[bell.listeners] != known[0]:
            return int(words[bell.listeners])
        called, exact = list[Target](), list[Target]()
        call = words[bell.calls] + 1 & WORD_MASK
        for cell in known[1]:
            block = self._block(cell)
            if block[B_ARMED] == call:
                target = block[B_PID], block[B_FD], block[B_DEVICE], block[B_INODE]
                to = exact if block[B_BELL] & EXACT else called
                if self._object._place.allocator.tag(cell)[1] == Kind.LISTENER:
                    to.append(target)
        words[bell.calls] = call  # W3 call
        words[bell.mark] &= SLEEPING
        for target in exact:
            write_to(target)
        return called

    def calls(self) -> int:
        """Return how often those that were armed were called; stale as soon as it is read."""
        calls: int = self._object._words[self._bell.calls]
        return calls

    def _is_ours(self, cell: Cell) -> bool:
        block, ours = self._block(cell), self._object._place.cell
        here = block[B_RING], block[B_RING_GENERATION], block[B_BELL] & ~EXACT
        return here == (ours.offset, ours.generation, self._bell.mark)

    def _block(self, cell: Cell) -> memoryview:
        return self._object._place.memory[cell.offset : cell.offset + BLOCK_HEADER].cast("Q")


def write_to(target: Target) -> None:
    """Write a byte into the pipe that is the descriptor of a process, if it still is."""
    pid, number, *identity = target
    if not (0 < pid <= MAX_PID and number <= _MAX_FD):
        return
    path = f"/proc/{pid}/fd/{number}"
    # Opened and noted, closed and done with, in one step of C each: a signal handler may raise
    # after any call (reference_sections).
    opened = list[int]()
    closing = map(os.close, opened)
    with contextlib.suppress(OSError):
        # To open whatever else has the number by now could have effects of its own.
        if os.readlink(path) != f"pipe:[{identity[1]}]":
            return
        # For reading as well: where the listener has just closed it, the write is no SIGPIPE.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        try:
            opened.extend(map(os.open, (path,), (flags,)))
            found = os.fstat(opened[0])
            if [found.st_dev, found.st_ino] == identity:
                os.write(opened[0], b"\0")  # W4 write
        finally:
            for _ in closing:
                pass
