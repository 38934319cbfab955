"""Objects as records: how a queue turns what it is given into bytes, and back.

The default is pickle, with short cuts for what needs none: a record begins with a byte
that says what it is, and 0x80, with which every pickle begins, says that it is one.
Tuples, lists and dicts of plain objects have a short form as well, which the native
engine writes (native_objects.c) and both engines read; this one finds pickle as fast.
The buffers inside an object (arrays, ``pickle.PickleBuffer``) are not copied into
its pickle but laid behind it (pickle protocol 5, PEP 574).

The short form. After the byte of its kind an item has::

    i f       8 bytes: the number
    s b       a count of 4 bytes, and so many: UTF-8, or bytes
    t l d     a count of 4 bytes, and so many items, or pairs of items
    r         a byte: the so-manieth text, bytes or container of this record, once more
    N T F     nothing: None, True, False

A text or bytes alone have no count. What occurs twice in an object is one object when it
is read, as in pickle.

To load a pickle is to run what it says. From children that one would rather not trust,
take another codec: ``"raw"``, ``"json"``, or any object with ``dumps`` and ``loads``.
"""

from __future__ import annotations

import importlib
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from types import ModuleType
from typing import Any, Protocol

from ipcmap.errors import CorruptError

__all__ = ["Codec", "PickleCodec", "RawCodec", "find_codec"]

_ALIGNMENT = 64  # bytes, of each such buffer in its record
_PICKLE, _BUFFERS = 0x80, ord("o")
_COUNT = struct.Struct("<II")  # buffers, and bytes of the pickle
_LENGTH = struct.Struct("<Q")
_INT, _FLOAT = struct.Struct("<cq"), struct.Struct("<cd")
_NUMBERS = {ord("i"): struct.Struct("<q"), ord("f"): struct.Struct("<d")}
_CONSTANTS = {ord("N"): None, ord("T"): True, ord("F"): False}
_ITEMS = struct.Struct("<I")
_DEEPEST, _SHARED_MOST = 16, 64  # as native_objects.c writes


class Codec(Protocol):
    """What turns objects into records: json, msgspec.msgpack.Encoder and the like have it."""

    def dumps(self, obj: Any, /) -> bytes | Sequence[bytes | memoryview]:
        """Return a record, or its parts."""

    def loads(self, record: bytes, /) -> Any:
        """Return the object of a record."""


def _dump_str(obj: str) -> bytes:
    return b"s" + obj.encode("utf-8", "surrogatepass")


def _dump_int(obj: int) -> bytes:
    try:
        return _INT.pack(b"i", obj)
    except struct.error:
        return pickle.dumps(obj, 5)


def _dump_float(obj: float) -> bytes:
    return _FLOAT.pack(b"f", obj)


_DUMPERS: dict[type, Callable[[Any], bytes]] = {
    bytes: b"b".__add__,
    str: _dump_str,
    int: _dump_int,
    float: _dump_float,
    bool: {False: b"F", True: b"T"}.__getitem__,
    type(None): {None: b"N"}.__getitem__,
}


class _Reading:
    """The short form of an object, from bytes that may say anything."""

    def __init__(self, record: bytes) -> None:
        self._record, self._at = record, 0
        self._shared: list[Any] = []

    def whole(self) -> Any:
        """Return the object that the record is."""
        obj = self._item(0)
        if self._at != len(self._record):
            raise ValueError("more than one object")
        return obj

    def _take(self, nbytes: int) -> bytes:
        begin, self._at = self._at, self._at + nbytes
        if self._at > len(self._record):
            raise ValueError("it ends too early")
        return self._record[begin : self._at]

    def _item(self, depth: int) -> Any:
        kind = self._take(1)[0]
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return _NUMBERS[kind].unpack(self._take(8))[0]
        if kind == ord("r"):
            known = self._shared[self._take(1)[0]]
            if known is _Reading:
                raise ValueError("it contains itself")
            return known
        if len(self._shared) == _SHARED_MOST or depth == _DEEPEST:
            raise ValueError("it has more parts, or deeper ones, than are written")
        number = len(self._shared)
        self._shared.append(_Reading)  # not complete
        obj = self._shared[number] = self._parts(kind, _ITEMS.unpack(self._take(4))[0], depth + 1)
        return obj

    def _parts(self, kind: int, count: int, depth: int) -> Any:
        if count > len(self._record) - self._at:
            raise ValueError("it ends too early")
        if kind == ord("s"):
            return self._take(count).decode()
        if kind == ord("b"):
            return self._take(count)
        if kind == ord("d"):
            return {self._item(depth): self._item(depth) for _ in range(count)}
        if kind not in (ord("t"), ord("l")):
            raise ValueError(f"there is no kind {bytes([kind])!r}")
        items = [self._item(depth) for _ in range(count)]
        return tuple(items) if kind == ord("t") else items


def _load_short(record: bytes) -> Any:
    return _Reading(record).whole()


_LOADERS: dict[int, Callable[[bytes], Any]] = {
    ord("b"): lambda record: record[1:],
    ord("s"): lambda record: record[1:].decode("utf-8", "surrogatepass"),
    ord("i"): lambda record: _INT.unpack(record)[1],
    ord("f"): lambda record: _FLOAT.unpack(record)[1],
    **dict.fromkeys(b"FTNtld", _load_short),
}


class _Pickler(pickle.Pickler):
    reducer_override: Callable[[Any], Any]


