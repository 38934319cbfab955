"""Objects as records: the same as through pickle, and damage that is found."""

from __future__ import annotations

import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipcmap import Arena, CorruptError, Queue
from ipcmap.codec import PickleCodec

pytestmark = pytest.mark.usefixtures("ring_type")  # on both engines


class Text(str):
    """A subclass, which only pickle can bring back."""

    __slots__ = ()


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.characters(categories=["Cs"]) | st.text(max_size=3).map(Text)
)  # fmt: skip
KEYS = st.text(max_size=3) | st.integers() | st.floats() | st.tuples(st.text(max_size=2))
MEMBERS = st.text(max_size=3) | st.integers() | st.floats(allow_nan=False)  # NaN has no order
PLAIN = st.recursive(
    LEAVES,
    lambda part: (
        st.lists(part, max_size=6)
        | st.tuples(part, part)
        | st.dictionaries(KEYS, part, max_size=6)
        | st.lists(part, min_size=1, max_size=1).map(lambda one: (one, one, one[0], one[0]))
        | st.sets(MEMBERS, max_size=3)
    ),
    max_leaves=40,
)

# A record of each kind of the short form, and what it is.
SHORT: list[tuple[bytes, Any]] = [
    (b"bab\0", b"ab\0"),
    (b"sa\xed\xa0\x80", "a\ud800"),
    (b"i" + struct.pack("<q", -7), -7),
    (b"f" + struct.pack("<d", 2.5), 2.5),
    (b"N", None),
    (b"T", True),
    (b"F", False),
    (b"t\0\0\0\0", ()),
    (b"l\2\0\0\0NT", [None, True]),
    (b"d\1\0\0\0s\1\0\0\0kb\2\0\0\0ab", {"k": b"ab"}),
    (b"t\3\0\0\0l\1\0\0\0Nr\1s\2\0\0\0xy", ([None], [None], "xy")),
]

DAMAGED = [
    b"",
    b"{}",
    b"null",
    b"Nothing",
    b"i123",
    b"f12345678more",
    b"s\xff",
    b"true",
    b"t\xff\xff\xff\xff",
    b"t\1\0\0\0",
    b"t\1\0\0\0r\0",
    b"t\1\0\0\0r\7",
    b"l\1\0\0\0s\1\0\0\0\xff",
    b"l\1\0\0\0z",
    b"d\1\0\0\0l\0\0\0\0N",
    b"l\0\0\0\0l\0\0\0\0",
    b"l\1\0\0\0" * 17 + b"N",
    b"l\x41\0\0\0" + b"s\0\0\0\0" * 65,
    b"o",
    b"o" + bytes(7) + struct.pack("<II", 1, 0),
    b"o" + bytes(7) + struct.pack("<II", 0, 9),
    b"o" + bytes(7) + struct.pack("<IIQ", 1, 0, 1 << 60),
]


