"""Atomic cells: 64-bit words of a region that are changed in one step. The reference twin.

Shared fields                        written by      guard
  word   u64, any number of them     anyone          the section

The native engine's twin (native_atomics.c) has the same four methods, changes words by
processor instructions and has no section: one family, one engine, as for a ring.

Promised by both
  - Each call is one step, before or after every other call on that word, by any thread
    or process: of n additions none is lost, and of those who exchange one wins.
  - Calls are seen by all in one order, with everything that was stored before them.
  - Numbers wrap around at 64 bits. Results are 0 to 2**64 - 1; -2**63 to 2**63 - 1 where
    the object is ``signed``. Arguments may be either.

Sync points
  W1 change   any call: the one store of the word, in the section
              any call: the load of the word, in the section

If a process dies, or is broken off by an exception
  before W1   the word is as it was
  after W1    it has changed, and the caller did not hear of it
  The next to enter the section is told by the kernel, and finds nothing to repair.

A process that is stopped in the section holds up the others' calls; not so in the native
engine. A signal handler that interrupts a call here and makes another gets BusyError.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index as as_index
from typing import TypeVar

from ipcmap._core.reference_sections import NBYTES, Reentered, initialise, inside
from ipcmap._deadline import Deadline
from ipcmap.errors import BusyError

__all__ = ["NBYTES", "Words", "initialise"]

_FOR_EVER = Deadline(None)
_MASK, _SIGN = 2**64 - 1, 2**63

Result = TypeVar("Result")


class Words:
    """64-bit words of a region that are changed in one step.

    Args:
        memory: The region's bytes: words in the machine's order.
        section: The address of an initialised section (NBYTES bytes) that guards them alone.
        signed: Whether results are.

    Raises:
        ValueError: The memory does not consist of whole words.
    """

    __slots__ = ("_section", "_signed", "_words")

    def __init__(self, memory: memoryview, section: int, *, signed: bool = False) -> None:
        if memory.nbytes % 8:
            raise ValueError(f"words are 8 bytes each, at multiples of 8: nbytes={memory.nbytes}")
        self._words = memory.cast("B").cast("Q")
        self._section, self._signed = section, signed

    def load(self, index: int, /) -> int:
        """Return the word of this index."""
        return self._result(self._inside(self._words.__getitem__, self._at(index)))

    def store(self, index: int, number: int, /) -> None:
        """Store a number in it."""
        self._inside(self._words.__setitem__, self._at(index), _word(number))

    def add(self, index: int, number: int, /) -> int:
        """Add a number to it; return the sum."""
        return self._result(self._inside(self._add, self._at(index), _word(number)))

    def compare_exchange(self, index: int, expected: int, number: int, /) -> bool:
        """Store ``number`` if ``expected`` is there; return whether it was."""
        return self._inside(self._exchange, self._at(index), _word(expected), _word(number))

    def _at(self, index: int) -> int:
        at = as_index(index)
        if not 0 <= at < len(self._words):
            raise IndexError(f"no such word: index={at}, words={len(self._words)}")
        return at

    def _result(self, word: int) -> int:
        return word - 2**64 if self._signed and word >= _SIGN else word

    def _inside(self, change: Callable[..., Result], *arguments: int) -> Result:
        try:
            return inside(self._section, _FOR_EVER, change, *arguments)
        except Reentered:
            raise BusyError(
                "words are being changed by the code that this signal handler interrupted; "
                "leave the handler first"
            ) from None

    # Inside the section

    def _add(self, at: int, number: int) -> int:
        words = self._words
        words[at] = total = words[at] + number & _MASK  # W1 change
        return total

    def _exchange(self, at: int, expected: int, number: int) -> bool:
        words = self._words
        if words[at] != expected:
            return False
        words[at] = number  # W1 change
        return True


def _word(number: int) -> int:
    if not -_SIGN <= number <= _MASK:
        raise OverflowError(f"number must be -2**63 to 2**64 - 1: number={number!r}")
    return number & _MASK
