"""The ends that the standard library reaches for: its own Pool and executor on our queues."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.pool
import os
import pickle
import select
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from children import Fork, die
from ipcmap import Arena, Queue, Ring, SimpleQueue
from ipcmap._core import reference_listeners
from ipcmap._core import reference_sections as sections
from ipcmap._core.reference_listeners import Known, Listeners, write_to
from ipcmap.listener import Listener
from ring_harness import Stores

pytestmark = [
    pytest.mark.usefixtures("ring_type"),  # on both engines
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),  # their own forks
]

Forking = type(multiprocessing.get_context("fork"))


class Context(Forking):  # type: ignore[misc, valid-type]
    """The standard library's own, but for the queue of results."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def SimpleQueue(self) -> Any:  # noqa: N802
        return SimpleQueue[Any](arena=self.arena)


@pytest.fixture
def context(arena: Arena) -> Context:
    """A context for the standard library's pools."""
    return Context(arena)


@pytest.fixture
def objects(arena: Arena) -> Iterator[SimpleQueue[Any]]:
    """A queue whose ends are closed."""
    queue: SimpleQueue[Any] = SimpleQueue(arena=arena)
    yield queue
    queue.close()


def square(number: int) -> int:
    """Work."""
    return number * number


def kill_worker(_: int) -> None:
    """Die in the middle of a task."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait(ends: list[Any], timeout: float | None = None) -> list[Any]:
    """Wait as the standard library does."""
    return multiprocessing.connection.wait(ends, timeout)


def is_readable(queue: Any) -> bool:
    """Ask as the standard library does."""
    return wait([queue._reader], 0) == [queue._reader]


def test_the_standard_executor_works(context: Context) -> None:
    """It waits for the queue's descriptor, and takes what is there."""
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(square, range(300))) == [number**2 for number in range(300)]
        large = executor.submit(bytes, 1 << 20)
        assert len(large.result()) == 1 << 20
        assert isinstance(executor.submit(int, "no").exception(), ValueError)


def test_the_standard_executor_notices_a_killed_worker(context: Context) -> None:
    """It does not hang in the queue while its worker is dead."""
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert executor.submit(square, 3).result() == 9
        with pytest.raises(BrokenProcessPool):
            executor.submit(kill_worker, 0).result()


def test_the_standard_pool_works(context: Context) -> None:
    """Tasks go by one queue, results by another, and a third wakes the one who looks after both."""
    with multiprocessing.pool.Pool(2, context=context, maxtasksperchild=20) as pool:
        assert pool.map(square, range(200), 1) == [number**2 for number in range(200)]
        assert sorted(pool.imap_unordered(square, range(50))) == [n**2 for n in range(50)]
        pool.close()
        pool.join()


def test_the_standard_pool_replaces_a_killed_worker(context: Context) -> None:
    """And goes on, with tasks on their way when it is terminated."""
    with multiprocessing.pool.Pool(2, context=context) as pool:
        pool.apply_async(kill_worker, (0,))
        assert pool.map(square, range(50), 1) == [number**2 for number in range(50)]
        pool.map_async(square, range(10_000), 1)


def test_the_descriptor_is_readable_with_a_record_alone(objects: SimpleQueue[Any]) -> None:
    """Whichever way the records are taken, and also for longer than a timer would be quiet."""
    assert not is_readable(objects)
    assert wait([objects._reader], 1.2) == []
    objects.put(1)
    objects.put(2)
    assert is_readable(objects)
    assert objects.get() == 1
    assert is_readable(objects)
    assert objects._reader.recv() == 2
    assert not is_readable(objects)
    objects.put(3)
    assert objects.get() == 3
    assert not is_readable(objects)


