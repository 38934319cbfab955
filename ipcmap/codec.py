"""Objects as records: how a queue turns what it is given into bytes, and back.

The default is pickle, with short cuts for what needs none: a record begins with a byte
that says what it is, and 0x80, with which every pickle begins, says that it is one.
The buffers inside an object (arrays, ``pickle.PickleBuffer``) are not copied into
its pickle but laid behind it (pickle protocol 5, PEP 574).

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

__all__ = ["Codec", "PickleCodec", "RawCodec", "find_codec"]

_ALIGNMENT = 64  # bytes, of each such buffer in its record
_PICKLE, _BUFFERS = 0x80, ord("o")
_COUNT = struct.Struct("<II")  # buffers, and bytes of the pickle
_LENGTH = struct.Struct("<Q")
_INT, _FLOAT = struct.Struct("<cq"), struct.Struct("<cd")


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

_LOADERS: dict[int, Callable[[bytes], Any]] = {
    ord("b"): lambda record: record[1:],
    ord("s"): lambda record: record[1:].decode("utf-8", "surrogatepass"),
    ord("i"): lambda record: _INT.unpack(record)[1],
    ord("f"): lambda record: _FLOAT.unpack(record)[1],
    ord("F"): lambda record: False,
    ord("T"): lambda record: True,
    ord("N"): lambda record: None,
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
        first = record[0]
        if first == _PICKLE:
            return pickle.loads(record)
        if first == _BUFFERS:
            pickled, buffers = _without_buffers(record)
            return pickle.loads(pickled, buffers=buffers)
        return _LOADERS[first](record)


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
    count, pickled = _COUNT.unpack_from(view, 8)
    at = 8 + _COUNT.size + count * _LENGTH.size
    lengths = [
        _LENGTH.unpack_from(view, 8 + _COUNT.size + 8 * number)[0] for number in range(count)
    ]
    pickle_begin, at = at, at + pickled
    buffers = []
    for length in lengths:
        at += -at % _ALIGNMENT
        buffers.append(bytearray(view[at : at + length]))
        at += length
    return view[pickle_begin : pickle_begin + pickled], buffers
