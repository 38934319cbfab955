"""What an executor and its workers say to each other: records, and objects in them.

    task      pickle of the arguments, number, function
    function  its pickle, 0, number: before the first task that names it
    answer    pickle of what came of it, number, kind
    notice    whatever goes with it, 0, kind

The numbers stand behind the pickle, which pickle does not mind: so a record is loaded
without a copy. They are read first: a worker which dies of the pickle is known to
have died of that task. To load a pickle is to run what it says.

In place of the pickle of plain objects stands their short form (codec.py), where the engine
writes it in C. It minds what stands behind it, and is short: that is a copy.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import struct
from collections.abc import Callable, Sequence
from concurrent.futures.process import _ExceptionWithTraceback, _RemoteTraceback
from typing import Any, Final

from ipcmap.codec import PickleCodec
from ipcmap.objects import fill

__all__ = [
    "CHECKED",
    "DIED",
    "KEYWORDS",
    "NUDGE",
    "RAISED",
    "RETURNED",
    "RETURNED_END",
    "TAIL",
    "UNLOADABLE",
    "UNPREPARED",
    "WORKER",
    "cause_from",
    "dump",
    "dump_function",
    "dump_plainly",
    "forms_of",
    "joined",
    "load",
    "numbers_of",
    "pickled_error",
    "put",
]

TAIL: Final = struct.Struct("<QQ")
KEYWORDS: Final = 1 << 63  # beside the number of a function: its arguments are (args, kwargs)
RETURNED, RAISED, UNLOADABLE = 0, 1, 2  # answers: the pickle of a result, of an exception, why not
UNPREPARED, DIED, NUDGE = 3, 4, 5  # notices: the initializer failed; a worker died; look again
CHECKED = 6  # notice: the answers that a worker had given by then have been taken
WORKER: Final = struct.Struct("<QQ")  # what goes with DIED and CHECKED: its index and pid
_CODEC = PickleCodec()
_TAILED = b"\x80o"  # how records begin that may have something behind them
RETURNED_END: Final = TAIL.pack(0, RETURNED)[-8:]  # how every result ends


def dump(obj: Any) -> bytes | Sequence[bytes | memoryview]:
    """Return the record of an object, or its parts; with cloudpickle where pickle cannot."""
    try:
        return dump_plainly(obj)
    except Exception as error:
        return _dump_by_value(obj, error)


def dump_plainly(obj: Any) -> bytes | Sequence[bytes | memoryview]:
    """Return the record of an object, or its parts, as pickle alone makes it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(obj, 5, buffer_callback=buffers.append)
    return _CODEC.dumps(obj) if buffers else pickled


def dump_function(function: Any) -> bytes:
    """Return the pickle of a function: by name, or by value with cloudpickle."""
    try:
        return pickle.dumps(function, 5)
    except Exception as error:
        return _dump_by_value(function, error)


def _dump_by_value(obj: Any, error: Exception) -> bytes:
    try:
        cloudpickle = importlib.import_module("cloudpickle")
    except ImportError:
        if "<locals>" in str(error) or "<lambda>" in str(error) or "local object" in str(error):
            error.add_note(
                "lambdas and functions that are defined in functions have no name to be found by: "
                "define it at the top of a module, or install ipcmap[cloudpickle]"
            )
        raise error from None
    pickled: bytes = cloudpickle.dumps(obj)
    return pickled


def load(record: bytes) -> Any:
    """Return the object of a record."""
    if record[0] == _TAILED[0]:
        return pickle.loads(record)
    return _CODEC.loads(record if record[0] in _TAILED else record[: -TAIL.size])


def forms_of(
    ring: Any, dump: Callable[[Any], Any] = dump
) -> tuple[Callable[[Any], Any], Callable[[bytes], Any]]:
    """Return ``dump`` and ``load`` for records of a ring: in C where it has them.

    ``dump`` makes a record of what has no short form there.
    """
    if not hasattr(ring, "_dump"):
        return dump, load
    read, tail = ring._load, -TAIL.size

    def load_short(record: bytes) -> Any:
        return load(record) if record[0] in _TAILED else read(_CODEC.loads, record[:tail])

    return functools.partial(ring._dump, dump), load_short


def numbers_of(record: bytes) -> tuple[int, int]:
    """Return the two numbers at the end of a record."""
    number, other = TAIL.unpack(record[-TAIL.size :])
    return number, other


def joined(body: bytes | Sequence[bytes | memoryview], tail: bytes) -> bytes:
    """Return a record in one piece."""
    return body + tail if isinstance(body, bytes) else b"".join((*body, tail))


def pickled_error(error: BaseException) -> bytes:
    """Return the record of an exception, which comes back with its traceback as its cause.

    One that cannot be pickled, or not be loaded again, comes as its text.
    """
    # The standard library's, whose annotations are wrong.
    told: Any = _ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[arg-type]
    try:
        pickled = pickle.dumps(told, 5)
        pickle.loads(pickled)
        return pickled
    except Exception:
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        try:
            text = str(error)
        except Exception:
            text = "whose text cannot be had"
        instead = RuntimeError(
            f"{name.removeprefix('builtins.')}: {text} (an exception that cannot be pickled; "
            "its traceback is the cause of this one)"
        )
        return pickle.dumps(_WithCause(instead, told.tb), 5)


class _WithCause:
    """An exception, to be loaded with a text as its cause."""

    def __init__(self, error: BaseException, text: str) -> None:
        self.error, self.text = error, text

    def __reduce__(self) -> tuple[Any, ...]:
        return cause_from, (self.error, self.text)


def cause_from(error: BaseException, text: str) -> BaseException:
    """Return an exception with the text of a remote traceback as its cause."""
    error.__cause__ = _RemoteTraceback(text)  # type: ignore[arg-type]
    return error


def put(ring: Any, body: bytes | Sequence[bytes | memoryview], tail: bytes) -> None:
    """Put a record; its parts are copied once."""
    if isinstance(body, bytes):
        ring.put(body + tail)
        return
    with ring.claim(sum(map(len, body)) + len(tail)) as view:
        fill(view, (*body, tail))
