"""Listeners: descriptors that say when a ring has something."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import selectors
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from children import Fork
from ipcmap import ClosedError, Ring, Semaphore, StaleHandle
from ipcmap import listener as listener_module
from ipcmap._core import libc
from ipcmap._core.layout import Kind
from ipcmap._core.reference_cells import Cell
from ipcmap._core.reference_listeners import Listeners
from listening import PATIENCE, is_readable, receive
from rings import blocks, drained, taken

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]


# What readable means


def test_a_listener_is_readable_until_a_get_finds_nothing(
    ring_type: RingType, endless_timers: None
) -> None:
    """Not after the last record, but after the first Empty; whatever kind of get it was."""
    ring = ring_type()

    def lease() -> None:
        with ring.lease(timeout=0):
            pass

    with ring.listen() as listener:
        gets: list[Callable[[], object]] = [
            partial(ring.get, timeout=0),
            partial(ring.get_many, timeout=0),
            lease,
        ]
        for get in gets:
            assert not is_readable(listener)
            ring.put_many([b"one", b"two"])
            assert is_readable(listener)
            assert ring.get() == b"one"
            assert ring.get() == b"two"
            assert is_readable(listener)
            with pytest.raises(queue.Empty):
                get()
        assert not is_readable(listener)


@pytest.mark.parametrize("length", [0, 64, 1 << 17], ids=["none", "inline", "in a block"])
def test_every_kind_of_put_calls(ring_type: RingType, length: int, endless_timers: None) -> None:
    """One, many, or filled in place; in the ring or in a block."""
    ring = ring_type()

    def claim() -> None:
        with ring.claim(length):
            pass

    with ring.listen() as listener:
        puts: list[Callable[[], object]] = [
            partial(ring.put, bytes(length)),
            partial(ring.put_many, [bytes(length)]),
            claim,
        ]
        for put in puts:
            put()
            assert is_readable(listener)
            assert len(drained(ring)) == 1
            assert not is_readable(listener)


def test_a_listener_of_a_ring_with_records_is_readable_at_once(ring_type: RingType) -> None:
    """What came before it counts as well."""
    ring = ring_type()
    ring.put(b"early")
    with ring.listen() as listener:
        assert is_readable(listener)


def test_a_record_that_comes_between_an_empty_get_and_the_arming_is_seen(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch, endless_timers: None
) -> None:
    """The ring is looked at again when the pipe is drained: the byte may have been this one's."""
    ring = ring_type()
    with ring.listen() as listener:
        arm = Listeners.arm

        def put_first(*arguments: object) -> bool:
            monkeypatch.setattr(Listeners, "arm", arm)
            ring.put(b"between")
            return arm(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Listeners, "arm", put_first)
        assert taken(ring) is None
        assert is_readable(listener)
        assert taken(ring) == b"between"


def test_a_get_through_another_handle_quiets_it(ring_type: RingType, endless_timers: None) -> None:
    """The handle that listens and the one that gets need not be the same."""
    ring = ring_type()
    other = pickle.loads(pickle.dumps(ring))
    with ring.listen() as listener:
        other.put(b"x")
        assert is_readable(listener)
        assert drained(other) == [b"x"]
        assert not is_readable(listener)
    ring.destroy()


def test_the_end_is_readable_and_stays_so(ring_type: RingType, endless_timers: None) -> None:
    """As a socket whose peer has hung up."""
    ring = ring_type()
    with ring.listen() as listener:
        assert not is_readable(listener)
        ring.close()
        for _ in range(3):
            assert is_readable(listener)
            with pytest.raises(ClosedError):
                ring.get(0)
        with ring.listen() as late:
            assert is_readable(late)


def test_the_last_producer_to_detach_is_readable(ring_type: RingType, endless_timers: None) -> None:
    """The end by itself is an end."""
    ring = ring_type()
    with ring.listen() as listener, ring.attach_producer():
        assert not is_readable(listener)
    with ring.listen() as listener:
        assert is_readable(listener)
        with pytest.raises(ClosedError):
            ring.get(0)


