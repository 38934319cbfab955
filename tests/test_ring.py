"""The interface of a ring: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import array
import contextlib
import gc
import os
import queue
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from children import Fork
from ipcmap import Arena, ArenaFull, ClosedError, RecordTooLarge, Ring, RingStatistics
from rings import drained, fill

MIB = 1 << 20


def puts(ring: Ring, before: bytes) -> list[Callable[[bytes], None]]:
    """Return the two ways to put a record: alone, and behind another."""
    return [ring.put, lambda data: ring.put_many([before, data])]


# What a record can be


BUFFERS: dict[str, tuple[Any, bytes]] = {
    "bytes": (b"abc", b"abc"),
    "empty bytes": (b"", b""),
    "bytearray": (bytearray(b"abc"), b"abc"),
    "memoryview": (memoryview(b"abcdef")[2:4], b"cd"),
    "memoryview of doubles": (memoryview(array.array("d", [1.5])), struct.pack("d", 1.5)),
    "memoryview of rows": (memoryview(bytes(range(6))).cast("B", (2, 3)), bytes(range(6))),
    "array": (array.array("i", [1, -2]), struct.pack("2i", 1, -2)),
    "empty array": (array.array("q"), b""),
    "ndarray": (np.arange(6, dtype="u1").reshape(2, 3), bytes(range(6))),
    "scalar array": (np.array(1.5), struct.pack("d", 1.5)),
    "numpy scalar": (np.float64(1.5), struct.pack("d", 1.5)),
    "array without rows": (np.zeros((0, 3)), b""),
    "half precision": (np.ones(2, "f2"), np.ones(2, "f2").tobytes()),
    "complex": (np.ones(2, complex), np.ones(2, complex).tobytes()),
    "booleans": (np.array([True, False]), b"\1\0"),
    "other byte order": (np.array([1, 2], ">i4"), struct.pack(">2i", 1, 2)),
    "scalar of other byte order": (np.array(7, ">i8"), struct.pack(">q", 7)),
    "structured": (np.array([(1, 2.5)], [("OO", "<i4"), ("b", ">f8")]), struct.pack("<i", 1) + struct.pack(">d", 2.5)),
    "text array": (np.array(["ab"]), "ab".encode("utf-32-le")),
}  # fmt: skip


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("way", ["put", "put_many"])
def test_a_record_is_the_bytes_of_any_buffer(name: str, way: str, ring: Ring) -> None:
    """Whatever their format and shape, they come out as ``tobytes`` says."""
    data, expected = BUFFERS[name]
    if way == "put":
        ring.put(data)
    else:
        ring.put_many([data, b"next"])

    received = ring.get(0)

    assert received == expected
    assert type(received) is bytes


REFUSED: dict[str, tuple[Any, str]] = {
    "str": ("text", r"type=str; encode it \(str\.encode"),
    "int": (5, "type=int; encode it"),
    "None": (None, "type=NoneType; encode it"),
    "list": ([b"a"], "type=list; encode it"),
    "every second": (np.arange(10)[::2], r"strides=\(16,\); pass a copy \(numpy\.ascontig"),
    "column by column": (np.asfortranarray(np.ones((2, 3))), "must be contiguous.*pass a copy"),
    "reversed": (memoryview(b"abc")[::-1], r"strides=\(-1,\); pass a copy"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), r"type=ndarray; encode it.*ndarray\.view"),
    "released": (None, "type=memoryview; encode it"),
    "objects": (np.array([None]), r"no Python objects.*pickle\.dumps"),
    "objects in rows": (np.zeros(1, [("a", "i8"), ("b", "O")]), r"no Python objects.*pickle"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_contiguous_buffer_is_refused_with_the_way_out(name: str, ring: Ring) -> None:
    """An error names the type or the shape, and nothing of a batch goes in."""
    data, message = REFUSED[name]
    if name == "released":
        data = memoryview(b"abc")
        data.release()

    with pytest.raises(TypeError, match=message):
        ring.put(data)
    with pytest.raises(TypeError, match=message):
        ring.put_many([b"before", data])

    assert len(ring) == 0


@pytest.mark.parametrize("batch", [False, True])
def test_records_of_every_length_come_out_whole(
    batch: bool, ring: Ring, arena: Arena, chance: random.Random
) -> None:
    """From nothing to many times the ring, on both sides of where blocks begin."""
    lengths = [0, 1, 7, 8, 9, 2039, 2040, 2041, 4095, 4096, 4097, 65_536, 65_537, MIB, 5 * MIB]
    chance.shuffle(lengths)
    records = [chance.randbytes(length) for length in lengths]

    received = []
    for record in records:
        if batch:
            ring.put_many([record])
            received += ring.get_many()
        else:
            ring.put(record)
            received.append(ring.get())

    assert [len(record) for record in received] == lengths
    assert received == records
    assert arena.statistics().blocks == 1  # the ring


def test_records_of_some_kibibytes_leave_their_neighbours_whole(
    ring_type: type[Ring], arena: Arena, fork: Fork, chance: random.Random
) -> None:
    """From each place within a line, round the ring many times, one by one and in batches."""
    ring = ring_type(16_384, arena=arena)
    lengths = [*range(2040, 2120), *(chance.randrange(8192) for _ in range(400))]
    noise = chance.randbytes(16_384)
    records = [noise[number % 64 :][:length] for number, length in enumerate(lengths)]

    def produce() -> None:
        for begin in range(0, len(records), 6):
            for record in records[begin : begin + 3]:
                ring.put(record)
            ring.put_many(records[begin + 3 : begin + 6])

    child = fork(produce)
    for number, record in enumerate(records):
        assert ring.get() == record, (number, len(record))
    assert child.wait() == 0


def advance(ring: Ring, nbytes: int) -> None:
    """Have records that take so many bytes of an empty ring go through it."""
    while nbytes:
        step = min(nbytes, ring.capacity // 8)
        ring.put(bytes(step - 8))
        ring.get()
        nbytes -= step


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    ("capacity", "lengths"),
    [(8192, range(2047, 2201)), (262_144, range(65_535, 65_601))],
    ids=["where lines are written whole", "where blocks begin"],
)
def test_records_are_whole_from_each_place_of_a_line_to_each(
    capacity: int,
    lengths: range,
    batch: bool,
    ring_type: type[Ring],
    arena: Arena,
    chance: random.Random,
) -> None:
    """And up to the very end of the ring; what lies before them stays, and what lies behind it."""
    ring = ring_type(capacity, arena=arena)
    noise = memoryview(chance.randbytes(lengths.stop + 64))
    behind = arena._open().pages.window()[ring._cell.offset + len(ring._memory) :][:64]
    there = bytes(behind)
    for number, length in enumerate(lengths):
        takes = 8 + (length + 7 & -8) if length <= 65_536 else 24
        for place in [*range(16, 80, 8), capacity - takes]:
            record = noise[(9 * number + place // 8) % 64 :][:length]
            advance(ring, place - 16)
            if batch:
                ring.put_many([b"8 before", bytes(record)])
            else:
                ring.put(b"8 before")
                ring.put(record)
            assert ring.get() == b"8 before"
            assert ring.get() == record, (length, place)
            advance(ring, capacity - place - takes)

    assert behind == there


def test_a_record_of_forty_mebibytes_goes_through_a_ring_of_four_kibibytes(
    ring: Ring, fork: Fork
) -> None:
    """From another process, between small ones."""
    pattern = random.Random(40).randbytes(MIB)

    def produce() -> None:
        ring.put(b"before")
        ring.put(pattern * 40)
        ring.put(b"after")

    child = fork(produce)
    assert ring.get() == b"before"
    large = ring.get()
    assert ring.get() == b"after"
    assert child.wait() == 0
    assert len(large) == 40 * MIB
    assert large == pattern * 40


def test_many_large_records_fit_a_small_ring(ring_type: type[Ring], arena: Arena) -> None:
    """Each takes 24 bytes of it, whatever its length; all that is taken is freed."""
    ring = ring_type(256, arena=arena)
    put = fill(ring, bytes(100_000))

    assert put == (256 - 8) // 24
    assert arena.statistics().blocks == 1 + put
    assert drained(ring) == [bytes(100_000)] * put
    assert arena.statistics().blocks == 1


def test_a_record_that_the_arena_can_never_hold_is_too_large(ring_type: type[Ring]) -> None:
    """By its limit, or by its largest block; the message says which, and the way out."""
    ring = ring_type(4096, arena=Arena(MIB, reserve=64 * MIB))

    for call in puts(ring, b"a"):
        with pytest.raises(RecordTooLarge, match=r"nbytes=2097152, .*limit=1048576; make the ring"):
            call(bytes(2 * MIB))
    with pytest.raises(RecordTooLarge, match="largest block="), ring.claim(1 << 40):
        pytest.fail("there is no such room")

    assert drained(ring) == [b"a"]


def test_a_full_arena_refuses_a_large_record_and_takes_it_later(ring_type: type[Ring]) -> None:
    """It is not too large, and small ones still pass; nothing is left of the attempt."""
    arena = Arena(MIB, reserve=64 * MIB)
    ring = ring_type(4096, arena=arena)
    ring.put(bytes(MIB // 2))
    for call in puts(ring, b"small"):
        with pytest.raises(ArenaFull):
            call(bytes(MIB // 2))

    assert arena.statistics().blocks == 2
    assert drained(ring) == [bytes(MIB // 2), b"small"]
    ring.put(bytes(MIB // 2))
    assert drained(ring) == [bytes(MIB // 2)]


# Waiting


@pytest.mark.parametrize("timeout", [0, -1, -float("inf"), 0.05])
@pytest.mark.parametrize("way", ["get", "get_many", "lease", "put", "put large", "put_many"])
def test_a_call_waits_no_less_than_its_timeout(way: str, timeout: float, ring: Ring) -> None:
    """Then it is Full or Empty, with the figures; a negative one does not wait."""
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: ring.get(timeout),
        "get_many": lambda: ring.get_many(timeout=timeout),
        "lease": lambda: ring.lease(timeout).__enter__(),
        "put": lambda: ring.put(b"x" * 100, timeout),
        "put large": lambda: ring.put(bytes(MIB), timeout),
        "put_many": lambda: ring.put_many([b"x" * 100, bytes(MIB)], timeout),
    }
    putting = way.startswith("put")
    if putting:
        fill(ring, b"x" * 100)
        fill(ring, b"")
    before = ring.statistics()
    began = time.monotonic()
    in_use = r"\d\d\d\d of 4096 bytes in use" if putting else "0 of 4096 bytes in use"
    with pytest.raises(queue.Full if putting else queue.Empty, match=f"in time: {in_use}; wait"):
        calls[way]()

    assert time.monotonic() - began >= timeout
    assert ring.statistics() == before


@pytest.mark.parametrize("way", ["get", "get_many", "lease", "put", "put_many", "claim"])
def test_a_timeout_that_is_no_number_is_refused(way: str, ring: Ring, arena: Arena) -> None:
    """Before anything is put or taken."""
    ring.put(b"there")
    calls: dict[str, Callable[[float], object]] = {
        "get": ring.get,
        "get_many": lambda timeout: ring.get_many(timeout=timeout),
        "lease": lambda timeout: ring.lease(timeout).__enter__(),
        "put": lambda timeout: ring.put(b"x", timeout),
        "put_many": lambda timeout: ring.put_many([b"x"], timeout),
        "claim": lambda timeout: ring.claim(MIB, timeout),
    }

    with pytest.raises(ValueError, match="timeout=nan"):
        calls[way](float("nan"))
    with pytest.raises(TypeError):
        calls[way]("soon")  # type: ignore[arg-type]

    assert drained(ring) == [b"there"]
    assert arena.statistics().blocks == 1


def test_a_call_without_a_timeout_waits_for_the_other_side(ring: Ring, fork: Fork) -> None:
    """Both ways, for small records and large ones."""
    lengths = [10, 3000] * 200

    def produce() -> None:
        for number, length in enumerate(lengths):
            ring.put(b"%d" % (number % 10) * length)

    child = fork(produce)
    received = [ring.get() for _ in lengths]
    assert received == [b"%d" % (n % 10) * length for n, length in enumerate(lengths)]
    assert child.wait() == 0


# Batches


def test_put_many_says_how_many_went_in(ring: Ring) -> None:
    """Those at the front, and the same records can be put from there on later."""
    records = [b"%04d" % number for number in range(600)]

    with pytest.raises(queue.Full) as caught:
        ring.put_many(records, 0)

    done = caught.value.put  # type: ignore[attr-defined]
    assert done == (4096 - 8) // 16
    assert drained(ring) == records[:done]
    with pytest.raises(queue.Full) as caught:
        ring.put_many(records[done:], 0.01)
    assert caught.value.put == done  # type: ignore[attr-defined]


def test_put_many_counts_large_records_too(ring_type: type[Ring], arena: Arena) -> None:
    """Whether it ends at a small one or at a large one."""
    records = [bytes([number]) * length for number, length in enumerate([8, 3000, 8, 8, 3000] * 9)]
    ended_at = set()
    for capacity in (64, 128, 256, 512):
        ring = ring_type(capacity, arena=arena)
        with pytest.raises(queue.Full) as caught:
            ring.put_many(records, 0)
        done = caught.value.put  # type: ignore[attr-defined]
        ended_at.add(len(records[done]))
        assert len(ring) == done
        assert drained(ring) == records[:done]
        del caught  # its traceback has the ring
        gc.collect()
        assert arena.statistics().blocks == 1

    assert ended_at == {8, 3000}


def test_put_many_takes_any_iterable(ring: Ring) -> None:
    """Lists, generators, nothing at all; mixed kinds and lengths keep their order."""

    def some() -> Iterator[Any]:
        yield b"one"
        yield bytearray(5000)
        yield array.array("B", [1, 2])
        yield b""

    ring.put_many(some())
    ring.put_many([])
    ring.put_many(iter(()), 0)
    ring.put_many((b"last",))

    assert ring.get_many() == [b"one", bytes(5000), b"\1\2", b"", b"last"]


def test_put_many_on_a_closed_ring_says_that_nothing_went_in(ring: Ring) -> None:
    """An error of any kind counts, also where a large record comes first."""
    ring.close()
    for records in ([b"a", b"b"], [bytes(5000)]):
        with pytest.raises(ClosedError, match="ring is closed") as caught:
            ring.put_many(records)
        assert caught.value.put == 0  # type: ignore[attr-defined]


def test_put_many_waits_for_room_until_all_are_in(ring: Ring, fork: Fork) -> None:
    """A batch far larger than the ring, with blocks in it."""
    records = [b"%d" % n * (1 if n % 50 else 3000) for n in range(3000)]

    child = fork(ring.put_many, records)
    received: list[bytes] = []
    while len(received) < len(records):
        received += ring.get_many()

    assert child.wait() == 0
    assert received == records


def test_get_many_takes_no_more_than_it_is_asked_for(ring: Ring) -> None:
    """And less where there is less."""
    records = [b"a", bytes(3000), b"", b"b" * 100, b"c" * 100]
    ring.put_many(records)

    assert ring.get_many(2) == records[:2]
    assert ring.get_many(max_records=1) == records[2:3]
    assert ring.get_many(np.int64(100)) == records[3:]
    for most in (0, -1):
        with pytest.raises(ValueError, match=f"must be 1 or more: max_records={most}"):
            ring.get_many(most)
    with pytest.raises(TypeError, match="max_records"):
        ring.get_many(1.5)  # type: ignore[arg-type]


# Facts


def test_statistics_say_what_happened(ring: Ring, fork: Fork) -> None:
    """Every figure, with a process asleep on each side in turn."""
    ring.put(b"12345678")
    ring.put(bytes(5000))
    ring.get()

    assert ring.statistics() == RingStatistics(
        capacity=4096, backlog_bytes=24, backlog_records=1, puts=2, gets=1,
        waiting_producers=0, waiting_consumers=0, recoveries=0,
    )  # fmt: skip

    with ring.lease() as view:
        assert view.nbytes == 5000
        assert (ring.statistics().gets, len(ring)) == (2, 0)
    consumers = [fork(ring.get) for _ in range(3)]
    while ring.statistics().waiting_consumers < 3:
        os.sched_yield()
    ring.put_many([b"a", b"b", b"c"])
    assert [child.wait() for child in consumers] == [0, 0, 0]
    assert ring.statistics().waiting_consumers == 0
    put = fill(ring)
    producers = [fork(ring.put, b"more") for _ in range(2)]
    while ring.statistics().waiting_producers < 2:
        os.sched_yield()
    assert (len(ring), ring.statistics().puts) == (put, 5 + put)
    received = [ring.get() for _ in range(put + 2)]
    assert [child.wait() for child in producers] == [0, 0]
    assert received == [b"full"] * put + [b"more"] * 2
    after = ring.statistics()
    assert (after.puts, after.gets, after.backlog_bytes) == (7 + put, 7 + put, 0)


def test_what_is_refused_leaves_nothing_to_collect(ring: Ring) -> None:
    """An error and the frames it went through go with it, and so does what they hold."""

    def get_in_vain() -> None:
        for get in (ring.get, ring.get_many):
            with contextlib.suppress(queue.Empty):
                get(timeout=0)

    get_in_vain()
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        get_in_vain()
        assert gc.collect() == 0
    finally:
        if enabled:
            gc.enable()
