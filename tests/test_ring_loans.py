"""What a ring lends for the time of a with block: records to fill, and records to read."""

from __future__ import annotations

import os
import queue
import signal
from typing import Any

import numpy as np
import pytest

from children import Child, Fork
from ipcmap import Arena, BusyError, ClosedError, Ring
from ipcmap._core.layout import SWEPT_AT
from ipcmap.loans import Claim, Lease
from rings import blocks, fill

LENGTHS = [0, 5, 2040, 2041, 100_000]  # from 2041 on in a block
SMALL_AND_LARGE = pytest.mark.parametrize("length", [100, 100_000], ids=["inline", "block"])


class Raised(Exception):
    """What a with block raises."""


@pytest.fixture
def told(ring_type: type[Ring]) -> Ring:
    """Another ring, by which a child tells where it is."""
    return ring_type(4096)


def keep_a_view(loan: Claim | Lease, kind: str, raises: bool, kept: list[Any]) -> None:
    """Enter a loan, and keep a slice or an array beyond its end."""
    with loan as view:
        kept.append(view[:] if kind == "slice" else np.frombuffer(view, "u1"))
        if raises:
            raise Raised


def holder(ring: Ring, told: Ring, fork: Fork, records: int = 1) -> Child:
    """Return a child that holds leases of the next records, once it does."""

    def hold() -> None:
        leases = [ring.lease() for _ in range(records)]
        for lease in leases:
            told.put(bytes(lease.__enter__()[:100]))
        signal.pause()

    child = fork(hold)
    for _ in range(records):
        told.get()
    return child


# Claims


@pytest.mark.parametrize("length", LENGTHS)
def test_a_claim_is_put_at_the_end_of_its_block(length: int, ring: Ring, arena: Arena) -> None:
    """Not before, and the ring is not held meanwhile."""
    with ring.claim(length) as view:
        assert (view.nbytes, view.readonly, view.format) == (length, False, "B")
        view[:] = b"c" * length
        ring.put(b"earlier")
        assert len(ring) == 1

    assert ring.get_many() == [b"earlier", b"c" * length]
    assert blocks(arena) == 1


@SMALL_AND_LARGE
@pytest.mark.parametrize("error", [Raised, KeyboardInterrupt])
def test_an_exception_aborts_a_claim(
    length: int, error: type[BaseException], ring: Ring, arena: Arena
) -> None:
    """It comes out unchanged, nothing is put, and the room is freed."""

    def raise_in_block() -> None:
        with ring.claim(length) as view:
            view[:] = bytes(length)
            raise error

    with pytest.raises(error):
        raise_in_block()

    assert len(ring) == 0
    assert blocks(arena) == 1


@SMALL_AND_LARGE
def test_the_view_of_a_loan_is_dead_after_its_block(length: int, ring: Ring) -> None:
    """Whatever is done with it raises."""
    with ring.claim(length) as written:
        written[:] = b"x" * length
    with ring.lease() as read:
        assert read[0] == ord("x")

    for view in (written, read):
        with pytest.raises(ValueError, match="released memoryview"):
            view[0]
        with pytest.raises(ValueError, match="released memoryview"):
            bytes(view)
    with pytest.raises(ValueError, match="released memoryview"):
        written[0] = 1


@SMALL_AND_LARGE
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("kind", ["slice", "array"])
def test_a_claim_with_views_alive_is_aborted_and_its_room_is_theirs_till_they_go(
    kind: str, raises: bool, length: int, ring: Ring, arena: Arena
) -> None:
    """What is written through them reaches nobody else's bytes."""
    kept: list[Any] = []
    with pytest.raises(Raised if raises else BusyError, match=None if raises else "was aborted"):
        keep_a_view(ring.claim(length), kind, raises, kept)
    ring.put(b"o" * length)
    np.frombuffer(kept[0], "u1")[:] = 0
    assert ring.get() == b"o" * length
    kept.clear()

    assert len(ring) == 0
    assert blocks(arena) == 1


@SMALL_AND_LARGE
def test_a_claim_that_finds_no_room_in_time_is_full_and_leaves_nothing(
    length: int, ring: Ring, arena: Arena
) -> None:
    """As put does; its timeout counts from the end of the block."""
    put = fill(ring)
    with pytest.raises(queue.Full), ring.claim(length, 0.01):
        pass
    ring.close()
    with pytest.raises(ClosedError), ring.claim(length):
        pass

    assert ring.get_many() == [b"full"] * put
    assert blocks(arena) == 1


