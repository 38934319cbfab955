"""Rings as handles have them: what ends with the last, and what a stale one may still do."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import ipcmap
import rings
from children import Fork
from ipcmap import Arena, BusyError, ClosedError, Ring, StaleHandle
from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.layout import ALLOCATOR_SECTION, Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_ring_blocks import RingBlocks
from ipcmap._deadline import Deadline

LARGE = bytes(range(200))  # of which a ring of 64 bytes carries only the place


def blocks() -> int:
    """Count the blocks of the default arena, once what is garbage or of the dead is freed."""
    gc.collect()
    return rings.blocks()


@pytest.fixture(autouse=True)
def no_block_is_left() -> Iterator[None]:
    """Every test gives back what it took."""
    before = blocks()
    yield
    assert blocks() == before


def test_destroy_frees_records_that_no_consumer_has_looked_at() -> None:
    """It goes by the producers' position itself, not by what a consumer last saw of it."""
    ring = Ring(128)
    for _ in range(3):
        ring.put(LARGE)

    ring.destroy()


def test_the_last_handle_of_an_unshared_ring_frees_its_records() -> None:
    """Nobody else can ever take them."""
    ring = Ring(64)
    ring.put(LARGE)
    ring.put(LARGE)
    assert ring.get() == LARGE

    del ring


def test_a_damaged_ring_can_be_destroyed() -> None:
    """The way out of CorruptError must not leave the ring behind for ever."""
    ring = Ring(64)
    ring.put(b"x")
    ring._core._words[at.READ_POS] = 2**50

    ring.destroy()

    with pytest.raises(StaleHandle):
        ring.put(b"x")


@pytest.mark.parametrize("capacity", [64, 1 << 20])
def test_a_destroyed_ring_refuses_every_call(capacity: int) -> None:
    """Also where its memory was given back, and reads as an open ring of zeros."""
    ring = Ring(capacity)
    attachment, claim = ring.attach_producer(), ring.claim(200)
    claim.__enter__()
    ring.destroy()

    calls: list[Callable[[], object]] = [
        partial(ring.put, b"x"),
        partial(ring.put, b"x", 1),
        partial(ring.put, LARGE),
        partial(ring.put_many, [b"x"]),
        ring.get,
        partial(ring.get, 1),
        ring.get_many,
        partial(claim.__exit__, None, None, None),
        ring.lease().__enter__,
        partial(len, ring),
        ring.statistics,
        ring.attach_producer,
        ring.close,
        ring.destroy,
        partial(pickle.dumps, ring),
    ]
    for call in calls:
        with pytest.raises(StaleHandle):
            call()
    attachment.detach()


def test_detaching_from_a_destroyed_ring_does_not_write_where_it_was() -> None:
    """The next ring in its place stays open."""
    ring = Ring(64)
    attachment = ring.attach_producer()
    ring.destroy()
    successor = Ring(64)
    assert successor._cell.offset == ring._cell.offset

    attachment.detach()

    assert not successor.closed


def test_a_claim_that_ends_under_its_views_is_freed_with_the_last_of_them() -> None:
    """Until then no other block is where they write."""
    ring = Ring(64)
    before = blocks()
    with pytest.raises(BusyError), ring.claim(len(LARGE)) as view:
        part = view[:10]

    assert blocks() == before + 1
    part[:] = b"harmless!!"
    del part, view
    assert blocks() == before


def test_a_lease_whose_last_view_ends_amid_a_change_of_the_arena_is_freed_later() -> None:
    """A finalizer can come anywhere; it must neither fail nor forget the block."""
    ring = Ring(64)
    ring.put(LARGE)
    with pytest.raises(BusyError), ring.lease() as view:
        part = view[:1]
    section = ring._arena._open().pages.address + ALLOCATOR_SECTION

    assert sections.trylock(section) == 0
    del part, view
    assert sections.unlock(section) == 0

    assert blocks() > 0
    Ring(64)  # whoever makes the next one looks after what was left behind


def test_a_ring_made_amid_a_change_of_another_arena_leaves_behind_what_it_must() -> None:
    """What still cannot be freed is tried once, and not for ever."""
    ring = Ring(64)
    section = ring._arena._open().pages.address + ALLOCATOR_SECTION

    assert sections.trylock(section) == 0
    del ring
    other = Ring(64, arena=Arena(1 << 26))
    assert sections.unlock(section) == 0

    other.put(b"1")
    assert other.get() == b"1"
    Ring(64)


def test_large_records_taken_amid_a_change_of_the_arena_are_not_lost(engine: str) -> None:
    """Their blocks are freed later."""
    arena = Arena(1 << 26, backend=engine)
    ring = Ring(1024, arena=arena)
    records = [bytes([number]) * 1000 for number in range(5)]
    ring.put_many(records)
    section = arena._open().pages.address + ALLOCATOR_SECTION

    assert sections.trylock(section) == 0
    taken = [ring.get(), ring.get(0), *ring.get_many()]
    assert sections.unlock(section) == 0

    assert taken == records
    del ring
    Ring(64)
    gc.collect()
    assert arena.statistics().blocks == 0


