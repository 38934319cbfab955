"""Listeners: descriptors that tell a process of records, for select and its kin.

A listener is a small block of the process that listens, and names a pipe that this process
holds open for reading and writing. Who puts a record opens the pipe by way of
/proc/PID/fd/NUMBER, and writes a byte. A pipe can be opened in this way long after a
fork, by a process that was forked before it was made; an eventfd cannot. A put takes this
way only where the word of the sleepers, which it reads in any case, says LISTENING.

Shared fields
  in the producers' section
    LISTENING   upper half of the consumers' sleepers; set if any listener is armed,
                perhaps too if none is
    listeners   changes with each new listener, so that others look for it
    calls       how often the armed ones were called
    armed       of a block, by its process alone: if that has found the ring empty, and wants
                a byte, the number of the call to come
  before its block is a LISTENER, by its process alone
    pid, fd     whose descriptor, and which
    device, inode   what it is, to tell it from another's with the same pid and number

Sync points
  W1 listen   its block is a LISTENER, then `listeners` changes
              caller: `listeners` is not what it knows, so it looks for the blocks anew
  W2 arm      listener: its pipe is drained; then, in the producers' section, the ring has
              not moved since an attempt found nothing, nor ended: armed, then LISTENING
  P5 look     producer: LISTENING, in the section in which it commits
  W3 call     producer: in the section again, `calls` is one more, so that none is armed
              any more, then no LISTENING
  W4 write    producer: a byte into the pipe of each that was armed

W2 and P5 are in one section: either the listener sees the record, or the producer sees
that it listens. A byte written before the pipe is drained belongs to a record that W2
sees, or that somebody took; one written later stays. All that are armed are called,
besides the one sleeper of P6: neither kind waits for what the other does. A descriptor
stays readable until an attempt of its own process finds nothing.

Nobody but its process writes into a block, and so it can be freed, by that or by a sweep,
without the ring's section. Who reads one that was freed meanwhile finds another tag, or
what names no pipe.

If a process dies (or a signal handler raises)
  listener    its pipe goes with it, and the sweep frees its block. Till then one put,
              if it was armed, looks for it in vain
  producer, before R1    nothing happened
            R1 to W3     the next put calls; until then the listeners do not know
            W3 to W4     they do not know
  So no listener trusts the pipe alone. It has a timer besides, set anew with each W2, by
  which its descriptor is readable a slice later whoever may have died. What it then does
  is what a sleeper does at the end of a slice: look, and sweep. The same holds where
  a producer may not open the pipe: no /proc, another user, no descriptor left. A record
  returned by a sweep while a listener arms may also be noticed a slice later.

A byte too many, or a full pipe, does no harm: both say that there may be something.
"""

from __future__ import annotations

import contextlib
import os

from ipcmap._core.layout import Kind
from ipcmap._core.reference_allocator import Allocator
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_batches import RingBatches
from ipcmap._core.reference_sections import Reentered, Stalled
from ipcmap._core.ring_layout import (
    B_ARMED,
    B_DEVICE,
    B_FD,
    B_INODE,
    B_PID,
    BLOCK_HEADER,
    CALLS,
    CLOSED,
    CONSUMERS_SLEEPING,
    LISTENERS,
    LISTENING,
    READ_POS,
    RETURNED,
    SLEEPING,
    WORD_MASK,
    WRITE_POS,
)
from ipcmap._core.slot_layout import MAX_PID
from ipcmap._deadline import Deadline

__all__ = ["RingListeners", "write_to"]

_NOW = Deadline(0)  # whoever is stopped in a section must not hold up a put that is over
_MAX_FD = 2**31 - 1

Target = tuple[int, int, int, int]  # pid, number, device and inode of a descriptor