def test_a_claim_of_a_length_that_is_none_is_refused(ring: Ring) -> None:
    """At the call."""
    with pytest.raises(ValueError, match="must not be negative: nbytes=-1"):
        ring.claim(-1)
    with pytest.raises(TypeError, match="nbytes"):
        ring.claim(1.5)  # type: ignore[arg-type]


def test_a_loan_is_for_one_block(ring: Ring) -> None:
    """To enter it again is an error, also inside, and the first goes on."""
    ring.put(b"a")
    claim, lease = ring.claim(1), ring.lease()
    for loan in (claim, lease):
        with loan as view:
            with pytest.raises(BusyError, match="was entered before; ask the ring for another"):
                loan.__enter__()
            assert bytes(view) in (b"\0", b"a")
        with pytest.raises(BusyError, match="entered before"):
            loan.__enter__()

    assert ring.get() == b"\0"


@SMALL_AND_LARGE
def test_a_claim_opened_before_a_fork_is_the_parents_alone(
    length: int, ring: Ring, arena: Arena, fork: Fork
) -> None:
    """A child that leaves the block, or dies, neither puts nor frees it."""
    with ring.claim(length) as view:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            arena.sweep()
            view[:] = b"p" * length
    if not pid:
        os._exit(0)

    assert ring.get(0) == b"p" * length
    with pytest.raises(queue.Empty):
        ring.get(0)
    assert blocks(arena) == 1


@SMALL_AND_LARGE
def test_a_claim_whose_holder_is_killed_never_was(
    length: int, ring: Ring, arena: Arena, fork: Fork
) -> None:
    """Its room is freed."""

    def child() -> None:
        with ring.claim(length) as view:
            view[:] = bytes(length)
            os.kill(os.getpid(), signal.SIGKILL)

    assert fork(child).wait() == -signal.SIGKILL
    assert blocks(arena) == 1
    assert len(ring) == 0


@SMALL_AND_LARGE
def test_a_loan_that_nobody_can_end_any_more_is_undone(
    length: int, ring: Ring, arena: Arena
) -> None:
    """As when a signal handler raises on the way into its block: aborted, or to come again."""
    ring.claim(length).__enter__()
    ring.put(b"l" * length)
    view = ring.lease().__enter__()

    with pytest.raises(ValueError, match="released memoryview"):
        view[0]
    assert len(ring) == 1
    assert ring.get(0) == b"l" * length
    assert blocks(arena) == 1


# Leases


@pytest.mark.parametrize("length", LENGTHS)
def test_a_lease_shows_the_oldest_record_and_frees_it_at_the_end(
    length: int, ring: Ring, arena: Arena
) -> None:
    """Read-only, and taken out of the ring at once."""
    ring.put_many([b"l" * length, b"next"])
    with ring.lease() as view:
        assert (bytes(view), view.readonly, view.format) == (b"l" * length, True, "B")
        assert not np.frombuffer(view, "u1").flags.writeable if length else True
        with pytest.raises(TypeError):
            view[:] = bytes(length)
        assert (len(ring), ring.statistics().gets) == (1, 1)
        assert ring.get() == b"next"
        assert blocks(arena) == 2

    assert blocks(arena) == 1


@SMALL_AND_LARGE
def test_an_exception_in_the_block_of_a_lease_ends_it(
    length: int, ring: Ring, arena: Arena
) -> None:
    """The record was taken, and does not come again."""
    ring.put(bytes(length))
    with pytest.raises(Raised), ring.lease():
        raise Raised

    assert len(ring) == 0
    assert blocks(arena) == 1


@SMALL_AND_LARGE
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("kind", ["slice", "array"])
def test_a_lease_with_views_alive_lasts_until_they_go(
    kind: str, raises: bool, length: int, ring: Ring, arena: Arena
) -> None:
    """They show the record, whatever is put meanwhile."""
    ring.put(b"l" * length)
    kept: list[Any] = []
    with pytest.raises(Raised if raises else BusyError, match=None if raises else "cannot end"):
        keep_a_view(ring.lease(), kind, raises, kept)
    for _ in range(3):
        ring.put(b"o" * length)
        ring.get()

    assert blocks(arena) == 2
    assert bytes(kept[0]) == b"l" * length
    kept.clear()
    assert blocks(arena) == 1


