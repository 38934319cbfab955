"""Large records through the native engine: put and get by way of a block, in C."""

from __future__ import annotations

import gc
import os
import queue
import random
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from children import Fork
from ipcmap import Arena, CorruptError, RecordTooLarge, Ring
from ipcmap._core import ring_layout as at
from ipcmap._core.layout import Kind
from rings import blocks, drained, fill, taken

LARGE = 100_000  # bytes
MIB = 1 << 20


class Raised(Exception):
    """What a signal handler raises."""


@pytest.fixture
def native_arena() -> Arena:
    """An arena of the native engine."""
    return Arena(1 << 30, backend="native")


@pytest.fixture
def ring(native_arena: Arena) -> Iterator[Ring]:
    """A ring of 1 KiB, in an arena of its own; nothing may be left of its records."""
    ring = Ring(1024, arena=native_arena)
    yield ring
    assert blocks(native_arena) == 1
    ring.destroy()


def record(number: int, nbytes: int = LARGE) -> bytes:
    """Return a record that tells which one it is, at its begin and at its end."""
    mark = number.to_bytes(8, "little")
    return mark + bytes(nbytes - 16) + mark


@pytest.mark.parametrize("nbytes", [600, LARGE, MIB, 3 * MIB + 5])
def test_a_large_record_arrives_whole_and_leaves_no_block(ring: Ring, nbytes: int) -> None:
    """Whatever has a buffer; in its order among small ones."""
    data = random.Random(nbytes).randbytes(nbytes)
    for given in (data, bytearray(data), memoryview(data)):
        ring.put(given)
        ring.put(b"small")
        ring.put(given, 0)

        assert len(ring) == 3
        assert (ring.get(), ring.get(0), ring.get(0.5)) == (data, b"small", data)


def test_it_is_the_same_record_for_both_engines(ring: Ring) -> None:
    """What one puts the other gets, leases and takes in batches."""
    ring.put(record(1))
    Ring.put(ring, record(2))
    ring.put(record(3))
    ring.put(record(4))

    assert Ring.get(ring) == record(1)
    assert ring.get() == record(2)
    with ring.lease() as view:
        assert bytes(view) == record(3)
    assert ring.get_many() == [record(4)]


def test_a_full_ring_and_a_full_arena_say_so(ring: Ring, native_arena: Arena) -> None:
    """The record that did not go in leaves no block."""
    put = fill(ring, record(0))
    before = blocks(native_arena)
    with pytest.raises(queue.Full):
        ring.put(record(1), 0.01)

    assert blocks(native_arena) == before == put + 1
    assert drained(ring) == [record(0)] * put
    with pytest.raises(RecordTooLarge):
        ring.put(bytes(native_arena.limit))