def test_a_destroyed_ring_is_readable(ring_type: RingType, endless_timers: None) -> None:
    """The get then says what became of it, and the listener can still be closed."""
    at_first = blocks()
    ring = ring_type()
    listener = ring.listen()
    ring.destroy()
    assert is_readable(listener)
    with pytest.raises(StaleHandle):
        ring.get(0)
    with pytest.raises(StaleHandle):
        ring.listen()
    listener.close()
    assert blocks() == at_first


def test_all_listeners_are_called(ring_type: RingType, endless_timers: None) -> None:
    """The first to ask has the record, and the others look in vain and are quiet again."""
    ring = ring_type()
    first, second = ring.listen(), ring.listen()
    with first, second:
        for _ in range(3):
            ring.put(b"x")
            assert is_readable(first)
            assert is_readable(second)
            assert drained(ring) == [b"x"]
            assert not is_readable(first)
            assert not is_readable(second)


def test_a_handler_that_raises_as_a_listener_closes_leaves_the_others_as_they_are(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch, endless_timers: None
) -> None:
    """They are told of what was not found, and are quiet."""

    class Interrupting(dict[Any, Any]):
        def pop(self, *arguments: Any) -> Any:
            super().pop(*arguments)
            raise InterruptedError

    ring = ring_type()
    first, second = ring.listen(), ring.listen()
    with first, second:
        known = Interrupting(listener_module._listening)
        with monkeypatch.context() as patch, contextlib.suppress(InterruptedError):
            patch.setattr(listener_module, "_listening", known)
            first.close()
        monkeypatch.setattr(listener_module, "_listening", dict(known))
        ring.put(b"x")
        assert drained(ring) == [b"x"]
        assert not is_readable(second)


def test_a_handler_may_close_the_listener_that_is_being_armed(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its block is freed, and its pipe closed, by the call that the handler has interrupted."""
    at_first = blocks()
    ring = ring_type()
    listener = ring.listen()
    usual = Listeners.arm

    def arm(self: Listeners, cell: Cell, *rest: Any) -> bool:
        listener.close()
        assert listener.closed
        with pytest.raises(ClosedError):
            listener.fileno()
        assert self.allocator.tag(cell)[1] == Kind.LISTENER
        return usual(self, cell, *rest)

    monkeypatch.setattr(Listeners, "arm", arm)
    with pytest.raises(queue.Empty):
        ring.get(0)
    assert not listener._open
    ring.put(b"x")
    assert ring.get(0) == b"x"
    ring.destroy()
    assert blocks() == at_first


def test_a_producer_learns_of_each_new_listener(ring_type: RingType, endless_timers: None) -> None:
    """It looks for them once, and again when there is another."""
    ring = ring_type()
    for _ in range(3):
        with ring.listen() as listener:
            for _ in range(2):
                ring.put(b"x")
                assert is_readable(listener)
                assert drained(ring) == [b"x"]


def test_a_listener_is_called_once_until_its_process_has_looked(
    ring_type: RingType, endless_timers: None
) -> None:
    """Though others are armed and called meanwhile, each time anew."""
    ring = ring_type()
    with ring.listen() as idle, ring.listen() as busy:
        for _ in range(3):
            ring.put(b"x")
            assert is_readable(busy)
            assert ring.get() == b"x"
            busy._arm(ring._core.consumed())
        assert len(os.read(idle._pipe, 100)) == 1


def test_listeners_of_two_rings_know_their_own(ring_type: RingType, endless_timers: None) -> None:
    """One descriptor each, and one selector for both."""
    one, other = ring_type(), ring_type()
    with one.listen() as first, other.listen() as second, selectors.DefaultSelector() as selector:
        selector.register(first, selectors.EVENT_READ, one)
        selector.register(second, selectors.EVENT_READ, other)
        other.put(b"x")
        assert [key.data for key, _ in selector.select(0)] == [other]
        one.put(b"x")
        assert {key.data for key, _ in selector.select(0)} == {one, other}


def test_a_full_pipe_is_as_good_as_a_byte(ring_type: RingType, endless_timers: None) -> None:
    """No put waits for whoever does not read."""
    ring = ring_type()
    with ring.listen() as listener:
        with contextlib.suppress(BlockingIOError):
            while os.write(listener._pipe, bytes(4096)):
                pass
        ring.put(b"x")
        assert drained(ring) == [b"x"]
        assert not is_readable(listener)


# What it costs


def test_a_put_without_listeners_looks_for_none(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one whose listeners have been called already."""
    ring, calls = ring_type(), list[int]()
    call = ring._core.call_listeners

    def counted() -> None:
        calls.append(1)
        call()

    monkeypatch.setattr(ring._core, "call_listeners", counted)
    for _ in range(10):
        ring.put(b"x")
    assert calls == []
    drained(ring)
    with ring.listen():
        for _ in range(10):
            ring.put(b"x")
        assert calls == [1]


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "somebody listens"])
def test_a_put_makes_no_system_call_while_nobody_listens(
    ring_type: RingType, listens: bool, fork: Fork
) -> None:
    """In a process that may only read and write, any other ends it."""
    ring, mode, strict = ring_type(), 22, 1  # PR_SET_SECCOMP, SECCOMP_MODE_STRICT
    reading, writing = os.pipe()

    def put() -> None:
        for _ in range(100):
            ring.put(b"warm")
        drained(ring)
        keep = ring.listen() if listens else None
        libc.prctl(mode, strict, 0, 0, 0)
        for _ in range(100):
            ring.put(b"x")
        os.write(writing, b"done")
        del keep

    child = fork(put)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    assert said == (b"" if listens else b"done")
    assert child.wait() == -signal.SIGKILL
    ring.destroy()


