"""A ring from its making to its end: capacity, handles that travel, close, destroy, and what is freed."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from children import Fork
from ipcmap import (
    Arena,
    ArenaFull,
    BusyError,
    ClosedError,
    NotInherited,
    Ring,
    StaleHandle,
    default_arena,
)
from rings import drained, fill

MIB = 1 << 20


# Its making


@pytest.mark.parametrize(
    ("asked", "capacity"),
    [(1, 64), (64, 64), (65, 128), (1000, 1024), (MIB, MIB), (MIB + 1, 2 * MIB)],
)
def test_the_capacity_is_rounded_up_to_a_power_of_two(
    asked: int, capacity: int, ring_type: type[Ring], arena: Arena
) -> None:
    """From 64 bytes on; the default is 1 MiB."""
    ring = ring_type(asked, arena=arena)

    assert ring.capacity == ring.statistics().capacity == capacity
    assert ring_type(arena=arena).capacity == MIB


def test_the_largest_capacity_costs_what_is_touched(ring_type: type[Ring]) -> None:
    """4 GiB are addresses; a record in it is a record."""
    arena = Arena(5 << 30)
    ring = ring_type(1 << 32, arena=arena)
    ring.put(b"small")

    assert ring.capacity == 1 << 32
    assert ring.get() == b"small"


@pytest.mark.parametrize("capacity", [0, -1, (1 << 32) + 1])
def test_a_capacity_out_of_range_is_refused(capacity: int, ring_type: type[Ring]) -> None:
    """The message has the range."""
    with pytest.raises(ValueError, match=rf"1 to 4294967296 bytes: capacity={capacity}$"):
        ring_type(capacity)


@pytest.mark.parametrize("capacity", ["64", 64.0, None, True])
def test_a_capacity_that_is_no_integer_is_refused(capacity: Any, ring_type: type[Ring]) -> None:
    """By name."""
    with pytest.raises(TypeError, match="capacity must be an integer"):
        ring_type(capacity)


def test_a_ring_that_the_arena_has_no_room_for_is_refused(ring_type: type[Ring]) -> None:
    """As every block is."""
    with pytest.raises(ArenaFull):
        ring_type(MIB, arena=Arena(MIB, reserve=64 * MIB))


def test_a_ring_is_true_and_tells_its_state(ring: Ring) -> None:
    """Empty or not, open or closed."""
    assert (bool(ring), ring.closed) == (True, False)
    assert repr(ring) == "<ipcmap.Ring of 4096 bytes: open, 0 in use>"
    ring.put(b"record")
    ring.close()

    assert repr(ring) == "<ipcmap.Ring of 4096 bytes: closed, 16 in use>"
    assert (bool(ring), ring.closed) == (True, True)


# Close


def test_what_is_left_at_the_close_is_taken_and_no_more_is_put(ring: Ring) -> None:
    """Small, large and by the batch; a second close changes nothing."""
    ring.put_many([b"a", b"b", bytes(5000), b"c"])
    ring.close()
    ring.close()

    puts: list[Callable[[bytes], object]] = [
        ring.put,
        lambda data: ring.put(data * 5000),
        lambda data: ring.put_many([data]),
    ]
    for put in puts:
        with pytest.raises(ClosedError, match="72 of 4096 bytes in use; make another"):
            put(b"x")
    with pytest.raises(ClosedError), ring.claim(5):
        pass
    with pytest.raises(ClosedError), ring.claim(5000):
        pass
    with pytest.raises(ClosedError):
        ring.attach_producer()
    assert ring.get() == b"a"
    with ring.lease() as view:
        assert bytes(view) == b"b"
    assert ring.get_many() == [bytes(5000), b"c"]
    for timeout in (None, 0, 0.01):
        for take in (
            ring.get,
            lambda t: ring.get_many(timeout=t),
            lambda t: ring.lease(t).__enter__(),
        ):
            with pytest.raises(ClosedError, match="ring is closed: 0 of 4096"):
                take(timeout)
    assert len(ring) == 0


@pytest.mark.parametrize(
    "way", ["get", "get_many", "lease", "put", "put large", "put_many", "claim"]
)
def test_close_ends_every_wait(way: str, ring: Ring, fork: Fork) -> None:
    """Of several processes that sleep in the same call."""
    putting = way in ("put", "put large", "put_many", "claim")
    put = fill(ring, bytes(100)) if putting else 0

    def claim() -> None:
        with ring.claim(100):
            pass

    def put_large() -> None:
        for _ in range(10):
            ring.put(bytes(5000))

    calls: dict[str, Callable[[], object]] = {
        "get": ring.get,
        "get_many": ring.get_many,
        "lease": lambda: ring.lease().__enter__(),
        "put": lambda: ring.put(bytes(100)),
        "put large": put_large,
        "put_many": lambda: ring.put_many([bytes(100)]),
        "claim": claim,
    }

    def wait() -> None:
        with pytest.raises(ClosedError):
            calls[way]()

    children = [fork(wait) for _ in range(3)]
    while max(ring.statistics().waiting_consumers, ring.statistics().waiting_producers) < 3:
        os.sched_yield()
    ring.close()

    assert [child.wait() for child in children] == [0, 0, 0]
    assert ring.statistics().puts == len(ring) >= put


# Handles that travel


def test_a_ring_made_by_a_child_reaches_the_parent_through_another(
    ring: Ring, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """And outlives the child, with what is in it."""

    def child() -> None:
        own = ring_type(256, arena=arena)
        own.put(b"made after the fork")
        own.put(bytes(5000))
        ring.put(pickle.dumps(own))

    assert fork(child).wait() == 0
    arena.sweep()
    received = pickle.loads(ring.get())

    assert type(received) is type(ring)
    assert received.capacity == 256
    assert received.get_many() == [b"made after the fork", bytes(5000)]
    received.destroy()
    assert arena.statistics().blocks == 1


def test_a_ring_is_sent_to_a_child_that_runs(
    ring: Ring, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """It answers through the ring that it was sent."""

    def serve() -> None:
        pickle.loads(ring.get()).put(b"answer")

    child = fork(serve)
    answers = ring_type(256, arena=arena)
    ring.put(pickle.dumps(answers))

    assert answers.get() == b"answer"
    assert child.wait() == 0


def test_a_pickle_is_another_handle_of_the_same_ring(ring: Ring) -> None:
    """In one process too; nothing is copied."""
    other = pickle.loads(pickle.dumps(ring))
    ring.put(b"one")

    assert other.get() == b"one"
    other.close()
    assert ring.closed


def test_a_program_that_was_executed_did_not_inherit_the_ring(ring_type: type[Ring]) -> None:
    """Nor did a process that was forked before the arena was made."""
    ring = ring_type(256)
    program = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
    argv = [sys.executable, "-c", program, pickle.dumps(ring).hex()]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert NotInherited.__name__ in done.stderr
    assert "make it before this process is forked" in done.stderr
    ring.destroy()


def test_every_handle_of_a_destroyed_ring_is_stale(ring: Ring, arena: Arena) -> None:
    """As long as nobody has its place; its records are gone with it."""
    other, sent = pickle.loads(pickle.dumps(ring)), pickle.dumps(ring)
    ring.put_many([b"gone", bytes(5000), bytes(100_000)])
    ring.destroy()

    assert arena.statistics().blocks == 0
    for handle in (ring, other):
        calls: list[Callable[[], object]] = [
            lambda: handle.put(b"x"),  # noqa: B023
            lambda: handle.put_many([b"x"]),  # noqa: B023
            handle.get,
            handle.get_many,
            lambda: handle.lease().__enter__(),  # noqa: B023
            handle.statistics,
            handle.destroy,
            lambda: pickle.dumps(handle),  # noqa: B023
            lambda: handle.closed,  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(StaleHandle):
                call()
        assert "destroyed" in repr(handle)
    with pytest.raises(StaleHandle):
        pickle.loads(sent)


def test_a_stale_handle_never_touches_the_ring_that_has_its_place(
    ring: Ring, ring_type: type[Ring], arena: Arena
) -> None:
    """Neither what it puts nor what it takes is the next one's."""
    ring.destroy()
    heir = ring_type(ring.capacity, arena=arena)
    heir.put(b"the heir's")

    assert heir._cell.offset == ring._cell.offset
    for call in (partial(ring.put, b"x"), ring.get, partial(ring.get_many, 1), ring.close):
        with pytest.raises(StaleHandle):
            call()
    assert drained(heir) == [b"the heir's"]
    assert not heir.closed


