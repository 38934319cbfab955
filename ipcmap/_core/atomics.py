"""Atomic cells of an engine: one interface, whichever it is.

reference_atomics.py says what is promised. Its section, for which room must be left in
the region by either engine, is of no use to the native one.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from ipcmap._core.reference_atomics import NBYTES, initialise
from ipcmap._core.reference_atomics import Words as ReferenceWords

__all__ = ["NBYTES", "AtomicWords", "atomic_words", "initialise"]


class AtomicWords(Protocol):
    """64-bit words that are changed in one step."""

    def load(self, index: int, /) -> int:
        """Return the word of this index."""
        ...

    def store(self, index: int, number: int, /) -> None:
        """Store a number in it."""
        ...

    def add(self, index: int, number: int, /) -> int:
        """Add a number to it; return the sum."""
        ...

    def compare_exchange(self, index: int, expected: int, number: int, /) -> bool:
        """Store ``number`` if ``expected`` is there; return whether it was."""
        ...


def atomic_words(
    engine: str, memory: memoryview, section: int, *, signed: bool = False
) -> AtomicWords:
    """Return the words of a range of memory, as this engine changes them.

    Args:
        engine: ``"native"`` or ``"reference"``; the whole family's.
        memory: Whole words, at a multiple of 8, that nothing else changes.
        section: The address of a section that was made by ``initialise``.
        signed: Whether results are.
    """
    if engine == "native":
        native = importlib.import_module("ipcmap._core.native")
        words: AtomicWords = native.Words(memory, signed=signed)
        return words
    return ReferenceWords(memory, section, signed=signed)