class RingListeners(RingBatches):
    """A ring that tells others of its records by their descriptors."""

    _known: tuple[int, tuple[Cell, ...]] = (-1, ())  # `listeners` when we looked, and what we saw

    @property
    def allocator(self) -> Allocator:
        """Whose blocks the listeners are."""
        return self._place.allocator

    def listen(self, fd: int) -> Cell:
        """Make a listener of this process out of a pipe; it is not armed yet."""
        allocator, found = self._place.allocator, os.fstat(fd)
        cell = allocator.allocate(BLOCK_HEADER)
        try:
            self.address_block(cell, 0, 0, 0)
            block = self._block(cell)
            block[B_ARMED] = 0
            block[B_PID], block[B_FD] = os.getpid(), fd
            block[B_DEVICE], block[B_INODE] = found.st_dev, found.st_ino
            listener = allocator.retag(cell, self._place.slot(), Kind.LISTENER)  # W1 listen
            self._inside(self._producers_section, Deadline(None), self._announce)
            return listener
        except BaseException:
            self.unlisten(cell)
            raise

    def unlisten(self, cell: Cell) -> None:
        """Free the block of a listener of this process; twice is once."""
        owner, kind = self._place.allocator.tag(cell)
        if owner == self._place.slot() and kind in (Kind.BYTES, Kind.LISTENER):
            self._place.allocator.free(cell._replace(kind=kind))

    def _announce(self) -> None:
        self._words[LISTENERS] = self._words[LISTENERS] + 1 & WORD_MASK  # W1 listen

    def arm(self, cell: Cell, seen: int, deadline: Deadline = _NOW) -> bool:
        """Ask for a byte with the next record; ``False`` = look again now.

        Args:
            cell: The block of a listener, whose pipe was drained before.
            seen: What the attempt returned that found nothing.
            deadline: When to stop waiting for the section.

        Raises:
            Stalled: Somebody is stopped in the section.
        """
        return self._inside(self._producers_section, deadline, self._arm, cell, seen)

    def _arm(self, cell: Cell, seen: int) -> bool:
        words = self._words
        if words[WRITE_POS] != seen or words[CLOSED] or words[RETURNED]:
            return False
        self._block(cell)[B_ARMED] = words[CALLS] + 1 & WORD_MASK  # W2 arm
        words[CONSUMERS_SLEEPING] |= LISTENING
        return True

    def consumed(self) -> int:
        """Return up to where all was taken, for a first ``arm``."""
        section = self._consumers_section
        return int(self._inside(section, Deadline(None), self._words.__getitem__, READ_POS))

    def call_listeners(self) -> None:
        """Make the descriptors of all armed listeners readable.

        Where somebody is stopped in the section, the next put does it, or their timers.
        """
        with contextlib.suppress(Stalled, Reentered):
            while True:
                called = self._inside(self._producers_section, _NOW, self._call)
                if not isinstance(called, int):
                    break
                # After the section in which `listeners` was read: all that it counts are there.
                cells = filter(self.is_ours, self._place.allocator.of_kind(Kind.LISTENER))
                self._known = called, tuple(cells)
            for target in called:
                write_to(target)

    def _call(self) -> list[Target] | int:
        """Disarm all, inside, and return whom to write to; an ``int`` = whom we know is not all."""
        words, (listeners, cells) = self._words, self._known
        if words[LISTENERS] != listeners:
            return int(words[LISTENERS])
        called, call = [], words[CALLS] + 1 & WORD_MASK
        for cell in cells:
            block = self._block(cell)
            if block[B_ARMED] == call:
                target = block[B_PID], block[B_FD], block[B_DEVICE], block[B_INODE]
                if self._place.allocator.tag(cell)[1] == Kind.LISTENER:
                    called.append(target)
        words[CALLS] = call  # W3 call
        words[CONSUMERS_SLEEPING] &= SLEEPING
        return called


def write_to(target: Target) -> None:
    """Write a byte into the pipe that is the descriptor of a process, if it still is."""
    pid, number, *identity = target
    if not (0 < pid <= MAX_PID and number <= _MAX_FD):
        return
    path = f"/proc/{pid}/fd/{number}"
    with contextlib.suppress(OSError):
        # To open whatever else has the number by now could have effects of its own.
        if os.readlink(path) != f"pipe:[{identity[1]}]":
            return
        # For reading as well: where the listener has just closed it, the write is no SIGPIPE.
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            found = os.fstat(fd)
            if [found.st_dev, found.st_ino] == identity:
                os.write(fd, b"\0")  # W4 write
        finally:
            os.close(fd)