def test_the_end_is_quiet_after_a_call_for_what_is_gone(
    objects: Any, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who put it was slow: it was taken, and looked for again, before its caller came to call."""
    called, told = Ring(), Ring()
    usual = Listeners.call

    def slow(self: Listeners, known: Known = (-1, ())) -> Known:
        called.put(b"")
        told.get()
        return usual(self, known)

    def put() -> None:
        monkeypatch.setattr(Listeners, "call", slow)
        objects.put(1)

    assert not is_readable(objects)
    child = fork(put)
    called.get()
    assert objects._reader.recv() == 1
    end = objects._reader.fileno()  # as a wait begins
    told.put(b"")
    assert child.wait() == 0

    assert select.select([end], [], [], 0)[0] == []
    objects.put(2)
    assert select.select([end], [], [], 0)[0] == [end]


def test_a_byte_for_the_end_is_written_while_its_record_cannot_be_looked_for(
    objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And drained so: otherwise it comes when the record is gone, after the drain."""
    inside = list[bool]()

    def noted(step: Callable[..., object]) -> Callable[..., object]:
        def with_note(*arguments: object) -> object:
            occupant = sections.occupant(objects._ring._core._producers_section)
            inside.append(occupant == threading.get_native_id())
            return step(*arguments)

        return with_note

    assert not is_readable(objects)
    monkeypatch.setattr(reference_listeners, "write_to", noted(write_to))
    objects.put(1)
    assert inside == [True]

    monkeypatch.setattr(Listener, "_drain", noted(Listener._drain))
    assert objects._reader.recv() == 1
    assert inside[-1]
    assert not is_readable(objects)


def test_a_selector_that_is_kept_is_told_of_each_record(objects: SimpleQueue[Any]) -> None:
    """It asks for the number once; recv looks after the descriptor."""
    with selectors.DefaultSelector() as selector:
        selector.register(objects._reader, selectors.EVENT_READ)
        for number in range(50):
            assert selector.select(0) == []
            objects.put(number)
            objects.put(number)
            for _ in range(2):
                assert selector.select(0)
                assert objects._reader.recv() == number


def test_a_put_of_another_process_wakes_who_waits(objects: SimpleQueue[Any], fork: Fork) -> None:
    """Forked before the descriptor was made, and whoever waits beside."""
    reading, writing = os.pipe()

    def produce() -> None:
        os.read(reading, 1)
        objects.put("late")

    child = fork(produce)
    assert not is_readable(objects)
    os.write(writing, b"\0")
    assert wait([objects._reader], 30) == [objects._reader]
    assert objects._reader.recv() == "late"
    assert child.wait() == 0
    os.close(reading)
    os.close(writing)


def test_a_producer_killed_at_any_store_leaves_no_one_waiting(
    objects: SimpleQueue[Any], fork: Fork
) -> None:
    """Its death is seen by who waits for it as well; what it had committed is there then."""
    for store in range(1, 40):

        def put(store: int = store) -> None:
            Stores(store, True, die).watch(objects._ring)
            objects.put("record")

        assert not is_readable(objects)
        child = fork(put)
        sentinel = os.pidfd_open(child.pid)
        ready = wait([objects._reader, sentinel], 30)
        assert ready
        status = child.wait()
        os.close(sentinel)
        if objects._reader.poll():
            assert objects._reader.recv() == "record"
        if status == 0:
            break
    assert status == 0


def test_a_copy_and_a_child_have_descriptors_of_their_own(
    objects: SimpleQueue[Any], fork: Fork
) -> None:
    """Made when they are asked for, and told of the same records."""
    assert not is_readable(objects)
    copy = pickle.loads(pickle.dumps(objects))
    assert copy._reader.fileno() != objects._reader.fileno()

    def look() -> None:
        assert not is_readable(objects)
        objects.put(1)
        assert is_readable(objects)

    assert fork(look).wait() == 0
    assert is_readable(objects)
    assert is_readable(copy)
    assert copy._reader.recv() == 1
    assert not is_readable(objects)
    copy.close()


def test_no_descriptor_is_left(arena: Arena) -> None:
    """Of a queue that is closed, or forgotten."""
    before = set(os.listdir("/proc/self/fd"))
    for close in (True, False):
        queue: Queue[int] = Queue(arena=arena)
        assert not is_readable(queue)
        assert len(os.listdir("/proc/self/fd")) > len(before)
        if close:
            queue.close()
            assert queue._reader.closed
        del queue
        gc.collect()
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_closed_queue_has_closed_ends(arena: Arena) -> None:
    """Also those that are asked for afterwards."""
    for used in (True, False):
        queue: SimpleQueue[int] = SimpleQueue(arena=arena)
        if used:
            assert (queue._reader.closed, queue._writer.closed) == (False, False)
        queue.close()
        assert (queue._reader.closed, queue._writer.closed) == (True, True)
        for use in (queue._reader.recv, queue._reader.poll, queue._reader.fileno):
            with pytest.raises(OSError, match="closed"):
                use()
        with pytest.raises(OSError, match="closed"):
            queue._writer.send(1)


def test_a_closed_end_leaves_the_queue_as_it_is(objects: SimpleQueue[Any]) -> None:
    """Workers of the standard pool close the ends that they do not use."""
    with objects._reader, objects._writer:
        objects._writer.send([1])
        assert objects._reader.recv() == [1]
    assert objects._reader.closed
    objects.put(2)
    assert objects.get() == 2


def test_poll_waits_for_a_record(objects: SimpleQueue[Any]) -> None:
    """Not at all, for a while, or for ever."""
    assert not objects._reader.poll()
    assert not objects._reader.poll(0.01)
    threading.Timer(0.05, objects.put, [1]).start()
    assert objects._reader.poll(None)
    assert objects._reader.poll()
    assert objects._reader.recv() == 1


def test_bytes_go_as_they_are(objects: SimpleQueue[Any]) -> None:
    """And may be as long as is said."""
    objects._writer.send_bytes(b"abcdef", 1, 3)
    objects._writer.send_bytes(memoryview(b"xyz"))
    assert objects._reader.recv_bytes() == b"bcd"
    with pytest.raises(OSError, match="nbytes=3, maxlength=2"):
        objects._reader.recv_bytes(2)
    for offset, size in ((-1, 1), (2, 5), (7, None)):
        with pytest.raises(ValueError, match="nbytes=6"):
            objects._writer.send_bytes(b"abcdef", offset, size)


def test_the_end_of_the_queue_is_that_of_a_connection(arena: Arena) -> None:
    """EOFError for who reads, BrokenPipeError for who writes."""
    queue: Queue[int] = Queue(arena=arena)
    assert not is_readable(queue)
    queue.put(1)
    queue.shutdown()
    assert queue._reader.recv() == 1
    assert is_readable(queue)
    assert queue._reader.poll()
    with pytest.raises(EOFError):
        queue._reader.recv()
    with pytest.raises(BrokenPipeError):
        queue._writer.send(2)
    queue.close()


def test_ends_keep_the_bound_and_what_is_taken(arena: Arena) -> None:
    """They are the queue's own put and get."""
    queue: Queue[str] = Queue(1, ack=True, arena=arena)
    queue._writer.send("a")
    assert queue.full()
    assert queue._reader.recv() == "a"
    assert queue._ring._unfinished() == 1
    queue.task_done()
    assert queue._ring._unfinished() == 0
    with pytest.raises(OSError, match="no descriptor"):
        queue._writer.fileno()


def test_threads_may_wait_beside_each_other(objects: SimpleQueue[Any]) -> None:
    """One descriptor serves them, and each record goes to one."""
    found: list[int] = []

    def consume() -> None:
        while True:
            wait([objects._reader])
            number = objects._reader.recv()
            if number is None:
                return
            found.append(number)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(200):
        objects.put(number)
    for _ in threads:
        objects.put(None)
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(200))
    assert objects._rlock.acquire()
    objects._rlock.release()
    with objects._wlock:
        assert objects.empty()
