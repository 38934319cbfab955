"""Values and arrays of ctypes in shared memory, with a lock or without.

The memory of each is a block of an arena. The ctypes objects are of a subclass of what was
asked for, which adds one thing: a pickle of it names the block, so that whoever loads it has
the same memory and not a copy. Slices, views and arrays over an object keep it alive, and so its block.

A store of one aligned number is seen whole by every other process; ``value += 1`` is a load
and a store, between which others may come: hold the lock, or take a :class:`ipcmap.Counter`.
What a killed process had half written stays half written; its lock goes to the next who
asks, and says so (``get_lock().recovered``).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

from ipcmap._core.layout import Kind
from ipcmap.arena import Arena
from ipcmap.structure import Structure
from ipcmap.sync import RLock

__all__ = [
    "Array",
    "RawArray",
    "RawValue",
    "Synchronized",
    "SynchronizedArray",
    "SynchronizedBase",
    "SynchronizedString",
    "Value",
    "copy",
    "synchronized",
]

CType: TypeAlias = Any  # a class of ctypes
CObject: TypeAlias = Any  # an instance of one

_TYPES: dict[str, CType] = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


class _Memory(Structure):
    """The block of a ctypes object."""

    _kind = Kind.VALUE

    __slots__ = ()

    def __init__(self, nbytes: int, arena: Arena | None) -> None:
        self._make(arena, nbytes, 0)
        ctypes.memset(self._address, 0, nbytes)

    def _attach(self) -> None:
        pass


# Without a lock


def RawValue(typecode_or_type: str | CType, *args: Any, arena: Arena | None = None) -> CObject:  # noqa: N802
    """Return a ctypes object in shared memory, without a lock.

    Args:
        typecode_or_type: A class of ctypes, or a letter as the module ``array`` has them.
        args: What the class is called with; nothing = zero.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        TypeError: It is neither a class of ctypes nor such a letter.

    Example:
        >>> import os
        >>> level = RawValue("d", 0.5)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     level.value = 2.5
        ...     os._exit(0)
        >>> _ = os.waitpid(pid, 0)
        >>> level.value
        2.5
    """
    made = _new(_type_of(typecode_or_type), arena)
    made.__init__(*args)
    return made


def RawArray(  # noqa: N802
    typecode_or_type: str | CType,
    size_or_initializer: int | Sequence[Any],
    *,
    arena: Arena | None = None,
) -> CObject:
    """Return a ctypes array in shared memory, without a lock.

    Args:
        typecode_or_type: The class of an item, or its letter.
        size_or_initializer: How many items, all zero; or the items.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        TypeError: The first is neither a class of ctypes nor such a letter.

    Example:
        >>> numbers = RawArray("i", [1, 2, 3])
        >>> numbers[1:]
        [2, 3]
    """
    type_ = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new(type_ * size_or_initializer, arena)
    made = _new(type_ * len(size_or_initializer), arena)
    made.__init__(*size_or_initializer)
    return made


def copy(obj: CObject) -> CObject:
    """Return a ctypes object in shared memory that is equal to ``obj``, in the default arena."""
    made = _new(_plain(type(obj)), None)
    ctypes.memmove(ctypes.addressof(made), ctypes.addressof(obj), ctypes.sizeof(obj))
    return made


# With one


def Value(  # noqa: N802
    typecode_or_type: str | CType, *args: Any, lock: Any = True, arena: Arena | None = None
) -> Any:
    """Return a ctypes object in shared memory, with a lock around every access.

    Args:
        typecode_or_type: A class of ctypes, or a letter as the module ``array`` has them.
        args: What the class is called with; nothing = zero.
        lock: ``True`` = an :class:`RLock` of its own; a lock = that; ``False`` = none, and
            what :func:`RawValue` returns.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        AttributeError: ``lock`` is none.
        TypeError: It is neither a class of ctypes nor such a letter.

    Example:
        >>> total = Value("i", 5)
        >>> with total.get_lock():
        ...     total.value += 1
        >>> total.value
        6
    """
    return _locked(RawValue(typecode_or_type, *args, arena=arena), lock, arena)


def Array(  # noqa: N802
    typecode_or_type: str | CType,
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Any = True,
    arena: Arena | None = None,
) -> Any:
    """Return a ctypes array in shared memory, with a lock around every access.

    Args:
        typecode_or_type: The class of an item, or its letter.
        size_or_initializer: How many items, all zero; or the items.
        lock: ``True`` = an :class:`RLock` of its own; a lock = that; ``False`` = none, and
            what :func:`RawArray` returns.
        arena: Where it lives; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        AttributeError: ``lock`` is none.
        TypeError: The first is neither a class of ctypes nor such a letter.

    Example:
        >>> numbers = Array("d", 3)
        >>> numbers[0] = 1.5
        >>> numbers[:]
        [1.5, 0.0, 0.0]
        >>> memoryview(numbers.get_obj()).nbytes
        24
    """
    return _locked(RawArray(typecode_or_type, size_or_initializer, arena=arena), lock, arena)


def _locked(obj: CObject, lock: Any, arena: Arena | None) -> Any:
    if lock is False:
        return obj
    if lock is True or lock is None:
        lock = RLock(arena=arena)
    if not hasattr(lock, "acquire"):
        raise AttributeError(
            f"lock must have a method 'acquire': lock={lock!r}; pass a lock, or True for one"
        )
    return synchronized(obj, lock)


def synchronized(obj: CObject, lock: Any = None) -> Any:
    """Return a ctypes object with a lock around every access.

    Args:
        obj: What :func:`ipcmap.RawValue`, :func:`ipcmap.RawArray` or :func:`copy` returned.
        lock: ``None`` = an :class:`ipcmap.RLock` of its own.

    Raises:
        TypeError: It has a lock already.
    """
    if isinstance(obj, SynchronizedBase):
        raise TypeError(f"object has a lock already: {obj!r}; pass its get_obj()")
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock)
    if isinstance(obj, ctypes.Array):
        kind = SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray
        return kind(obj, lock)
    type_ = _plain(type(obj))
    found = _with_fields.get(type_)
    if found is None:
        owners = [owner for owner in reversed(type_.__mro__) if "_fields_" in vars(owner)]
        names = [field[0] for owner in owners for field in vars(owner)["_fields_"]]
        found = type(
            f"Synchronized{type_.__name__}",
            (SynchronizedBase,),
            {name: _guarded(name) for name in names},
        )
        _with_fields[type_] = found
    return found(obj, lock)


def _guarded(name: str) -> property:
    """Return a property that reads and writes an attribute of the object under its lock."""

    def read(self: SynchronizedBase) -> Any:
        with self._lock:
            return getattr(self._obj, name)

    def write(self: SynchronizedBase, new: Any) -> None:
        with self._lock:
            setattr(self._obj, name, new)

    return property(read, write, doc=f"The ``{name}`` of the object, under its lock.")


class SynchronizedBase:
    """A ctypes object and its lock; as a context manager, the lock.

    It goes by fork, and by pickle to processes that have its arena.
    """

    def __init__(self, obj: CObject, lock: Any = None) -> None:
        self._obj = obj
        self._lock = RLock() if lock is None else lock
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._lock.__exit__(*error)

    def __reduce__(self) -> tuple[Any, ...]:
        return synchronized, (self._obj, self._lock)

    def get_obj(self) -> CObject:
        """Return the ctypes object, without a lock around it; it has a buffer."""
        return self._obj

    def get_lock(self) -> Any:
        """Return the lock."""
        return self._lock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class Synchronized(SynchronizedBase):
    """A number or character and its lock: what :func:`ipcmap.Value` returns."""

    value = _guarded("value")


class SynchronizedArray(SynchronizedBase):
    """An array and its lock: what :func:`ipcmap.Array` returns."""

    def __len__(self) -> int:
        return len(self._obj)

    def __getitem__(self, index: Any) -> Any:
        with self._lock:
            return self._obj[index]

    def __setitem__(self, index: Any, new: Any) -> None:
        with self._lock:
            self._obj[index] = new


class SynchronizedString(SynchronizedArray):
    """An array of characters and its lock: what :func:`ipcmap.Array` returns for ``"c"``."""

    value = _guarded("value")
    raw = _guarded("raw")


_with_fields: weakref.WeakKeyDictionary[CType, type[SynchronizedBase]] = weakref.WeakKeyDictionary()


# Classes of ctypes whose pickle is a handle

_shared_types: weakref.WeakKeyDictionary[CType, CType] = weakref.WeakKeyDictionary()


def _type_of(typecode_or_type: str | CType) -> CType:
    if isinstance(typecode_or_type, str):
        found = _TYPES.get(typecode_or_type)
        if found is None:
            raise TypeError(
                f"letter names no type: {typecode_or_type!r}; it must be one of "
                f"{', '.join(_TYPES)}, or pass a class of ctypes"
            )
        return found
    return typecode_or_type


def _new(type_: CType, arena: Arena | None) -> CObject:
    return _over(type_, _Memory(ctypes.sizeof(type_), arena))


def _over(type_: CType, memory: _Memory) -> CObject:
    """Return an object of such a type that lies in this memory, and keeps it."""
    found = _shared_types.get(type_)
    if found is None:
        extra = {"__reduce__": _reduce, "__module__": type_.__module__}
        if issubclass(type_, ctypes._SimpleCData):
            extra["__repr__"] = _repr
        found = type(type_)(type_.__name__, (type_,), extra)
        _shared_types[type_] = found
    made = found.from_buffer(memory._memory)
    made._memory = memory
    return made


def _plain(type_: CType) -> CType:
    """Return what was asked for of such a type."""
    return type_.__base__ if vars(type_).get("__reduce__") is _reduce else type_


def _repr(self: CObject) -> str:
    return f"{type(self).__name__}({self.value!r})"


def _reduce(self: CObject) -> tuple[Any, ...]:
    """Pickle an object as a handle of its memory."""
    type_, lengths = _plain(type(self)), []
    while issubclass(type_, ctypes.Array) and type_.__base__ is ctypes.Array:
        lengths.append(type_._length_)  # an array's class has no name that pickle finds
        type_ = type_._type_
    return _restored, (type_, lengths, self._memory)


def _restored(type_: CType, lengths: list[int], memory: _Memory) -> CObject:
    for length in reversed(lengths):
        type_ = type_ * length
    return _over(type_, memory)
