"""Listeners whose producers die or stop at any store, and listeners that die themselves."""

from __future__ import annotations

import os
import queue
import random
import signal
from itertools import count

import pytest

from children import Fork, die
from ipcmap import ClosedError, Listener, Ring, Semaphore
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_listeners import write_to
from ipcmap._deadline import Deadline
from listening import PATIENCE, is_readable
from ring_harness import Stores, at_each_store, put_and_die
from rings import blocks, drained, taken

pytestmark = pytest.mark.usefixtures("collected")

BOTH = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])


class Raised(Exception):
    """What a signal handler raises."""


def interrupt() -> None:
    """Raise, as a signal handler might."""
    raise Raised


def until_ended(ring: Ring, listener: Listener) -> list[bytes]:
    """Take records whenever the listener is readable, up to the end."""
    records = []
    while True:
        assert is_readable(listener, PATIENCE)
        try:
            while True:
                records.append(ring.get(0))
        except queue.Empty:
            pass
        except ClosedError:
            return records


@BOTH
@pytest.mark.usefixtures("short_slices")
def test_a_producer_killed_at_any_store_of_a_put_leaves_nobody_waiting(
    before: bool, fork: Fork
) -> None:
    """What it has committed is told by whoever comes next, or by the timer; and its end as well."""
    for store in count(1):
        ring, attached, armed = Ring(256), Semaphore(0), Semaphore(0)
        holding = ring.attach_producer()
        child = fork(put_and_die, ring, attached, armed, store, before)
        attached.acquire()
        holding.detach()
        with ring.listen() as listener:
            assert not is_readable(listener)
            armed.release()
            records = until_ended(ring, listener)
        status = child.wait()
        committed = ring.statistics().puts
        ring.destroy()

        assert len(records) == committed, f"{store=}"
        if status == 0:
            assert records == [b"x"]
            break
        assert status == -signal.SIGKILL
    assert store > 5, "the stores of the call are among them"