def test_a_handler_that_raises_while_a_large_put_waits_leaves_no_block(
    ring: Ring, native_arena: Arena
) -> None:
    """The record was not put."""
    put = fill(ring, b"x" * 100)

    def handle(number: int, frame: FrameType | None) -> None:
        raise Raised

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Raised):
            ring.put(record(1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert blocks(native_arena) == 1
    assert len(drained(ring)) == put


def test_a_child_of_a_handler_in_a_waiting_put_has_a_block_of_its_own(
    ring: Ring, native_arena: Arena
) -> None:
    """Both records come, each once, and each whole."""
    fill(ring, b"x" * 100)
    children: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        children.append(os.fork())

    got: list[bytes] = []

    def drain() -> None:
        while not children:
            pass
        got.extend(drained(ring))
        got.extend(ring.get() for _ in range(2 - sum(len(each) == LARGE for each in got)))

    thread = threading.Thread(target=drain)
    previous = signal.signal(signal.SIGALRM, handle)
    thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        ring.put(record(1))
        if children[0] == 0:
            os._exit(0)
        thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    _, status = os.waitpid(children[0], 0)

    assert status == 0
    assert [each for each in got if len(each) == LARGE] == [record(1)] * 2
    native_arena.sweep()


def test_of_producers_and_consumers_killed_at_random_no_record_is_lost(
    ring: Ring, native_arena: Arena, chance: random.Random
) -> None:
    """What came is a run of what was put, less one at most where a consumer was killed."""
    counter = native_arena.allocate(8)
    counts = counter.view().cast("Q")
    for victim in ["producer", "consumer"] * 10:
        ring_of_round = Ring(4096, arena=native_arena)
        counts[0] = 0
        kill_at = chance.randrange(1, 60)
        pid = os.fork()
        if pid == 0:
            try:
                for number in range(10**9):
                    if victim == "producer":
                        ring_of_round.put(record(number))
                    else:
                        ring_of_round.get()
                    counts[0] = number + 1
            finally:
                os._exit(1)
        seen: list[int] = []
        put = 0
        if victim == "producer":
            while counts[0] < kill_at:
                seen.extend(numbers([*filter(None, [taken(ring_of_round)])]))
        else:
            while counts[0] < kill_at:
                ring_of_round.put(record(put))
                put += 1
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        native_arena.sweep()
        seen.extend(numbers(drained(ring_of_round)))

        assert os.WIFSIGNALED(status)
        if victim == "producer":
            assert seen == list(range(len(seen)))
            assert counts[0] <= len(seen) <= counts[0] + 1
        else:
            assert seen == list(range(put - len(seen), put))
            assert counts[0] <= put - len(seen) <= counts[0] + 1
        ring_of_round.destroy()
        assert blocks(native_arena) == 2
    counts.release()
    gc.collect()
    counter.free()


def numbers(records: list[bytes]) -> list[int]:
    """Return which records these are; each must be whole."""
    found = [int.from_bytes(each[:8], "little") for each in records]
    assert records == [record(number) for number in found]
    return found


def test_threads_and_processes_share_it(ring: Ring, fork: Fork) -> None:
    """Each record comes once, whole."""

    def put(first: int) -> None:
        for number in range(first, first + 50):
            ring.put(record(number, 20_000 + 5000 * (number % 100)))

    got: list[int] = []

    def get() -> None:
        for _ in range(75):
            data = ring.get()
            number = int.from_bytes(data[:8], "little")
            assert data == record(number, 20_000 + 5000 * (number % 100))
            got.append(number)

    threads = [threading.Thread(target=get) for _ in range(2)]
    for thread in threads:
        thread.start()
    children = [fork(put, first) for first in (0, 1000)]
    put(2000)
    for thread in threads:
        thread.join()

    assert [child.wait() for child in children] == [0, 0]
    assert sorted(got) == [first + n for first in (0, 1000, 2000) for n in range(50)]


@pytest.mark.parametrize("length", [2**17, 2**40, 2**64 - 1])
def test_a_scribbled_length_is_noticed(ring: Ring, native_arena: Arena, length: int) -> None:
    """No byte beyond the cell is read; the record is gone, and the ring goes on."""
    ring.put(record(1))
    allocator = native_arena._open().allocator
    (cell,) = allocator.of_kind(Kind.RECORD)
    native_arena._open().words[(cell.offset >> 3) + at.B_NBYTES] = length
    with pytest.raises(CorruptError, match="ring is damaged"):
        ring.get(0)

    ring.put(record(2))
    assert ring.get(0) == record(2)


@pytest.mark.parametrize("word", [1, 2])
def test_a_scribbled_name_of_a_block_is_noticed(
    native_arena: Arena, word: int, chance: random.Random
) -> None:
    """An error, whatever stands there; never another's bytes."""
    for value in (0, 8, 64, 2**40, 2**63, 2**64 - 64, chance.randrange(2**64)):
        ring = Ring(1024, arena=native_arena)
        ring.put(record(1))
        ring._core._words[at.FIRST_RECORD + word] = value
        with pytest.raises(CorruptError, match="names no block"):
            ring.get(0)
