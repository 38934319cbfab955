"""Attached producers: the ring ends with the last of them, however it goes."""

from __future__ import annotations

import contextlib
import os
import signal
from itertools import count

import pytest

from children import Fork, die
from ipcmap import ClosedError, Ring
from ipcmap._core import reference_sections as sections
from ipcmap._core.layout import Kind
from ipcmap._deadline import Deadline
from ring_harness import Stores, at_each_store
from rings import blocks

pytestmark = pytest.mark.usefixtures("collected")

BOTH = pytest.mark.parametrize("before", [True, False])


class Raised(Exception):
    """What a signal handler raises."""


def interrupt() -> None:
    """Raise, as a signal handler might."""
    raise Raised


def has_ended(ring: Ring) -> bool:
    """Return whether it is closed, as it can be from one moment to the next."""
    return ring.closed


def test_the_ring_ends_when_the_last_has_detached() -> None:
    """Not with the first; and twice is once."""
    ring = Ring()
    first, last = ring.attach_producer(), ring.attach_producer()
    first.detach()
    first.detach()
    assert not has_ended(ring)

    last.detach()

    assert has_ended(ring)
    with pytest.raises(ClosedError):
        ring.attach_producer()


def test_one_who_attaches_while_the_last_leaves_is_refused_or_keeps_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the count and the end nobody is attached."""
    ring = Ring()
    last, core = ring.attach_producer(), ring._core
    close, attached = core.close, list[object]()

    def attach_first(*arguments: object) -> None:
        monkeypatch.undo()
        with contextlib.suppress(ClosedError):
            attached.append(ring.attach_producer())
        close(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(core, "close", attach_first)
    last.detach()

    assert has_ended(ring) == (not attached)


@BOTH
def test_a_producer_killed_at_any_store_of_attach_or_detach_ends_the_ring(
    before: bool, fork: Fork
) -> None:
    """If it had attached, the sweep leaves in its place; nothing of it stays."""
    ended = []
    for store in count(1):
        at_first, ring = blocks(), Ring(64)

        def attach(ring: Ring = ring, store: int = store) -> None:
            at_each_store(ring, store, before, lambda: ring.attach_producer().detach())

        status = fork(attach).wait()
        ring._arena.sweep()
        ended.append(ring.closed)
        ring.close()
        ring.destroy()
        assert blocks() == at_first, f"{store=}"
        if status == 0:
            break
        assert status == -signal.SIGKILL

    assert ended == sorted(ended), "once it was attached it ends the ring"
    assert ended[-1]
    assert not ended[0]


@BOTH
def test_a_sweeper_killed_at_any_store_ends_the_ring_once_and_for_all(
    before: bool, fork: Fork
) -> None:
    """The next sweep counts again."""

    def attach_and_die(ring: Ring) -> None:
        ring.attach_producer()
        die()

    for store in count(1):
        at_first, ring = blocks(), Ring(64)
        assert fork(attach_and_die, ring).wait() == -signal.SIGKILL
        status = fork(at_each_store, ring, store, before, ring._arena.sweep).wait()
        ring._arena.sweep()

        assert has_ended(ring)
        with pytest.raises(ClosedError):
            ring.get()
        with pytest.raises(ClosedError):
            ring.put(b"x")
        ring.destroy()
        assert blocks() == at_first, f"{store=}"
        if status == 0:
            break


def test_a_consumer_that_waits_learns_that_the_last_producer_was_killed(fork: Fork) -> None:
    """After what it had put."""
    ring = Ring(64)

    def produce() -> None:
        ring.attach_producer()
        ring.put(b"all" * 50)
        die()

    fork(produce).wait()

    assert ring.get(30) == b"all" * 50
    with pytest.raises(ClosedError):
        ring.get(30)
    ring.destroy()


def test_a_slow_sweeper_does_not_bring_back_a_block_that_a_faster_one_freed(
    monkeypatch: pytest.MonkeyPatch, fork: Fork
) -> None:
    """Both leave for the same dead producer; its cell has another owner before the slow one stores."""
    ring = Ring(64)

    def attach_and_die() -> None:
        ring.attach_producer()
        die()

    fork(attach_and_die).wait()
    allocator, arena = ring._allocator, ring._arena
    pass_on, stores = type(allocator).pass_on, []

    def counted(self: object, cell: object, owner: int, kind: int) -> object:
        stores.append(kind)
        return pass_on(self, cell, owner, kind)  # type: ignore[arg-type]

    (cell,) = [cell for cell in allocator.of_kind(Kind.PRODUCER) if ring._core.is_ours(cell)]
    owner, _ = allocator.tag(cell)
    monkeypatch.setattr(type(allocator), "pass_on", counted)
    forever = Deadline(None)
    ring._core.leave(cell, owner, lambda: True, forever)
    ring._core.leave(cell, owner, lambda: True, forever)

    assert stores == [Kind.LEAVING]
    arena.sweep()
    ring._core.leave(cell, owner, lambda: True, forever)
    assert stores == [Kind.LEAVING]
    ring.destroy()


@BOTH
def test_a_handler_that_raises_at_any_store_of_attach_or_detach_leaves_no_promise(
    before: bool, fork: Fork
) -> None:
    """An attach that raised is none; a detach that raised can be made again."""

    def run(ring: Ring, store: int) -> None:
        Stores(store, before, interrupt).watch(ring)
        try:
            attachment = ring.attach_producer()
        except Raised:
            assert not [c for c in ring._allocator.of_kind(Kind.PRODUCER) if ring._core.is_ours(c)]
            os._exit(3)
        try:
            attachment.detach()
        except Raised:
            attachment.detach()
            assert has_ended(ring)
            os._exit(3)
        assert has_ended(ring)

    for store in count(1):
        at_first, ring = blocks(), Ring(64)
        code = fork(run, ring, store).wait()
        assert code in (0, 3), f"{store=}"
        for section in (ring._core._producers_section, ring._core._consumers_section):
            assert sections.trylock(section) == 0
            sections.unlock(section)
        ring._arena.sweep()
        ring.destroy()
        assert blocks() == at_first, f"{store=}"
        if code == 0:
            break


def test_an_attachment_belongs_to_the_process_that_made_it(fork: Fork) -> None:
    """A child that leaves the with block it was forked in ends nothing."""
    ring = Ring()

    def leave() -> None:
        attachment.detach()

    with ring.attach_producer() as attachment:
        assert fork(leave).wait() == 0
        ring._arena.sweep()
        assert not has_ended(ring)
    assert has_ended(ring)
    ring.destroy()
