"""Producers that gave a ring their word: it ends with the last of them."""

from __future__ import annotations

import os
import pickle
import queue
import signal
from collections.abc import Callable

import pytest

from children import Fork, die
from ipcmap import Arena, ClosedError, Ring
from rings import blocks


@pytest.fixture
def told(ring_type: type[Ring]) -> Ring:
    """Another ring, by which a child tells where it is."""
    return ring_type(4096)


def ended(ring: Ring) -> bool:
    """Return whether nothing comes any more."""
    try:
        ring.get(0)
    except ClosedError:
        return True
    except queue.Empty:
        return False
    raise AssertionError("there was a record")


def test_a_ring_ends_when_the_last_attached_producer_has_left(ring: Ring, arena: Arena) -> None:
    """Not with the first; to detach twice is to detach once; what was put is taken."""
    first, last = ring.attach_producer(), ring.attach_producer()
    first.detach()
    first.detach()
    assert not ended(ring)
    with last:
        ring.put(b"all there is")

    assert ring.get() == b"all there is"
    assert ended(ring)
    with pytest.raises(ClosedError, match="make another"):
        ring.attach_producer()
    assert blocks(arena) == 1


def test_a_ring_without_attached_producers_goes_on(ring: Ring, fork: Fork) -> None:
    """Nobody promised anything, so nobody's death is the end."""
    assert fork(ring.put, b"one").wait() == 0
    assert ring.get() == b"one"
    assert not ended(ring)


DEATHS: dict[str, tuple[Callable[[], object], int]] = {
    "killed": (die, -signal.SIGKILL),
    "exited": (lambda: os._exit(3), 3),
}


@pytest.mark.parametrize("death", DEATHS)
def test_consumers_that_wait_are_told_the_end_when_the_last_producer_dies(
    death: str, ring: Ring, told: Ring, arena: Arena, fork: Fork
) -> None:
    """All of them, after the records that it had put."""
    end, code = DEATHS[death]

    def take_all() -> None:
        while True:
            told.put(ring.get())

    def consume() -> None:
        with pytest.raises(ClosedError):
            take_all()

    def produce() -> None:
        ring.attach_producer()
        told.put(b"attached")
        while ring.statistics().waiting_consumers < 3:
            os.sched_yield()
        ring.put_many([b"last", b"words"])
        end()

    consumers = [fork(consume) for _ in range(3)]
    producer = fork(produce)
    assert producer.wait() == code
    assert [child.wait() for child in consumers] == [0, 0, 0]

    assert sorted(told.get_many()) == [b"attached", b"last", b"words"]
    assert (ring.closed, blocks(arena)) == (True, 1)


def test_the_death_of_one_of_two_producers_is_not_the_end(
    ring: Ring, arena: Arena, fork: Fork
) -> None:
    """The other's word still holds."""
    with ring.attach_producer():

        def attach_and_die() -> None:
            ring.attach_producer()
            die()

        victim = fork(attach_and_die)
        assert victim.wait() == -signal.SIGKILL
        arena.sweep()
        assert not ended(ring)
        ring.put(b"on")
        assert ring.get() == b"on"

    assert ended(ring)


def test_a_promise_made_before_a_fork_is_the_parents_alone(
    ring: Ring, arena: Arena, fork: Fork
) -> None:
    """A child that takes it back, or dies, takes nothing back."""
    attachment = ring.attach_producer()
    assert fork(attachment.detach).wait() == 0
    arena.sweep()
    assert not ended(ring)
    attachment.detach()

    assert ended(ring)


def test_a_promise_to_a_destroyed_ring_ends_no_other(ring: Ring, arena: Arena) -> None:
    """Though that has its place by now."""
    attachment = ring.attach_producer()
    pickle.dumps(ring)
    ring.destroy()
    other = type(ring)(4096, arena=arena)
    attachment.detach()

    assert not ended(other)
    assert blocks(arena) == 1
