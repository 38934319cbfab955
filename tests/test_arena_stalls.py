"""Somebody is stopped in the section of an arena's allocator: nobody waits beyond their time."""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest

from children import Child, Fork
from ipcmap import Arena, BusyError, JoinableQueue, Queue, Ring, ring_handle
from ipcmap._core import libc
from ipcmap._core.reference_allocator import GIVE_BACK
from ipcmap._core.reference_sections import inside
from ipcmap._deadline import Deadline
from ipcmap.loans import Lease
from ipcmap.structure import free_left_behind, free_quietly
from places import Place

pytestmark = pytest.mark.usefixtures("engine")

LARGE = bytes(200_000)  # travels in a block
SMALL = b"small"


def stop_in(section: int, fork: Fork) -> Child:
    """Return a child that is stopped in a section."""

    def be_stopped() -> None:
        inside(section, Deadline(None), os.kill, os.getpid(), signal.SIGSTOP)

    child = fork(be_stopped)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    return child


@contextmanager
def somebody_in_the_way(arena: Arena, fork: Fork) -> Iterator[str]:
    """Have somebody be stopped in the allocator's section; yield what a message says of them."""
    child = stop_in(arena._open().allocator._section, fork)
    try:
        yield f"in the way is thread {child.pid} of pid {child.pid}, which is stopped"
    finally:
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait() == 0


def blocks(arena: Arena) -> int:
    """Count them, once what is garbage is freed."""
    gc.collect()
    free_left_behind()
    return arena.statistics().blocks


def claim(ring: Ring, timeout: float | None) -> None:
    """Put by way of a claim."""
    with ring.claim(len(LARGE), timeout) as view:
        view[:] = LARGE


PUTS: dict[str, Callable[[Ring, float | None], object]] = {
    "put": lambda ring, timeout: ring.put(LARGE, timeout),
    "put_many": lambda ring, timeout: ring.put_many([LARGE], timeout),
    "claim": claim,
}


