"""What is sent: numbered records or objects; and whether they came as they were sent."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ipcmap.bench.place import Wrong

__all__ = ["OBJECTS", "Goods", "numbered", "records_of"]

_head = struct.Struct("<QQ")  # producer, number
_MARK = (1 << 62) - 1  # in place of the number, where it is timed

Numbers = tuple[int, int]
"""A producer, and the how manieth it sent."""

_NOBODY = -1, -1


@dataclass(frozen=True)
class Goods:
    """One kind of what is sent.

    Attributes:
        make: Makes the one with a producer's number and a number of its own.
        numbers: Tells both of what came, or that it has none.
        nbytes: The length of one; of an object, pickled.
    """

    make: Callable[[int, int], Any]
    numbers: Callable[[Any], Numbers]
    nbytes: int

    def timed(self, producer: int) -> Any:
        """Return what a producer sends over and over while the clock runs."""
        return self.make(producer, _MARK)

    def look_at(self, received: Sequence[Any], producers: int, first: int) -> None:
        """See that each is the next one of its producer.

        Raises:
            Wrong: It is not.
        """
        expected = [first] * producers
        for one in received:
            producer, number = self.numbers(one)
            if not 0 <= producer < producers or number != expected[producer]:
                raise Wrong(
                    f"a record is not the one that was sent: producer={producer}, number={number}, "
                    f"expected={expected[producer] if 0 <= producer < producers else 'any'}"
                )
            if one != self.make(producer, number):
                raise Wrong(f"a record came changed: producer={producer}, number={number}")
            expected[producer] += 1

    def look_at_last(self, last: Any) -> None:
        """See that the last of those that were timed is whole; of some its length is all there is.

        Raises:
            Wrong: It is not.
        """
        if isinstance(last, int):
            good = last == self.nbytes
        else:
            producer, number = self.numbers(last)
            good = number == _MARK and last == self.timed(producer)
        if not good:
            raise Wrong("the last of the timed records came changed")


def numbered(producer: int, number: int, nbytes: int) -> bytes:
    """Return a record of bytes that begins with both numbers."""
    return _head.pack(producer, number) + b"\xa5" * (nbytes - _head.size)


def _numbers_of_bytes(record: Any) -> Numbers:
    if not isinstance(record, bytes) or len(record) < _head.size:
        return _NOBODY
    producer, number = _head.unpack_from(record)
    return producer, number


def records_of(nbytes: int) -> Goods:
    """Return records of bytes."""
    return Goods(partial(numbered, nbytes=nbytes), _numbers_of_bytes, nbytes)


def _object(producer: int, number: int) -> tuple[int, float, str, dict[str, int | str]]:
    return number, 2.5, "some text", {"producer": producer, "kind": "task"}


def _numbers_of_object(found: Any) -> Numbers:
    try:
        return int(found[3]["producer"]), int(found[0])
    except (TypeError, LookupError, ValueError):
        return _NOBODY


OBJECTS = Goods(_object, _numbers_of_object, len(pickle.dumps(_object(0, 1 << 16))))