class PickleCodec:
    """Pickle of protocol 5, the default.

    Args:
        reducer_override: Asked for each object that is no plain builtin, as
            ``pickle.Pickler.reducer_override`` is; returns ``NotImplemented``
            for what is to be pickled as ever.

    Example:
        >>> codec = PickleCodec()
        >>> codec.loads(codec.dumps({"k": 1.5}))
        {'k': 1.5}
    """

    def __init__(self, reducer_override: Callable[[Any], Any] | None = None) -> None:
        self._reducer_override = reducer_override

    def __reduce__(self) -> tuple[Any, ...]:
        return PickleCodec, (self._reducer_override,)

    def dumps(self, obj: Any, /) -> bytes | Sequence[bytes | memoryview]:
        """Return the record of an object, or its parts where it has buffers."""
        dump = _DUMPERS.get(type(obj))
        if dump is not None:
            return dump(obj)
        buffers: list[pickle.PickleBuffer] = []
        if self._reducer_override is None:
            pickled = pickle.dumps(obj, 5, buffer_callback=buffers.append)
        else:
            file = BytesIO()
            pickler = _Pickler(file, 5, buffer_callback=buffers.append)
            pickler.reducer_override = self._reducer_override
            pickler.dump(obj)
            pickled = file.getvalue()
        if not buffers:
            return pickled
        return _with_buffers(pickled, [buffer.raw() for buffer in buffers])

    def loads(self, record: bytes, /) -> Any:
        """Return the object of a record; its buffers are writable copies."""
        try:
            first = record[0]
            if first not in (_PICKLE, _BUFFERS):
                return _LOADERS[first](record)
            pickled, buffers = _without_buffers(record) if first == _BUFFERS else (record, None)
        except (ValueError, LookupError, TypeError, struct.error) as error:
            why = error if isinstance(error, ValueError) else "it begins or goes on as none does"
            raise CorruptError(
                f"record is no object of the pickle codec: {why}; nbytes={len(record)}, "
                f"begin={bytes(record[:16])!r}; put and get with the same codec, or make another queue"
            ) from None
        return pickle.loads(pickled, buffers=buffers)


class RawCodec:
    """No codec: bytes in, bytes out."""

    def dumps(self, obj: Any, /) -> bytes:
        """Return bytes as they are; ``TypeError`` for what has no buffer."""
        return obj if type(obj) is bytes else bytes(memoryview(obj))

    def loads(self, record: bytes, /) -> bytes:
        """Return the record."""
        return record


class _Module:
    """A module, or any object, with ``dumps`` and ``loads``; what it dumps may be a text."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._module, ModuleType):
            return _imported, (self._module.__name__,)
        return _Module, (self._module,)

    def dumps(self, obj: Any, /) -> bytes | Sequence[bytes | memoryview]:
        record = self._module.dumps(obj)
        if isinstance(record, (list, tuple)):
            return [memoryview(part).cast("B") for part in record]
        return record.encode() if isinstance(record, str) else bytes(memoryview(record))

    def loads(self, record: bytes, /) -> Any:
        return self._module.loads(record)


def _imported(name: str) -> Codec:
    return _Module(importlib.import_module(name))


def find_codec(codec: Any = None) -> Codec:
    """Return the codec that an argument names.

    Args:
        codec: ``None`` or ``"pickle"``, ``"raw"``, ``"json"``, or an object that has
            ``dumps`` and ``loads``, be it a module.

    Raises:
        TypeError: It is none of these.
        ValueError: It is another name.
    """
    if codec is None:
        return PickleCodec()
    if isinstance(codec, str):
        if codec not in _NAMED:
            raise ValueError(f"codec must be one of {', '.join(_NAMED)}: codec={codec!r}")
        return _NAMED[codec]()
    if isinstance(codec, (PickleCodec, RawCodec, _Module)):
        return codec
    if not (callable(getattr(codec, "dumps", None)) and callable(getattr(codec, "loads", None))):
        raise TypeError(
            f"codec must have dumps and loads: codec={codec!r}; name one of {', '.join(_NAMED)}, "
            "or pass an object that has them (the modules json, pickle, marshal, ...)"
        )
    return _Module(codec)


_NAMED: dict[str, Callable[[], Codec]] = {
    "pickle": PickleCodec,
    "raw": RawCodec,
    "json": lambda: _Module(json),
}


def _with_buffers(pickled: bytes, buffers: list[memoryview]) -> list[bytes | memoryview]:
    """Return the parts of a record: a head, the pickle, and each buffer where it is aligned."""
    lengths = b"".join(_LENGTH.pack(view.nbytes) for view in buffers)
    head = b"o" + bytes(7) + _COUNT.pack(len(buffers), len(pickled)) + lengths
    parts: list[bytes | memoryview] = [head, pickled]
    at = len(head) + len(pickled)
    for view in buffers:
        parts += [bytes(-at % _ALIGNMENT), view]
        at += -at % _ALIGNMENT + view.nbytes
    return parts


def _without_buffers(record: bytes) -> tuple[memoryview, list[bytearray]]:
    """Return the pickle of such a record, and writable copies of the buffers."""
    view = memoryview(record)
    count, nbytes = _COUNT.unpack_from(view, 8)
    at = 8 + _COUNT.size + count * _LENGTH.size
    if at + nbytes > len(view):
        raise ValueError("it ends too early")
    lengths = [number for (number,) in _LENGTH.iter_unpack(view[8 + _COUNT.size : at])]
    pickled, at = view[at : at + nbytes], at + nbytes
    buffers = []
    for length in lengths:
        at += -at % _ALIGNMENT
        if at + length > len(view):
            raise ValueError("it ends too early")
        buffers.append(bytearray(view[at : at + length]))
        at += length
    return pickled, buffers