@pytest.mark.parametrize("way", PUTS)
def test_a_large_put_ends_in_time_and_says_who_is_in_the_way(
    way: str, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """Nothing is put, and nothing is kept; afterwards it comes off."""
    ring = ring_type(arena=arena)
    before = blocks(arena)
    with (
        somebody_in_the_way(arena, fork) as told,
        pytest.raises(queue.Full, match=told),
    ):
        PUTS[way](ring, 0.2)

    assert len(ring) == 0
    assert blocks(arena) == before
    PUTS[way](ring, 0.2)
    assert ring.get(timeout=0) == LARGE


def test_whoever_is_in_the_way_may_have_any_name(arena: Arena, fork: Fork) -> None:
    """The kernel cuts a thread's name after 15 bytes, in the middle of a letter if need be."""
    ring = Ring(arena=arena)

    def take_a_name() -> None:
        ctypes.CDLL(None).prctl(15, b"Stra\xc3\x9fe \xff\xc3")  # PR_SET_NAME
        inside(
            arena._open().allocator._section, Deadline(None), os.kill, os.getpid(), signal.SIGSTOP
        )

    child = fork(take_a_name)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(
        queue.Full, match=f"thread {child.pid} of pid {child.pid}, which is stopped"
    ):
        ring.put(LARGE, 0.01)
    os.kill(child.pid, signal.SIGCONT)

    assert child.wait() == 0


def test_records_before_a_large_one_are_put_all_the_same(
    ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """And the error says how many they are."""
    ring = ring_type(arena=arena)
    with somebody_in_the_way(arena, fork) as told, pytest.raises(queue.Full, match=told) as raised:
        ring.put_many([SMALL, SMALL, LARGE, SMALL], 0.2)

    assert getattr(raised.value, "put", None) == 2
    assert ring.get_many(timeout=0) == [SMALL, SMALL]


def test_a_lease_ends_in_time_and_leaves_the_record(
    ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """A small one, which needs a block of its own to be shown."""
    ring = ring_type(arena=arena)
    ring.put(SMALL)
    before = blocks(arena)
    with somebody_in_the_way(arena, fork) as told, pytest.raises(queue.Empty, match=told):
        ring.lease(0.2).__enter__()

    assert blocks(arena) == before
    assert ring.get(timeout=0) == SMALL


@pytest.mark.parametrize("maxsize", [0, 3])
def test_the_put_of_a_queue_ends_in_time(maxsize: int, arena: Arena, fork: Fork) -> None:
    """With a bound and without; it is not said to be full of what is not in it."""
    objects: Queue[bytes] = Queue(maxsize, arena=arena)
    with somebody_in_the_way(arena, fork) as told, pytest.raises(queue.Full, match=told):
        objects.put(LARGE, timeout=0.2)

    assert objects.empty()
    objects.put(LARGE, timeout=0.2)
    assert objects.get(timeout=1) == LARGE


def test_a_large_record_is_taken_though_its_block_cannot_be_freed(
    ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """By get, get_many and a lease; the blocks are freed when somebody next waits in vain."""
    ring = ring_type(arena=arena)
    before = blocks(arena)
    for _ in range(3):
        ring.put(LARGE)
    with somebody_in_the_way(arena, fork):
        assert ring.get(timeout=0.2) == LARGE
        assert ring.get_many(1, timeout=0.2) == [LARGE]
        with ring.lease(0.2) as view:
            assert view == LARGE

    assert arena.statistics().blocks == before + 3
    with pytest.raises(queue.Empty):
        Ring.get(ring, timeout=0.01)
    assert arena.statistics().blocks == before


def be_done_by_lease(objects: Ring) -> None:
    """Take a record on a lease, and end it once continued."""
    with objects.lease(0.2):
        os.kill(os.getpid(), signal.SIGSTOP)


def be_done_by_task_done(objects: Queue[bytes]) -> None:
    """Take an object, and say so once continued."""
    objects.get(timeout=0.2)
    os.kill(os.getpid(), signal.SIGSTOP)
    objects.task_done()


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("by", [be_done_by_lease, be_done_by_task_done])
def test_what_is_done_with_does_not_come_again_though_its_block_cannot_be_freed(
    by: Callable[[Any], None], record: bytes, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """Its consumer is killed before it could free the block; the sweep does."""
    objects: Any
    if by is be_done_by_lease:
        objects, ring = [ring_type(arena=arena)] * 2
    else:
        objects = Queue(ack=True, arena=arena)
        ring = objects._ring
    before = blocks(arena)
    objects.put(record)

    def be_done_and_die() -> None:
        by(objects)
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork(be_done_and_die)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    with somebody_in_the_way(arena, fork):
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait() == -signal.SIGKILL
        assert ring._unfinished() == 0, "though its block is not free"

    arena.sweep()
    with pytest.raises(queue.Empty):
        objects.get(timeout=0)
    assert blocks(arena) == before


class Raised(Exception):
    """What a block raises, or a signal handler."""


Inside = Callable[[memoryview], None]


def left(lease: Lease, inside: Inside) -> None:
    """Leave the block at its end."""
    with lease as view:
        inside(view)


def left_by_an_exception(lease: Lease, inside: Inside) -> None:
    """Raise in the block."""
    with lease as view:
        inside(view)
        raise Raised


def left_with_a_view(lease: Lease, inside: Inside) -> None:
    """Keep a slice for a little longer than the block."""
    with lease as view:
        inside(view)
        kept = view[:]
    del kept


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("way", "handler", "error"),
    [
        (left, "", None),
        (left_by_an_exception, "", Raised),
        (left_with_a_view, "", BusyError),
        (left, "before", Raised),
        (left, "behind", Raised),
    ],
)
def test_however_a_lease_ends_its_block_is_freed_later_and_once(
    way: Callable[[Lease, Inside], None],
    handler: str,
    error: type[Exception] | None,
    record: bytes,
    ring_type: type[Ring],
    arena: Arena,
    fork: Fork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a handler raises before or behind the freeing that cannot be done now.

    Its record is done with at once: what comes is the next one, and then no more.
    """
    ring = ring_type(arena=arena)
    before = blocks(arena)
    began = arena.statistics()
    ring.put_many([record, SMALL])
    with ExitStack() as later, monkeypatch.context() as patch:

        def inside(view: memoryview) -> None:
            assert view == record
            later.enter_context(somebody_in_the_way(arena, fork))

        def interrupted(*block: Any) -> None:
            patch.undo()
            if handler == "behind":
                free_quietly(*block)
            raise Raised

        if handler:
            patch.setattr(ring_handle, "free_quietly", interrupted)
        with pytest.raises(error) if error else nullcontext():
            way(ring.lease(0), inside)
        gc.collect()  # a lease that was broken off may live on in what was raised
        assert ring._unfinished() == 1, "the next one"

    assert arena.statistics().blocks == before + 1
    assert ring.get(timeout=0) == SMALL
    with pytest.raises(queue.Empty):
        Ring.get(ring, timeout=0.01)
    assert arena.statistics() == began
    ring.put(LARGE)  # whoever frees twice could hit it
    free_left_behind()
    assert ring.get(timeout=0) == LARGE
    assert arena.statistics() == began


def test_a_lease_that_finds_nothing_gives_its_room_back_later(
    ring_type: type[Ring], arena: Arena, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room was made for a small record, and another was faster."""
    ring = ring_type(arena=arena)
    before = blocks(arena)
    began = arena.statistics()
    ring.put(SMALL)
    with ExitStack() as later, monkeypatch.context() as patch:
        usual = ring._take_block

        def take_block(_: Ring, *arguments: Any) -> Any:
            patch.undo()
            cell = usual(*arguments)
            assert ring.get(timeout=0) == SMALL
            later.enter_context(somebody_in_the_way(arena, fork))
            return cell

        patch.setattr(Ring, "_take_block", take_block)
        with pytest.raises(queue.Empty):
            ring.lease(0.01).__enter__()

    assert arena.statistics().blocks == before + 1
    with pytest.raises(queue.Empty):
        Ring.get(ring, timeout=0.01)
    assert arena.statistics() == began


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["small", "large"])
def test_a_lease_that_nobody_can_end_is_given_back_later(
    record: bytes, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """By whoever next waits in vain, who has it then, for one was stopped in the ring; and once."""
    ring = ring_type(arena=arena)
    before = blocks(arena)
    began = arena.statistics()
    ring.put(record)
    lease = ring.lease(0)
    lease.__enter__()
    child = stop_in(ring._core._consumers_section, fork)
    del lease
    gc.collect()
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0

    assert ring._core.count_returned() == 0, "not yet"
    assert arena.statistics().blocks == before + 1
    assert Ring.get(ring, timeout=0.01) == record
    with pytest.raises(queue.Empty):
        Ring.get(ring, timeout=0.01)
    assert arena.statistics() == began


def test_a_join_does_not_wait_for_a_block_to_be_freed(arena: Arena, fork: Fork) -> None:
    """All is done with; the block is freed by what is done with next."""
    tasks: JoinableQueue[bytes] = JoinableQueue(arena=arena)
    before = blocks(arena)
    for _ in range(2):
        tasks.put(SMALL)
        tasks.get()
    with somebody_in_the_way(arena, fork):
        tasks.task_done()
        assert tasks.unfinished_tasks == 1
    assert arena.statistics().blocks == before + 2
    tasks.task_done()
    tasks.join()

    assert arena.statistics().blocks == before


def test_a_large_put_that_gives_up_in_front_of_the_ring_keeps_nothing(
    ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """Its block is freed when somebody next waits in vain."""
    ring = ring_type(arena=arena)
    before = blocks(arena)
    child = stop_in(ring._core._producers_section, fork)
    consumer = stop_in(ring._core._consumers_section, fork)
    with pytest.raises(queue.Full, match=f"pid {child.pid}, which is stopped"):
        ring.put(LARGE, 0.05)
    for stopped in (child, consumer):
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.wait() == 0
    assert arena.statistics().blocks == before + 1
    with pytest.raises(queue.Empty):
        Ring.get(ring, timeout=0.01)

    assert arena.statistics().blocks == before


def test_without_a_timeout_it_waits_for_whoever_is_in_the_way(
    ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """For longer than a call with one would."""
    ring = ring_type(arena=arena)
    with somebody_in_the_way(arena, fork):
        putter = fork(lambda: ring.put(LARGE))
        with pytest.raises(queue.Empty):
            ring.get(timeout=0.5)

    assert putter.wait() == 0
    assert ring.get(timeout=0) == LARGE


def test_a_burial_is_put_off_where_the_blocks_of_the_dead_cannot_be_freed(
    arena: Arena, fork: Fork
) -> None:
    """Whoever waits with a timeout may be the one who sweeps."""
    before = blocks(arena)

    def take() -> None:
        arena.allocate(1000)
        os._exit(0)

    fork(take).wait()
    with somebody_in_the_way(arena, fork):
        assert arena.sweep() == 0

    assert arena.sweep() == 1
    assert blocks(arena) == before


def test_memory_is_given_back_later_where_somebody_is_in_the_way(engine: str, fork: Fork) -> None:
    """Before the first step, where nothing was changed, and between the two."""
    place = Place(32 << 20, engine=engine)
    allocator: Any = place.allocator
    cells = [allocator.allocate(GIVE_BACK) for _ in range(4)]
    for cell in cells:
        allocator.free(cell)
    warm = place.kept()
    allocator._keep = 0  # all of it is too much by now

    child = stop_in(allocator._section, fork)
    allocator._trim(place.slot)
    assert place.kept() == warm
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0

    allocator._trim(place.slot)
    assert place.kept() == 0
    place.in_use()


def test_a_cell_whose_memory_was_given_back_is_free_in_the_end(
    engine: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody was stopped in the section between the two steps; a child leaves it to its parent."""
    place = Place(32 << 20, engine=engine)
    allocator: Any = place.allocator
    allocator.free(allocator.allocate(GIVE_BACK))
    allocator._keep = 0
    stopped = list[Child]()

    def give_back(address: int, nbytes: int, advice: int) -> None:
        stopped.append(stop_in(allocator._section, fork))

    monkeypatch.setattr(libc, "madvise", give_back)
    allocator._trim(place.slot)
    monkeypatch.undo()
    assert place.kept() == GIVE_BACK, "retired"
    os.kill(stopped[0].pid, signal.SIGCONT)
    assert stopped[0].wait() == 0

    def child() -> None:
        allocator._trim(place.slot)
        os._exit(place.kept() != GIVE_BACK)

    assert fork(child).wait() == 0
    allocator._trim(place.slot)
    assert place.kept() == 0
    assert place.in_use() == 0


def test_two_threads_finish_giving_back_at_once(
    engine: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds nothing to do any more, whenever the first comes in between."""
    place = Place(32 << 20, engine=engine)
    allocator: Any = place.allocator
    allocator.free(allocator.allocate(GIVE_BACK))
    allocator._keep = 0
    stopped = list[Child]()

    def give_back(address: int, nbytes: int, advice: int) -> None:
        stopped.append(stop_in(allocator._section, fork))

    monkeypatch.setattr(libc, "madvise", give_back)
    allocator._trim(place.slot)
    monkeypatch.undo()
    os.kill(stopped[0].pid, signal.SIGCONT)
    assert stopped[0].wait() == 0

    usual = allocator._inside

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if arguments[0] != allocator._exchange:
            return usual(*arguments, **named)
        monkeypatch.undo()
        other = threading.Thread(target=allocator._trim, args=(place.slot,))
        other.start()
        other.join()
        assert place.kept() == 0
        return usual(*arguments, **named)

    monkeypatch.setattr(allocator, "_inside", interrupted)
    allocator._trim(place.slot)

    assert allocator._inside == usual, "another thread came in between"
    assert place.kept() == 0
    assert place.in_use() == 0
