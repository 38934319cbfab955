"""Listeners: descriptors that say when a ring has something."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import select
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import pytest

from children import Fork
from ipcmap import Arena, ClosedError, Listener, Process, Ring, Semaphore, StaleHandle
from ipcmap import listener as listener_module
from ipcmap._core import libc
from ipcmap._core import reference_ring_listeners as listeners
from ipcmap._core import ring_layout as at
from rings import blocks, drained, taken

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]
PATIENCE = 30.0  # seconds; nothing here takes so long, unless it hangs


def is_readable(listener: Listener, seconds: float = 0) -> bool:
    """Return whether a listener is readable, or becomes so in time."""
    return bool(select.select([listener], [], [], seconds)[0])


def receive(ring: Ring, listener: Listener, count: int) -> list[bytes]:
    """Take so many records, by the plainest loop: wait, try once, again."""
    records: list[bytes] = []
    while len(records) < count:
        assert is_readable(listener, PATIENCE)
        record = taken(ring)
        records += [] if record is None else [record]
    return records


@pytest.fixture
def endless_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no timer ring: what is not called sleeps for ever."""
    never = libc.TimerSpec(libc.TimeSpec(0, 0), libc.TimeSpec(3600, 0))
    monkeypatch.setattr(listener_module, "_SLICE", never)


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
        arm = ring._core.arm

        def put_first(*arguments: object) -> bool:
            monkeypatch.undo()
            ring.put(b"between")
            return arm(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(ring._core, "arm", put_first)
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


# Processes


def test_a_worker_that_got_the_ring_by_pickle_calls_a_later_listener(
    engine: str, endless_timers: None, fork: Fork
) -> None:
    """It was forked before there was a ring, and opens the pipe by its name in /proc."""
    arena = Arena(1 << 24, backend=engine)
    mail, answers = Ring(arena=arena), Ring(arena=arena)

    def work() -> None:
        while ring := pickle.loads(mail.get()):
            ring.put(b"from a worker")
            answers.put(b"done")

    worker = fork(work)
    ring = Ring(arena=arena)
    with ring.listen() as listener:
        for _ in range(2):
            assert not is_readable(listener)
            mail.put(pickle.dumps(ring))
            assert answers.get(PATIENCE) == b"done"
            assert is_readable(listener)
            assert drained(ring) == [b"from a worker"]
    mail.put(pickle.dumps(None))
    assert worker.wait() == 0


def test_a_worker_that_got_the_ring_by_pickle_listens(engine: str, fork: Fork) -> None:
    """And is called by the parent."""
    arena = Arena(1 << 24, backend=engine)
    mail, answers = Ring(arena=arena), Ring(arena=arena)

    def work() -> None:
        ring = pickle.loads(mail.get())
        with ring.listen() as listener:
            answers.put(b"listening")
            answers.put(b"".join(receive(ring, listener, 3)))

    worker = fork(work)
    ring = Ring(arena=arena)
    mail.put(pickle.dumps(ring))
    assert answers.get(PATIENCE) == b"listening"
    for _ in range(3):
        ring.put(b"x")
    assert answers.get(PATIENCE) == b"xxx"
    assert worker.wait() == 0


def test_a_listener_belongs_to_the_process_that_made_it(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """In a child it is closed, and its end there means nothing to the parent."""
    ring = ring_type()
    listener = ring.listen()
    descriptors = len(os.listdir("/proc/self/fd"))

    def leave() -> None:
        assert listener.closed
        assert len(os.listdir("/proc/self/fd")) == descriptors - 3
        with pytest.raises(ClosedError, match="make another"):
            listener.fileno()
        assert taken(ring) is None
        listener.close()
        with ring.listen() as own:
            assert not is_readable(own)
        ring.put(b"from the child")

    with listener:
        assert fork(leave).wait() == 0
        assert is_readable(listener)
        assert drained(ring) == [b"from the child"]
        assert not is_readable(listener)
    assert listener.closed
    ring.destroy()


def test_a_program_started_by_exec_has_none_of_its_descriptors(ring_type: RingType) -> None:
    """They close with the exec."""
    ring = ring_type()
    with ring.listen() as listener:
        numbers = [listener.fileno(), listener._pipe, listener._timer]
        program = "import os, sys; sys.exit(sum(os.path.exists(f'/proc/self/fd/{n}') for n in %r))"
        command = [sys.executable, "-c", program % [max(numbers) + 100, *numbers]]
        assert subprocess.run(command, close_fds=False, check=False).returncode == 0


def test_a_blocking_get_beside_a_listener_has_its_record(ring_type: RingType, fork: Fork) -> None:
    """The listener is called and never asks; no wake-up of a sleeper is lost to it."""
    ring = ring_type()

    def consume() -> None:
        for number in range(200):
            assert ring.get(PATIENCE) == b"%d" % number

    with ring.listen() as listener:
        child = fork(consume)
        for number in range(200):
            ring.put(b"%d" % number)
        assert child.wait() == 0
        assert is_readable(listener, PATIENCE)
    ring.destroy()


def test_a_listener_is_called_while_another_sleeps(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """One record wakes both kinds, and the other kind gets the next one."""
    ring, results = ring_type(), ring_type()

    def consume() -> None:
        results.put(ring.get(PATIENCE))

    with ring.listen() as listener:
        for _ in range(20):
            assert taken(ring) is None
            child = fork(consume)
            while not ring._core._words[at.CONSUMERS_SLEEPING] & at.SLEEPING:
                os.sched_yield()
            ring.put(b"x")
            assert is_readable(listener, PATIENCE)
            if taken(ring):
                ring.put(b"x")
            assert results.get(PATIENCE) == b"x"
            assert child.wait() == 0
    ring.destroy()
    results.destroy()


def test_threads_get_beside_a_listener(ring_type: RingType) -> None:
    """Whoever finds nothing arms it, and none of the others is left without."""
    ring, received = ring_type(256), list[bytes]()
    barrier = threading.Barrier(3)

    def consume() -> None:
        barrier.wait()
        while len(received) < 600:
            is_readable(listener, 0.01)
            received.extend(drained(ring))

    with ring.listen() as listener:
        threads = [threading.Thread(target=consume) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait()
        for number in range(600):
            ring.put(b"%d" % number)
        for thread in threads:
            thread.join()
    assert sorted(map(int, received)) == [*range(600)]


def test_statistics_count_sleepers_and_no_listeners(ring_type: RingType) -> None:
    """A descriptor is no thread that sleeps."""
    ring = ring_type()
    with ring.listen():
        assert ring.statistics().waiting_consumers == 0


# The end of a listener


def test_a_closed_listener_leaves_no_descriptor_and_no_block(ring_type: RingType) -> None:
    """Twice is once, and puts go on without it."""
    ring = ring_type()
    at_first, descriptors = blocks(), os.listdir("/proc/self/fd")
    listener = ring.listen()
    assert blocks() == at_first + 1
    listener.close()
    listener.close()
    assert (blocks(), os.listdir("/proc/self/fd")) == (at_first, descriptors)
    ring.put(b"x")
    assert drained(ring) == [b"x"]
    assert ring._core._words[at.CONSUMERS_SLEEPING] == 0


def test_a_listener_that_is_dropped_is_closed_with_a_warning(ring_type: RingType) -> None:
    """As a file is."""
    ring = ring_type()
    at_first, descriptors = blocks(), os.listdir("/proc/self/fd")
    with pytest.warns(ResourceWarning, match="unclosed"):
        ring.listen()
    assert (blocks(), os.listdir("/proc/self/fd")) == (at_first, descriptors)


def test_without_proc_listen_says_so_and_leaves_nothing(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait in get needs none."""
    ring = ring_type()
    at_first, descriptors = blocks(), os.listdir("/proc/self/fd")
    opened = os.open

    def refuse(path: str, flags: int) -> int:
        if path.startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileNotFoundError, match="mount /proc"):
        ring.listen()
    monkeypatch.undo()
    assert (blocks(), os.listdir("/proc/self/fd")) == (at_first, descriptors)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, BlockingIOError])
def test_a_producer_that_cannot_reach_a_listener_is_a_second_late(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """Its put succeeds, and the listener's timer does the rest."""
    ring = ring_type()
    with ring.listen() as listener:

        def refuse(path: str) -> str:
            raise error

        monkeypatch.setattr(os, "readlink", refuse)
        ring.put(b"x")
        monkeypatch.undo()
        assert is_readable(listener, PATIENCE)
        assert drained(ring) == [b"x"]


def test_a_byte_goes_to_nobody_else_who_has_the_number_by_now() -> None:
    """The descriptor must be the very pipe; another pipe, or a file, gets nothing."""
    mine, others = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    found = os.fstat(mine[0])
    try:
        listeners.write_to((os.getpid(), others[0], found.st_dev, found.st_ino))
        listeners.write_to((2**40, mine[0], found.st_dev, found.st_ino))
        listeners.write_to((os.getpid(), 2**40, found.st_dev, found.st_ino))
        for pipe in (mine, others):
            with pytest.raises(BlockingIOError):
                os.read(pipe[0], 1)
        listeners.write_to((os.getpid(), mine[0], found.st_dev, found.st_ino))
        assert len(os.read(mine[0], 2)) == 1
    finally:
        for fd in (*mine, *others):
            os.close(fd)


def test_damage_to_what_listeners_share_is_no_crash(ring_type: RingType) -> None:
    """Whatever the words say, a put is a put, and the marks become right again."""
    ring = ring_type()
    with ring.listen() as listener:
        words, block = ring._core._words, ring._core._block(listener._cell)  # type: ignore[arg-type]
        for value in (2**64 - 1, 2**63, 1 << 40):
            words[at.CONSUMERS_SLEEPING] |= value
            words[at.LISTENERS] = words[at.CALLS] = value
            block[at.B_ARMED] = value + 1 & at.WORD_MASK
            for word in (at.B_PID, at.B_FD, at.B_DEVICE, at.B_INODE):
                block[word] = value
            ring.put(b"x")
            assert words[at.CONSUMERS_SLEEPING] <= at.SLEEPING
            words[at.CONSUMERS_SLEEPING] = 0
            assert drained(ring) == [b"x"]


def test_a_process_object_gets_the_ring_and_calls(ring_type: RingType) -> None:
    """The usual way to start one."""
    ring = ring_type()
    with ring.listen() as listener:
        child = Process(target=ring.put, args=(b"hello",))
        child.start()
        assert receive(ring, listener, 1) == [b"hello"]
        child.join()
    ring.destroy()
