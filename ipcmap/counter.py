"""A number in shared memory that is added to in one step.

One instruction of the processor does that in the native engine; in the reference engine it is
done in a section (``_core/reference_atomics.py``).
"""

from __future__ import annotations

from ipcmap._core.atomics import NBYTES, atomic_words, initialise
from ipcmap._core.layout import IDENTITY, Kind
from ipcmap.arena import Arena
from ipcmap.structure import Structure

__all__ = ["Counter"]


class Counter(Structure):
    """A number that processes share, and add to in one step, without a lock.

    64 bits, signed: it wraps around. Who is killed in a call has made its change, or has not;
    nobody waits for it.

    Args:
        value: The first number.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        OverflowError: ``value`` has more than 64 bits.

    Example:
        >>> from ipcmap import Process
        >>> served = Counter()
        >>> def serve():
        ...     for _ in range(1000):
        ...         served.add()
        >>> workers = [Process(target=serve) for _ in range(2)]
        >>> for worker in workers:
        ...     worker.start()
        >>> for worker in workers:
        ...     worker.join()
        >>> served.value
        2000
    """

    _kind = Kind.COUNTER

    __slots__ = ("_number",)

    def __init__(self, value: int = 0, *, arena: Arena | None = None) -> None:
        nbytes = NBYTES + 8
        self._make(arena, nbytes, nbytes)
        initialise(self._address)
        self._attach()
        self._number.store(0, value)

    def _attach(self) -> None:
        memory = self._memory[NBYTES : NBYTES + 8]
        self._number = atomic_words(self._arena._engine, memory, self._address, signed=True)

    def add(self, number: int = 1) -> int:
        """Add a number, 1 if none is given, in one step; return the sum.

        Raises:
            BusyError: Called from a signal handler that interrupted such a call
                (reference engine).
            OverflowError: ``number`` has more than 64 bits.
            StaleHandle: The counter was destroyed.
        """
        if self._words[self._tag_at] & IDENTITY != self._tag:
            self._check()
        return self._number.add(0, number)

    def exchange(self, expected: int, number: int) -> bool:
        """Store ``number`` if ``expected`` is there, in one step; return whether it was.

        Raises:
            BusyError: As :meth:`add`, and so the rest.
        """
        self._check()
        return self._number.compare_exchange(0, expected, number)

    @property
    def value(self) -> int:
        """The number now; stale as soon as it is read. To store one is one step, too."""
        self._check()
        return self._number.load(0)

    @value.setter
    def value(self, number: int) -> None:
        self._check()
        self._number.store(0, number)

    def __repr__(self) -> str:
        state = self._number.load(0) if self._is_good() else "destroyed"
        return f"<{type(self).__name__}({state})>"