def test_destroy_ends_the_waits_of_others(ring: Ring, fork: Fork) -> None:
    """They find it closed, or gone."""

    def wait() -> None:
        with pytest.raises((ClosedError, StaleHandle)):
            ring.get()

    children = [fork(wait) for _ in range(2)]
    while ring.statistics().waiting_consumers < 2:
        os.sched_yield()
    ring.destroy()

    assert [child.wait() for child in children] == [0, 0]


# What is freed


def test_a_ring_that_nobody_else_can_have_is_freed_with_its_last_handle(
    ring_type: type[Ring], arena: Arena
) -> None:
    """And so are the blocks of its records."""
    ring = ring_type(4096, arena=arena)
    ring.put_many([b"small", bytes(5000), bytes(100_000)])
    assert arena.statistics().blocks == 3
    del ring

    assert arena.statistics().blocks == 0


@pytest.mark.parametrize("way", ["fork", "pickle"])
def test_a_ring_that_was_shared_outlives_its_handles(
    way: str, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """Somebody may still come with its pickle; it is freed by destroy."""
    ring = ring_type(4096, arena=arena)
    ring.put_many([b"small", bytes(5000)])
    if way == "fork":
        fork(int).wait()
    sent = pickle.dumps(ring)
    del ring
    gc.collect()

    assert arena.statistics().blocks == 2
    ring = pickle.loads(sent)
    assert ring.get_many() == [b"small", bytes(5000)]
    ring.destroy()
    assert arena.statistics().blocks == 0


@pytest.mark.parametrize("capacity", [64, 4096, MIB])
def test_an_unshared_ring_of_a_process_that_was_killed_is_freed_with_its_records(
    capacity: int, ring_type: type[Ring], arena: Arena, fork: Fork
) -> None:
    """Whichever of its blocks the sweep comes to first."""

    def child() -> None:
        ring = ring_type(capacity, arena=arena)
        ring.put_many([bytes(5000), bytes(100_000)] if capacity > 64 else [bytes(5000)])
        os.kill(os.getpid(), signal.SIGKILL)

    assert fork(child).wait() == -signal.SIGKILL
    arena.sweep()

    assert arena.statistics().blocks == 0


def test_a_child_that_drops_its_handles_frees_nothing_of_its_parents(
    ring: Ring, arena: Arena, fork: Fork
) -> None:
    """Also where the ring was made while the parent alone had it."""
    handles = [ring]

    def child() -> None:
        handles.clear()
        gc.collect()

    del ring
    assert fork(child).wait() == 0
    handles[0].put(b"still there")
    assert handles[0].get() == b"still there"
    assert arena.statistics().blocks == 1


def test_a_ring_lives_in_the_arena_that_it_was_given(ring_type: type[Ring], arena: Arena) -> None:
    """The default one has nothing of it, neither the ring nor its records."""
    before = default_arena().statistics().blocks
    ring = ring_type(4096, arena=arena)
    ring.put(bytes(100_000))

    assert (default_arena().statistics().blocks, arena.statistics().blocks) == (before, 2)
    other = ring_type(4096)
    assert (default_arena().statistics().blocks, arena.statistics().blocks) == (before + 1, 2)
    del other
    ring.get()


def test_an_arena_cannot_be_closed_under_a_ring(ring_type: type[Ring]) -> None:
    """Once the handle is gone, it can."""
    arena = Arena(64 * MIB)
    ring = ring_type(4096, arena=arena)
    with pytest.raises(BusyError, match="cannot be closed under its views"):
        arena.close()
    ring.put(b"still works")
    assert ring.get() == b"still works"
    del ring

    arena.close()


def test_a_ring_and_its_arena_that_end_in_one_cycle_end_in_peace(ring_type: type[Ring]) -> None:
    """The garbage collector finalizes them in any order, and unmaps last."""

    class Owner:
        ring: Ring
        arena: Arena

        def __del__(self) -> None:
            seen.append(self.ring.get(0))

    seen: list[bytes] = []
    for first in ("ring", "arena"):
        owner = Owner()
        owner.arena = Arena(64 * MIB)
        owner.ring = ring_type(4096, arena=owner.arena)
        owner.ring.put(b"last")
        owner.itself = owner  # type: ignore[attr-defined]
        things: list[Any] = [owner.arena, owner.ring] if first == "arena" else [owner.ring]
        things += [things, owner]
        del owner, things
        gc.collect()

    assert seen == [b"last", b"last"]
