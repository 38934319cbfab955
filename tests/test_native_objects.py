"""Plain objects in C: which they are, and that the reference engine reads the same."""

from __future__ import annotations

import gc
import pickle
import random
import sys
from typing import Any

import pytest
from hypothesis import given, settings

from ipcmap import CorruptError
from ipcmap._core import native
from ipcmap.codec import PickleCodec
from test_objects import PLAIN, SHORT, Text, through_pickle


def refuse(_: Any) -> None:
    """Stand where pickle does."""
    raise NotImplementedError


@pytest.mark.parametrize(("record", "obj"), SHORT, ids=repr)
def test_the_short_form_is_written_as_it_is_read(record: bytes, obj: Any) -> None:
    """Byte for byte, but for a text that has no UTF-8, and a list that is one object."""
    if obj != "a\ud800":
        shared = ([None],) * 2 + ("xy",) if record.startswith(b"t\3") else obj
        assert native.dump(refuse, shared) == record
    assert native.load(refuse, record) == obj


@pytest.mark.parametrize(
    "obj", [2**63, {1}, frozenset(), Text("a"), range(3), 1j, bytearray(), ["\ud800"], [[2**70]]],
    ids=repr,
)  # fmt: skip
def test_what_is_not_plain_is_left_to_pickle(obj: Any) -> None:
    """Whole, however little of it is not."""
    with pytest.raises(NotImplementedError):
        native.dump(refuse, obj)


@settings(deadline=None)
@given(obj=PLAIN)
def test_both_engines_read_the_same(obj: Any) -> None:
    """To the last bit, and with the same parts shared."""
    codec = PickleCodec()
    record = native.dump(codec.dumps, obj)
    found, by_reference = native.load(codec.loads, record), codec.loads(record)
    assert pickle.dumps(found, 5) == pickle.dumps(by_reference, 5) == through_pickle(obj)


def test_both_engines_find_the_same_damage(chance: random.Random) -> None:
    """What C leaves, the reference engine refuses; what C reads, it reads alike."""
    for _ in range(20_000):
        record = bytearray(chance.choice([b"l\3\0\0\0", b"d\1\0\0\0", b"t\2\0\0\0"]))
        for _ in range(chance.randrange(1, 12)):
            record += chance.choice(
                [b"N", b"T", b"r\0", b"r\1", b"r\2", b"s\1\0\0\0a", b"i12345678", b"f\0\0\0\0\0\0\0@",
                 b"l\0\0\0\0", b"l\2\0\0\0", b"t\1\0\0\0", b"d\1\0\0\0", b"b\2\0\0\0", b"\xff"]
            )  # fmt: skip
        data = bytes(record)
        try:
            expected = PickleCodec().loads(data)
        except CorruptError:
            with pytest.raises(NotImplementedError):
                native.load(refuse, data)
        else:
            assert pickle.dumps(native.load(refuse, data)) == pickle.dumps(expected)


def test_nothing_is_left_of_an_object_or_a_damaged_record() -> None:
    """References are given back, whatever comes of a record."""
    text, codec = "x" * 100, PickleCodec()
    objects = [(text, [text, {text: text}]), [[text], {1, 2}], {text: (2**70, text)}]
    damaged = [b"l\3\0\0\0s\1\0\0\0ar\0", b"d\1\0\0\0l\0\0\0\0N", b"t\2\0\0\0l\1\0\0\0b\1\0\0\0xz"]

    def rounds(number: int) -> None:
        for _ in range(number):
            for obj in objects:
                native.load(codec.loads, native.dump(codec.dumps, obj))
            for record in damaged:
                with pytest.raises(NotImplementedError):
                    native.load(refuse, record)

    rounds(10)
    gc.collect()
    references, blocks = sys.getrefcount(text), sys.getallocatedblocks()
    rounds(1000)
    gc.collect()
    assert sys.getrefcount(text) == references
    assert sys.getallocatedblocks() - blocks < 500


@pytest.mark.parametrize("function", [native.dump, native.load])
def test_other_arguments_are_refused(function: Any) -> None:
    """With their number."""
    with pytest.raises(TypeError, match="3 given"):
        function(1, 2, 3)