@pytest.mark.parametrize("step", ["readlink", "open", "fstat", "write", "close"])
def test_a_producer_killed_on_its_way_to_the_pipe_leaves_nobody_waiting(
    ring_type: type[Ring], step: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is there and its byte may not be."""
    ring = ring_type()

    def produce() -> None:
        monkeypatch.setattr(os, step, lambda *_: die())
        ring.put(b"x")

    with ring.listen() as listener:
        assert taken(ring) is None
        assert fork(produce).wait() == -signal.SIGKILL
        assert is_readable(listener, PATIENCE)
        assert drained(ring) == [b"x"]
        ring.put(b"next")
        assert is_readable(listener, PATIENCE)
        assert drained(ring) == [b"next"]
    ring.destroy()


def test_the_death_of_the_last_attached_producer_is_readable(
    ring_type: type[Ring], fork: Fork
) -> None:
    """Where all the others wait for descriptors, a timer makes one of them sweep."""
    ring, attached = ring_type(), Semaphore(0)

    def produce() -> None:
        ring.attach_producer()
        attached.release()
        die()

    child = fork(produce)
    attached.acquire()
    with ring.listen() as listener:
        assert child.wait() == -signal.SIGKILL
        assert until_ended(ring, listener) == []
    ring.destroy()


def test_a_lease_whose_holder_dies_is_readable_again(ring_type: type[Ring], fork: Fork) -> None:
    """The record comes back to whoever listens."""
    ring = ring_type()

    def lease_and_die() -> None:
        ring.lease().__enter__()
        die()

    ring.put(b"x")
    assert fork(lease_and_die).wait() == -signal.SIGKILL
    with ring.listen() as listener:
        while not (records := drained(ring)):
            assert is_readable(listener, PATIENCE)
    assert records == [b"x"]
    ring.destroy()


@BOTH
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_whoever_is_broken_off_while_it_listens_leaves_no_block(
    how: str, before: bool, fork: Fork
) -> None:
    """At any store of listen, of a get that arms, and of close; puts of others go on."""

    def listen(ring: Ring) -> None:
        with ring.listen() as listener:
            assert taken(ring) is None
            assert not is_readable(listener)

    def broken_off(ring: Ring, store: int) -> None:
        if how == "kill":
            at_each_store(ring, store, before, lambda: listen(ring))
            return
        descriptors = os.listdir("/proc/self/fd")
        Stores(store, before, interrupt).watch(ring)
        try:
            listen(ring)
        except Raised:
            assert os.listdir("/proc/self/fd") == descriptors
            ring._arena.sweep()
            os._exit(7)

    for store in count(1):
        at_first, ring = blocks(), Ring(64)
        ring._share()
        status = fork(broken_off, ring, store).wait()
        ring.put(b"x")
        ring._arena.sweep()
        assert drained(ring) == [b"x"]
        with ring.listen() as listener:
            assert not is_readable(listener)
            ring.put(b"y")
            assert is_readable(listener)
        ring.destroy()
        assert blocks() == at_first, f"{store=}"
        if status == 0:
            break
        assert status == (-signal.SIGKILL if how == "kill" else 7), f"{store=}"
    assert store > 10, "the stores of the calls are among them"


@BOTH
def test_a_get_that_a_handler_breaks_off_leaves_the_listener_readable_in_time(
    before: bool, fork: Fork
) -> None:
    """At any store of a get that finds nothing: the timer is set before the pipe is drained."""

    def listen(store: int) -> None:
        ring = Ring(64)
        with ring.listen() as listener:
            ring.put(b"early")
            assert ring.get(0) == b"early"
            stores = Stores(store, before, interrupt)
            stores.watch(ring)
            with pytest.raises((queue.Empty, Raised)):
                ring.get(0)
            stores.left = -1  # no more
            ring.put(b"x")
            assert is_readable(listener, PATIENCE)
            assert drained(ring) == [b"x"]

    for store in range(1, 8):
        assert fork(listen, store).wait() == 0, f"{store=}"


def test_a_handler_that_raises_on_the_way_to_a_pipe_leaves_no_descriptor(
    fork: Fork, chance: random.Random
) -> None:
    """Wherever it does: the pipe is opened and noted in one step."""

    def write() -> None:
        signal.signal(signal.SIGALRM, lambda *_: interrupt())
        broken_off = 0
        with Ring().listen() as listener:
            found, at_first = os.fstat(listener._pipe), os.listdir("/proc/self/fd")
            target = os.getpid(), listener._pipe, found.st_dev, found.st_ino
            for _ in range(2000):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-6, 60e-6))
                        write_to(target)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Raised:
                    broken_off += 1
            assert os.listdir("/proc/self/fd") == at_first
        assert broken_off > 100

    assert fork(write).wait() == 0


def test_a_killed_listener_costs_one_put_a_look(ring_type: type[Ring], fork: Fork) -> None:
    """Its block is the sweep's, other listeners are called, and sleepers are woken."""
    listening = Semaphore(0)
    at_first, ring = blocks(), ring_type()

    def listen() -> None:
        listener = ring.listen()
        assert not is_readable(listener)
        listening.release()
        die()

    def sleep() -> None:
        assert ring.get(PATIENCE)

    child = fork(listen)
    listening.acquire()
    assert child.wait() == -signal.SIGKILL
    with ring.listen() as listener:
        sleeper = fork(sleep)
        while not ring._core._words[at.CONSUMERS_SLEEPING] & at.SLEEPING:
            os.sched_yield()
        ring.put_many([b"x", b"x"])
        assert ring._core._words[at.CONSUMERS_SLEEPING] <= at.SLEEPING
        assert is_readable(listener)
        assert taken(ring) == b"x"
        assert sleeper.wait() == 0
    ring.destroy()
    assert blocks() == at_first


def test_a_stopped_listener_holds_up_nobody(ring_type: type[Ring], fork: Fork) -> None:
    """It is called once, puts and other consumers go on, and it finds the rest when it goes on."""
    ring, results = ring_type(64), ring_type(64)

    def listen() -> None:
        with ring.listen() as listener:
            assert taken(ring) is None
            results.put(b"listening")
            records: list[bytes] = []
            while b"last" not in records:
                assert is_readable(listener, PATIENCE)
                records += drained(ring)
        results.put(b"done")

    child = fork(listen)
    assert results.get(PATIENCE) == b"listening"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    for _ in range(100):
        ring.put(b"x", PATIENCE)
        assert taken(ring) == b"x"
    ring.put(b"last")
    os.kill(child.pid, signal.SIGCONT)
    assert results.get(PATIENCE) == b"done"
    assert child.wait() == 0
    ring.destroy()
    results.destroy()


def test_a_producer_stopped_in_its_section_holds_up_no_get(
    ring_type: type[Ring], fork: Fork
) -> None:
    """A get that cannot arm says Empty all the same, and its listener looks again by its timer."""
    ring = ring_type()

    def stop() -> None:
        sections.inside(
            ring._core._producers_section, Deadline(None), os.kill, os.getpid(), signal.SIGSTOP
        )
        ring.put(b"x")

    with ring.listen() as listener:
        child = fork(stop)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert taken(ring) is None
        assert is_readable(listener, PATIENCE)
        assert taken(ring) is None
        os.kill(child.pid, signal.SIGCONT)
        while not (records := drained(ring)):
            assert is_readable(listener, PATIENCE)
        assert records == [b"x"]
        assert child.wait() == 0
    ring.destroy()


def test_every_record_arrives_while_producers_and_listeners_are_killed(
    ring_type: type[Ring], fork: Fork, chance: random.Random
) -> None:
    """Each record whose put returned is taken by somebody who listens, or was in a dead one's hand."""
    ring, results = ring_type(4096), ring_type(1 << 16)
    acknowledged = ring_type(1 << 16)

    def produce(name: int) -> None:
        for number in count():
            ring.put(b"%d %d" % (name, number))
            acknowledged.put(b"%d %d" % (name, number))

    def listen() -> None:
        with ring.listen() as listener:
            while True:
                assert is_readable(listener, PATIENCE)
                for record in iter(lambda: taken(ring), None):
                    results.put(record)

    put, received = list[bytes](), list[bytes]()
    consumers = [fork(listen) for _ in range(2)]
    killed = 0
    for round_number in range(10):
        producer = fork(produce, round_number)
        want = chance.randrange(20, 200)
        while want:
            put.append(acknowledged.get(PATIENCE))
            want -= 1
            received += drained(results)
        producer.kill()
        put += drained(acknowledged)
        if round_number % 3 == 0:
            consumers.pop(0).kill()
            killed += 1
            consumers.append(fork(listen))
        received += drained(results)
    while len({*put} - {*received}) > killed:
        received.append(results.get(PATIENCE))
    for consumer in consumers:
        consumer.kill()
    received += drained(results)

    assert len(received) == len({*received})
    assert len({*put} - {*received}) <= killed
    for each in (ring, results, acknowledged):
        each.destroy()