def through_pickle(obj: Any) -> bytes:
    """Return what pickle makes of an object that has been through it: its shape to the last bit."""
    return pickle.dumps(pickle.loads(pickle.dumps(obj, 5)), 5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(obj=PLAIN)
def test_an_object_is_what_it_would_be_through_pickle(obj: Any, objects: Queue[Any]) -> None:
    """Values, types, order, and which parts of it are one object."""
    objects.put(obj)
    objects.put_many([obj])
    assert pickle.dumps(objects.get(timeout=0), 5) == through_pickle(obj)
    assert pickle.dumps(objects.get_many()[0], 5) == through_pickle(obj)


@pytest.fixture
def objects(arena: Arena) -> Queue[Any]:
    """A queue of the engine."""
    return Queue(arena=arena)


@pytest.mark.parametrize(("record", "obj"), SHORT, ids=repr)
def test_a_record_of_the_short_form_is_read(record: bytes, obj: Any, objects: Queue[Any]) -> None:
    """On both engines, whichever has written it."""
    objects._ring.put(record)
    assert PickleCodec().loads(record) == obj
    assert objects.get(timeout=0) == obj


def test_what_is_shared_stays_shared(objects: Queue[Any]) -> None:
    """Also a list that was read before it occurs again."""
    shared, text = [1], "a text of its own"
    objects.put(([shared], {"k": shared}, text, [text]))
    (first,), keyed, one, (two,) = objects.get(timeout=0)
    first.append(2)
    assert keyed["k"] is first
    assert one is two


def test_what_contains_itself_comes_back_so(objects: Queue[Any]) -> None:
    """It is left to pickle."""
    loop: list[Any] = [1]
    loop.append({"loop": (loop,)})
    objects.put(loop)
    found = objects.get(timeout=0)
    assert found[1]["loop"][0] is found


@pytest.mark.parametrize("count", [63, 64, 65, 1000])
def test_many_parts_and_large_ones(count: int, objects: Queue[Any]) -> None:
    """Beyond what the short form has, and what is small, there is pickle."""
    rows = [{"number": number, "text": str(number)} for number in range(count)]
    objects.put(rows)
    objects.put(["x" * 1000, "é" * count * 100, b"y" * count * 100])
    assert objects.get(timeout=0) == rows
    assert objects.get(timeout=0) == ["x" * 1000, "é" * count * 100, b"y" * count * 100]


@pytest.mark.parametrize("depth", [15, 16, 17, 100])
def test_deep_objects(depth: int, objects: Queue[Any]) -> None:
    """However deep pickle goes."""
    obj: Any = "bottom"
    for _ in range(depth):
        obj = [obj]
    objects.put(obj)
    assert objects.get(timeout=0) == obj


@pytest.mark.parametrize("record", DAMAGED, ids=repr)
def test_a_record_of_something_else_is_found_out(record: bytes, objects: Queue[Any]) -> None:
    """As one of another codec; with what it is like. The next is not touched."""
    objects._ring.put(record)
    objects.put(1)
    with pytest.raises(CorruptError, match=f"nbytes={len(record)}"):
        objects.get(timeout=0)
    assert objects.get(timeout=0) == 1


def test_a_queue_of_another_codec_says_so(arena: Arena) -> None:
    """Instead of a KeyError."""
    texts: Queue[Any] = Queue(codec="json", arena=arena)
    texts.put({"a": 1})
    again: Queue[Any] = Queue(arena=arena)
    again._ring = texts._ring
    again._attach()
    with pytest.raises(CorruptError, match="same codec"):
        again.get(timeout=0)


def test_damage_never_does_more_than_raise(objects: Queue[Any], chance: random.Random) -> None:
    """Bits turned and bytes cut off at random: an object comes out, or CorruptError."""
    seeds = [record for record, _ in SHORT]
    seeds.append(b"".join([b"l\7\0\0\0", *seeds[7:], b"r\3", b"f12345678", b"T"]))
    outcomes: dict[type, int] = {}
    for _ in range(4000):
        record = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            record[chance.randrange(len(record))] ^= 1 << chance.randrange(8)
        if record[0] in (0x80, ord("o")):
            continue  # a pickle may do what it says
        objects._ring.put(record[: chance.randrange(1, len(record) + 1)])
        try:
            found = type(objects.get(timeout=0))
        except CorruptError:
            found = CorruptError
        outcomes[found] = outcomes.get(found, 0) + 1
    assert outcomes[CorruptError] > 100
    assert len(outcomes) > 5


@pytest.mark.parametrize("ack", [False, True])
def test_what_the_object_raises_when_it_is_read_comes_out(ack: bool, arena: Arena) -> None:
    """Also an error that the queue knows itself."""
    objects: Queue[Any] = Queue(ack=ack, arena=arena)
    for error in (LookupError, ValueError):
        objects.put(Raising(error))
        with pytest.raises(error, match="as it was read"):
            objects.get(timeout=0)


class Raising:
    """Raises when it is read."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raised, (self.error,)


def raised(error: Callable[[str], Exception]) -> None:
    """Raise an error."""
    raise error("as it was read")