@SMALL_AND_LARGE
def test_a_lease_opened_before_a_fork_is_the_parents_alone(
    length: int, ring: Ring, arena: Arena
) -> None:
    """A child that leaves the block, or dies in it, changes nothing."""
    ring.put(b"p" * length)
    with ring.lease() as view:
        for dies in (True, False):
            pid = os.fork()
            if not pid and dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if not pid:
                break
            os.waitpid(pid, 0)
            assert blocks(arena) == 2
        if pid:
            assert bytes(view) == b"p" * length
    if not pid:
        os._exit(0)

    assert len(ring) == 0
    assert blocks(arena) == 1


@SMALL_AND_LARGE
@pytest.mark.parametrize("way", ["get", "get_many", "lease"])
def test_a_leased_record_comes_again_when_its_holder_is_killed(
    way: str, length: int, ring: Ring, told: Ring, arena: Arena, fork: Fork
) -> None:
    """Also to one who waits in vain already, and once."""
    ring.put(b"l" * length)
    child = holder(ring, told, fork)
    assert (len(ring), ring.statistics().gets) == (0, 1)

    def take() -> None:
        if way == "get":
            told.put(ring.get())
        elif way == "get_many":
            told.put_many(ring.get_many())
        else:
            with ring.lease() as view:
                told.put(view)

    taker = fork(take)
    while not ring.statistics().waiting_consumers:
        os.sched_yield()
    child.kill()

    assert told.get() == b"l" * length
    assert taker.wait() == 0
    with pytest.raises(queue.Empty):
        ring.get(0)
    assert (len(ring), blocks(arena)) == (0, 1)


@pytest.mark.parametrize("way", ["get", "get_many", "lease"])
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_who_brings_a_record_back_at_the_end_of_its_time_has_it(
    way: str, timeout: float, ring: Ring, told: Ring, arena: Arena, fork: Fork
) -> None:
    """Nobody has looked after the family since the holder was killed."""
    ring.put(b"left behind")
    holder(ring, told, fork).kill()
    arena._open().words[SWEPT_AT] = 0

    if way == "get":
        assert ring.get(timeout) == b"left behind"
    elif way == "get_many":
        assert ring.get_many(timeout=timeout) == [b"left behind"]
    else:
        with ring.lease(timeout) as view:
            assert bytes(view) == b"left behind"
    with pytest.raises(queue.Empty):
        ring.get(0)


def test_records_that_come_again_are_counted_and_keep_their_order(
    ring: Ring, told: Ring, arena: Arena, fork: Fork
) -> None:
    """The oldest first, whoever died first."""
    records = [b"%d" % number * (1 if number % 2 else 3000) for number in range(7)]
    ring.put_many(records)
    holders = [holder(ring, told, fork, 2) for _ in range(3)]
    for child in reversed(holders):
        child.kill()
        arena.sweep()

    assert len(ring) == ring.statistics().backlog_records == 7
    assert [ring.get(0) for _ in records] == records
    assert (len(ring), blocks(arena)) == (0, 1)


@SMALL_AND_LARGE
def test_a_leased_record_comes_again_in_a_closed_ring(
    length: int, ring: Ring, told: Ring, fork: Fork
) -> None:
    """The end is told once there is nothing that could come again."""
    ring.put(b"l" * length)
    child = holder(ring, told, fork)
    ring.close()
    with pytest.raises(ClosedError):
        ring.get()
    child.kill()

    assert ring.get() == b"l" * length
    with pytest.raises(ClosedError):
        ring.get()


def test_a_lease_outlives_close_and_destroy(ring: Ring, arena: Arena) -> None:
    """Its block is the holder's own."""
    ring.put_many([b"l" * 3000, b"left"])
    with ring.lease() as view:
        ring.destroy()
        assert bytes(view) == b"l" * 3000
        assert blocks(arena) == 1

    assert blocks(arena) == 0


def test_a_record_leased_from_a_ring_that_was_destroyed_is_freed_with_its_holder(
    ring: Ring, told: Ring, arena: Arena, fork: Fork
) -> None:
    """There is no ring that it could come again in, not even one at the same place."""
    ring.put_many([b"a" * 100, b"b" * 3000])
    child = holder(ring, told, fork, 2)
    ring.destroy()
    child.kill()
    again = type(ring)(4096, arena=arena)

    assert blocks(arena) == 1
    assert len(again) == 0