def test_a_large_record_for_which_there_is_no_memory_comes_again(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call says so, unless it has others to return."""
    arena = Arena(1 << 26, backend=engine)
    ring = Ring(1024, arena=arena)
    records = [bytes([number]) * 1000 for number in range(3)]
    ring.put_many([*records, b"small"])
    core, record_in = ring._core, RingBlocks.record_in
    short = [2]

    def fail(self: RingBlocks, cell: Cell) -> memoryview:
        if short[0]:
            short[0] -= 1
            raise MemoryError
        return record_in(self, cell)

    monkeypatch.setattr(type(core), "record_in", fail)
    assert Ring.get_many(ring) == [records[2], b"small"]
    short[0] = 1
    with pytest.raises(MemoryError):
        Ring.get(ring)
    assert [ring.get(0), ring.get(0)] == records[:2]
    with pytest.raises(queue.Empty):
        ring.get(0)
    assert arena.statistics().blocks == 1


def test_a_put_that_fails_after_its_commit_leaves_the_record_to_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads share a slot: a block that another has taken meanwhile is not for the putter to free."""
    ring, taken = Ring(64), list[tuple[Any, memoryview]]()
    wake = parking.wake

    def take() -> None:
        lease = ring.lease()
        taken.append((lease, lease.__enter__()))

    def raise_once(place: int) -> None:
        monkeypatch.setattr(parking, "wake", wake)
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(parking, "wake", raise_once)
    ring._core._words[at.CONSUMERS_SLEEPING] = 1
    with pytest.raises(KeyboardInterrupt):
        Ring.put(ring, LARGE)

    lease, view = taken.pop()
    assert bytes(view) == LARGE
    assert len(ring) == 0, "it is leased once and not to come again"
    del view
    lease.__exit__(None, None, None)


def test_a_lease_that_fails_leaves_the_record_to_the_thread_that_took_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had the record in view, and another thread of the process was faster."""
    ring, taken = Ring(64), list[tuple[Any, memoryview]]()
    ring.put(LARGE)
    core, keeps = ring._core, ring._core.keeps

    def take() -> None:
        lease = ring.lease()
        taken.append((lease, lease.__enter__()))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def keeps_after_another_took_it(*arguments: Any) -> bool:
        monkeypatch.undo()
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return keeps(*arguments)

    monkeypatch.setattr(core, "_retag", interrupted)
    monkeypatch.setattr(core, "keeps", keeps_after_another_took_it)
    with pytest.raises(KeyboardInterrupt):
        ring.lease().__enter__()

    lease, view = taken.pop()
    assert bytes(view) == LARGE
    assert len(ring) == 0
    del view
    lease.__exit__(None, None, None)


def test_a_returned_record_is_not_missed_when_somebody_else_swept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a closed ring the last consumer would end with ClosedError, and the record stay for ever."""
    ring = Ring(64)
    ring.put(LARGE)
    ring.close()
    lease = ring.lease()
    lease.__enter__()
    (cell,) = [cell for cell in ring._allocator.of_kind(Kind.LEASED) if ring._core.is_ours(cell)]

    def sweep_of_another(*_: object) -> int:
        owner = ring._core._place.slot()
        assert ring._core.keeps(cell, owner, lambda: True, Deadline(0))
        monkeypatch.undo()
        return 0

    monkeypatch.setattr(ipcmap.Arena, "sweep", sweep_of_another)
    assert ring.get() == LARGE
    with pytest.raises(ClosedError):
        ring.get()
    lease._lent = False  # its holder is dead
    assert lease._view is not None
    lease._view.release()


@pytest.mark.parametrize("record", [LARGE, b"small"], ids=["large", "small"])
@pytest.mark.parametrize("end", [os._exit, lambda code: os.kill(os.getpid(), signal.SIGKILL)])
def test_loans_that_were_open_at_a_fork_are_the_parents_alone(
    record: bytes, end: Callable[[int], object], fork: Fork
) -> None:
    """However the child ends, and whatever it leaves; it uses the ring all the same."""
    ring = Ring(128)
    ring.put(record)

    def leave() -> None:
        lease.__exit__(None, None, None)
        claim.__exit__(None, None, None)
        ring.put(LARGE)
        assert ring.get() == LARGE
        end(0)

    lease, claim = ring.lease(), ring.claim(len(record))
    with lease as view, claim as room:
        room[:] = record
        assert fork(leave).wait() in (0, -signal.SIGKILL)
        ring._arena.sweep()
        assert len(ring) == 0
        assert bytes(view) == bytes(room) == record
    assert ring.get(0) == record
    ring.destroy()


def test_a_child_that_never_used_the_arena_can_do_all(fork: Fork) -> None:
    """It claims a slot on the way, wherever the call first needs one."""
    ring = Ring(128)

    def get() -> None:
        assert ring.get(0) == LARGE

    def get_many() -> None:
        assert ring.get_many(None, 0) == [LARGE]

    def lease() -> None:
        with ring.lease(0) as view:
            assert bytes(view) == LARGE

    for call in (get, get_many, lease):
        assert fork(ring.put, LARGE).wait() == 0
        ring._arena.sweep()
        assert fork(call).wait() == 0
        ring._arena.sweep()
    ring.destroy()


def test_a_burial_waits_for_no_one_who_is_stopped_inside(fork: Fork) -> None:
    """A death that needs that ring's section is put off; every other one is told at once."""
    ring, other = Ring(64), Ring(64)
    for each in (ring, other):
        each.put(LARGE)

    def die_with_a_lease(ring: Ring) -> None:
        with ring.lease():
            os.kill(os.getpid(), signal.SIGKILL)

    def stop_inside() -> None:
        stop = partial(os.kill, os.getpid(), signal.SIGSTOP)
        sections.inside(ring._core._consumers_section, Deadline(None), stop)

    for each in (ring, other):
        fork(die_with_a_lease, each).wait()
    stopped = fork(stop_inside)
    os.waitpid(stopped.pid, os.WUNTRACED)
    ring._arena.sweep()
    assert other.get(0) == LARGE

    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.wait() == 0
    ring._arena.sweep()
    assert ring.get(0) == LARGE
    ring.destroy()
    other.destroy()