# Loops


def test_asyncio_receives_ten_thousand_records_from_forked_producers(
    ring_type: RingType, fork: Fork
) -> None:
    """Each once, and those of one producer in order; the end ends the loop."""
    ring, each, producers = ring_type(4096), 2500, 4
    received: list[bytes] = []
    holding = ring.attach_producer()

    def produce(name: int) -> None:
        with ring.attach_producer():
            started.release()
            for number in range(each):
                ring.put(b"%d %d" % (name, number))

    started = Semaphore(0)
    children = [fork(produce, name) for name in range(producers)]
    for _ in children:
        started.acquire()
    holding.detach()

    async def main() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def get() -> None:
            try:
                received.extend(ring.get_many(100, timeout=0))
            except queue.Empty:
                pass
            except ClosedError:
                loop.remove_reader(listener)
                ended.set()

        with ring.listen() as listener:
            loop.add_reader(listener, get)
            await ended.wait()

    asyncio.run(main())

    assert [child.wait() for child in children] == [0] * producers
    by_producer: dict[int, list[int]] = {name: [] for name in range(producers)}
    for record in received:
        name, number = map(int, record.split())
        by_producer[name].append(number)
    assert by_producer == {name: [*range(each)] for name in range(producers)}
    ring.destroy()


@pytest.mark.parametrize("selector_type", [selectors.SelectSelector, selectors.PollSelector])
def test_every_selector_takes_a_listener(
    ring_type: RingType, selector_type: Callable[[], selectors.BaseSelector], fork: Fork
) -> None:
    """By its number, as a socket."""
    ring = ring_type(256)

    def produce() -> None:
        for number in range(500):
            ring.put(b"%d" % number)

    received: list[bytes] = []
    with ring.listen() as listener, selector_type() as selector:
        selector.register(listener, selectors.EVENT_READ)
        child = fork(produce)
        while len(received) < 500:
            assert selector.select(PATIENCE)
            received += drained(ring)
        assert child.wait() == 0
    assert received == [b"%d" % number for number in range(500)]
    ring.destroy()


def test_the_plainest_loop_misses_nothing(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """One get for each select; no timer helps it."""
    ring = ring_type(64)

    def produce() -> None:
        for number in range(1000):
            ring.put(b"%d" % number)

    with ring.listen() as listener:
        child = fork(produce)
        assert receive(ring, listener, 1000) == [b"%d" % number for number in range(1000)]
        assert child.wait() == 0
    ring.destroy()
