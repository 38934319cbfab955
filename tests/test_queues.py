"""The interface of the queues: multiprocessing's, and what is added to it."""

from __future__ import annotations

import array
import contextlib
import gc
import itertools
import json
import logging
import logging.handlers
import pickle
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ipcmap
from children import Fork
from ipcmap import Arena, JoinableQueue, Queue, ShutDown, SimpleQueue, StaleHandle
from ipcmap.codec import PickleCodec
from ipcmap.objects import Hands
from ipcmap.ring_handle import RingHandle

pytestmark = pytest.mark.usefixtures("ring_type")  # on both engines

OBJECTS: list[Any] = [
    0, -1, 2**63 - 1, -(2**63), 2**63, 10**40, True, False, None, 1.5, float("inf"),
    b"", b"abc", "", "é", "\ud800", (), (1, "a", None), {"k": [1.5]}, {1, 2}, range(3), ValueError,
]  # fmt: skip


class Number(int):
    """A subclass, which is to come back as one."""


# Objects


@pytest.mark.parametrize("obj", OBJECTS, ids=repr)
def test_an_object_comes_out_as_it_went_in(obj: Any, arena: Arena) -> None:
    """Equal, and of the same type."""
    objects: Queue[Any] = Queue(arena=arena)
    objects.put(obj)
    found = objects.get(timeout=0)
    assert (found, type(found)) == (obj, type(obj))


def test_a_subclass_of_int_stays_one() -> None:
    """The short cuts are for the types themselves."""
    objects: Queue[int] = Queue()
    objects.put(Number(7))
    found = objects.get(timeout=0)
    assert (found, type(found)) == (7, Number)


@pytest.mark.parametrize("nbytes", [0, 1, 100, 1 << 16, 3 << 20])
def test_arrays_come_out_writable(nbytes: int, arena: Arena) -> None:
    """As those of multiprocessing do, and aligned, however large."""
    objects: Queue[Any] = Queue(arena=arena)
    data = np.arange(nbytes, dtype="u1")
    objects.put({"data": data, "again": [data[::2], bytearray(b"xyz")]})
    found = objects.get(timeout=0)
    assert np.array_equal(found["data"], data)
    assert np.array_equal(found["again"][0], data[::2])
    found["data"][:1] = 5
    found["again"][1][0] = 1
    assert found["again"][1] == bytearray(b"\1yz")


def test_a_buffer_travels_out_of_band(arena: Arena) -> None:
    """It is not copied into the pickle."""
    codec = PickleCodec()
    data = array.array("d", range(100_000))
    parts = codec.dumps([pickle.PickleBuffer(data)])
    assert not isinstance(parts, bytes)
    assert any(isinstance(part, memoryview) and part.obj is data for part in parts)
    objects: Queue[Any] = Queue(arena=arena)
    objects.put([pickle.PickleBuffer(data)])
    assert bytes(objects.get(timeout=0)[0]) == data.tobytes()


def test_what_cannot_be_pickled_raises_in_the_caller() -> None:
    """And nothing was put."""
    objects: Queue[Any] = Queue()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        objects.put(lambda: None)
    assert objects.qsize() == 0


def test_a_pickler_can_be_told_how_to_reduce() -> None:
    """As pickle.Pickler.reducer_override does."""

    def reduce(obj: Any) -> Any:
        return (str, ("a lock",)) if isinstance(obj, type(threading.Lock())) else NotImplemented

    objects: Queue[Any] = Queue(codec=PickleCodec(reduce))
    objects.put([threading.Lock(), {1}])
    assert objects.get(timeout=0) == ["a lock", {1}]


@pytest.mark.parametrize("codec", ["json", json, "raw", "pickle", pickle, None])
def test_a_codec_is_named_or_given(codec: Any, fork: Fork) -> None:
    """And goes with the queue to a process that gets it by pickle."""
    obj = b"bytes" if codec == "raw" else {"a": [1, None]}
    objects: Queue[Any] = Queue(codec=codec)
    again: Queue[Any] = pickle.loads(pickle.dumps(objects))
    assert fork(again.put, obj).wait() == 0
    assert objects.get(timeout=0) == obj


@pytest.mark.parametrize(("codec", "error"), [("yaml", ValueError), (7, TypeError)])
def test_no_codec_is_refused(codec: Any, error: type[Exception]) -> None:
    """With those that there are."""
    with pytest.raises(error, match="pickle, raw, json"):
        Queue(codec=codec)


class Parts:
    """A codec whose records are in parts, not all of them single bytes."""

    def dumps(self, obj: bytes, /) -> list[Any]:
        return [b"<", array.array("H", [0x3D3D]), memoryview(obj)]

    def loads(self, record: bytes, /) -> bytes:
        return record


@pytest.mark.parametrize("bound", [0, 1])
def test_a_codec_may_give_parts(bound: int, arena: Arena) -> None:
    """As the protocol says; what has no bytes is refused, and not taken for a length."""
    objects: Queue[bytes] = Queue(bound, codec=Parts(), arena=arena)
    objects.put(b"x" * 100_000)
    assert objects.get() == b"<==" + b"x" * 100_000

    class Length(Parts):
        dumps = staticmethod(len)  # type: ignore[assignment]

    with pytest.raises(TypeError):
        Queue[bytes](codec=Length(), arena=arena).put(b"abc")


# Bounds and waiting


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_bound_is_kept(size: int, arena: Arena) -> None:
    """Whatever the room there would be, also for records in blocks."""
    objects: Queue[bytes] = Queue(2, arena=arena)
    for number in range(10):
        objects.put(bytes([number]) * size)
        objects.put(b"x")
        assert objects.full()
        assert objects.qsize() == 2
        with pytest.raises(queue.Full, match="maxsize=2, 2 in it"):
            objects.put(b"", block=False)
        with pytest.raises(queue.Full):
            objects.put(b"", timeout=0.001)
        assert objects.get() == bytes([number]) * size
        assert objects.get_nowait() == b"x"
    assert not objects.full()


def test_a_bound_holds_among_many_producers(arena: Arena, fork: Fork) -> None:
    """Each put counts what the others have put."""
    objects: Queue[tuple[int, int]] = Queue(3, arena=arena)

    def produce(name: int) -> None:
        for number in range(200):
            objects.put((name, number))

    producers = [fork(produce, name) for name in range(4)]
    most, found = 0, []
    for _ in range(800):
        most = max(most, objects.qsize())
        found.append(objects.get(timeout=30))
    assert [producer.wait() for producer in producers] == [0] * 4
    assert most <= 3
    for name in range(4):
        assert [number for other, number in found if other == name] == list(range(200))
    assert objects.empty()


def test_a_bound_may_be_changed() -> None:
    """As that of queue.Queue may, which only later puts mind."""
    objects: Queue[int] = Queue(3)
    objects.put_many([1, 2, 3])
    objects.maxsize = 2
    with pytest.raises(queue.Full):
        objects.put_nowait(4)
    objects.maxsize = 0
    objects.put_nowait(4)
    assert objects.get_many() == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["put", "get"])
def test_a_negative_timeout_is_refused(method: str) -> None:
    """As queue.Queue does."""
    objects: Queue[int] = Queue()
    arguments = (1, True, -1) if method == "put" else (True, -1)
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
        getattr(objects, method)(*arguments)


def test_put_many_says_how_many_went_in(arena: Arena) -> None:
    """Bounded or not."""
    for objects in (Queue[bytes](2, arena=arena), Queue[bytes](capacity=64, arena=arena)):
        with pytest.raises(queue.Full) as caught:
            objects.put_many([b"12345678"] * 9, block=False)
        assert caught.value.put == objects.qsize() > 0  # type: ignore[attr-defined]


def test_get_many_takes_no_more_than_it_was_told(arena: Arena) -> None:
    """And waits for the first alone."""
    for ack in (False, True):
        objects: Queue[int] = Queue(ack=ack, arena=arena)
        objects.put_many(range(5))
        assert objects.get_many(2) == [0, 1]
        assert objects.get_many(timeout=5) == [2, 3, 4]
        with pytest.raises(queue.Empty):
            objects.get_many(timeout=0)


@pytest.mark.parametrize("ack", [False, True])
def test_get_many_refuses_to_take_none(ack: bool) -> None:
    """Whether or not it keeps what it takes."""
    objects: Queue[int] = Queue(ack=ack)
    objects.put(1)
    with pytest.raises(ValueError, match="max_objects=0"):
        objects.get_many(0)
    assert objects.qsize() == 1


@pytest.mark.parametrize("ack", [False, True])
def test_one_that_cannot_be_loaded_takes_no_other_with_it(ack: bool, arena: Arena) -> None:
    """They are in the error."""
    objects: Queue[Any] = Queue(ack=ack, codec="json", arena=arena)
    objects.put(1)
    objects._ring.put(b"no json")
    objects.put(2)
    with pytest.raises(json.JSONDecodeError) as caught:
        objects.get_many()
    assert caught.value.got == [1, 2]  # type: ignore[attr-defined]
    for _ in range(3):
        objects.task_done()
    assert objects._ring._unfinished() == 0


def test_get_many_gives_what_it_has_where_the_arena_is_full() -> None:
    """A lease needs a block; the next call says so."""
    arena = Arena(4 << 20)
    objects: Queue[bytes] = Queue(ack=True, capacity=1 << 16, arena=arena)
    objects.put_many([b"a", b"b" * 8000, b"c"])
    limit = arena.limit - arena.statistics().bytes_in_use
    filler = arena.allocate(limit - 4096)
    assert objects.get_many() == [b"a"]
    with pytest.raises(ipcmap.ArenaFull):
        objects.get_many()
    del filler


def test_a_child_can_end_with_objects_unread(arena: Arena, fork: Fork) -> None:
    """What was put is there, though nobody has read any of it."""
    objects: Queue[bytes] = Queue(arena=arena)
    assert fork(objects.put_many, [b"x" * 10_000] * 200).wait() == 0
    assert objects.qsize() == 200
    assert objects.get_many() == [b"x" * 10_000] * 200


# The end


def test_a_queue_that_was_shut_down_gives_what_is_left(arena: Arena, fork: Fork) -> None:
    """To any process, and then says so; a put says so at once."""
    objects: Queue[int] = Queue(arena=arena)
    objects.put_many([1, 2])
    states = [objects.is_shutdown]
    assert fork(objects.shutdown).wait() == 0
    assert [*states, objects.is_shutdown] == [False, True]
    with pytest.raises(ShutDown):
        objects.put(3)
    with pytest.raises(ShutDown):
        objects.put_many([3])
    assert [objects.get(), objects.get_nowait()] == [1, 2]
    for get in (objects.get, objects.get_nowait, objects.get_many):
        with pytest.raises(ShutDown):
            get()


def test_an_immediate_shutdown_takes_away_what_is_left(arena: Arena) -> None:
    """And wakes who waits in join."""
    objects: JoinableQueue[int] = JoinableQueue(arena=arena)
    objects.put_many([1, 2])
    joiner = threading.Thread(target=objects.join)
    joiner.start()
    objects.shutdown(immediate=True)
    joiner.join()
    assert objects.empty()
    with pytest.raises(ShutDown):
        objects.get()


def test_unfinished_tasks_are_those_put_and_not_done_with(arena: Arena) -> None:
    """As the attribute of queue.Queue, whoever has them in hand."""
    tasks: JoinableQueue[int] = JoinableQueue(arena=arena)
    tasks.put_many([1, 2])
    tasks.get()
    assert tasks.unfinished_tasks == 2
    tasks.task_done()
    assert tasks.unfinished_tasks == 1


def test_shutdown_is_the_standard_exception_where_there_is_one() -> None:
    """Code that catches queue.ShutDown is served."""
    assert getattr(queue, "ShutDown", ShutDown) is ShutDown


@pytest.mark.parametrize("make", [Queue, JoinableQueue])
def test_close_ends_it_for_this_process_alone(make: Callable[[], Queue[int]], fork: Fork) -> None:
    """As in multiprocessing."""
    objects = make()
    with pytest.raises(ValueError, match="join_thread"):
        objects.join_thread()
    objects.cancel_join_thread()

    def close_and_use() -> None:
        objects.close()
        objects.join_thread()
        assert objects.empty()  # never used here
        for use in (
            lambda: objects.put(1),
            objects.get,
            lambda: objects.put_many([1]),
            objects.get_many,
        ):
            with pytest.raises(ValueError, match="is closed"):
                use()

    assert fork(close_and_use).wait() == 0
    objects.put(1)
    objects.close()
    with pytest.raises(OSError, match="is closed"):
        objects.empty()


def test_a_simple_queue_has_the_least() -> None:
    """put, get, empty, and a close after which even empty raises."""
    objects: SimpleQueue[Any] = SimpleQueue()
    assert objects.empty()
    objects.put("a")
    objects.put(np.ones(100_000))
    assert not objects.empty()
    assert objects.get() == "a"
    assert objects.get().sum() == 100_000
    objects.close()
    objects.close()
    for use in (objects.empty, objects.get, lambda: objects.put(1)):
        with pytest.raises(OSError, match="is closed"):
            use()


def test_a_destroyed_queue_is_stale(arena: Arena) -> None:
    """And its blocks are free."""
    for make in (Queue, JoinableQueue, SimpleQueue):
        before = arena.statistics().blocks
        objects: Any = make(arena=arena)
        other = pickle.loads(pickle.dumps(objects))
        objects.put(np.ones(100_000))
        objects.destroy()
        assert arena.statistics().blocks == before
        with pytest.raises(StaleHandle):
            other.put(1)


def test_what_was_never_shared_is_freed_with_its_handle(arena: Arena) -> None:
    """No call is needed."""
    before = arena.statistics().blocks
    for make in (Queue, JoinableQueue, SimpleQueue):
        make(arena=arena)
    gc.collect()
    assert arena.statistics().blocks == before


def test_all_of_a_queue_is_in_its_arena(arena: Arena) -> None:
    """Also that in which its joiners wait."""
    before = arena.statistics().blocks
    tasks: JoinableQueue[int] = JoinableQueue(arena=arena)
    assert tasks._finished._arena is arena
    tasks.destroy()
    assert arena.statistics().blocks == before


def test_what_was_taken_ends_with_its_queue(arena: Arena) -> None:
    """Destroyed, or freed with its handle."""
    before = arena.statistics().blocks
    for destroy in (True, False):
        objects: Queue[int] | None = Queue(ack=True, arena=arena)
        assert objects is not None
        objects.put_many([1, 2])
        objects.get()
        if destroy:
            objects.destroy()
        objects = None
        gc.collect()
        assert arena.statistics().blocks == before


# Joining


def test_join_waits_for_everything_put(arena: Arena, fork: Fork) -> None:
    """Taken by other processes, and done with."""
    tasks: JoinableQueue[int | None] = JoinableQueue(arena=arena)
    answers: Queue[int] = Queue(arena=arena)

    def work() -> None:
        while (task := tasks.get()) is not None:
            answers.put(task * task)
            tasks.task_done()
        tasks.task_done()

    workers = [fork(work) for _ in range(3)]
    tasks.put_many(range(100))
    tasks.join()
    assert sorted(answers.get_many()) == [number * number for number in range(100)]
    tasks.put_many([None] * 3)
    tasks.join()
    assert [worker.wait() for worker in workers] == [0] * 3


def test_task_done_is_called_once_for_each_get(arena: Arena) -> None:
    """Once more is an error; where nothing is kept, nothing is to be done."""
    tasks: JoinableQueue[int] = JoinableQueue(arena=arena)
    with pytest.raises(ValueError, match="too many times"):
        tasks.task_done()
    tasks.put(1)
    tasks.get()
    tasks.task_done()
    with pytest.raises(ValueError, match="too many times"):
        tasks.task_done()
    tasks.join()
    Queue[int](arena=arena).task_done()
    with pytest.raises(ValueError, match="make a JoinableQueue"):
        Queue[int](arena=arena).join()


def test_a_thread_is_done_with_what_it_took_first() -> None:
    """And with another's only where it has none of its own."""
    tasks: Queue[str] = Queue(ack=True)
    tasks.put_many(["ours", "theirs", "ours too"])
    assert tasks.get() == "ours"
    thread = threading.Thread(target=tasks.get)
    thread.start()
    thread.join()
    assert tasks.get() == "ours too"
    for left in (2, 1, 0):
        tasks.task_done()
        assert tasks._ring._unfinished() == left


@pytest.mark.parametrize("record", ["small", "large" * 20_000], ids=["small", "large"])
def test_a_get_that_is_broken_off_keeps_nothing_back(record: str, arena: Arena) -> None:
    """It is in hand, or comes again: both can be done with."""
    ours = {Hands.add.__code__, Hands.drop.__code__, RingHandle._take_on_loan.__code__}
    ours |= {Queue._lease.__code__, Queue.task_done.__code__, RingHandle._end_lease.__code__}

    class Broken(BaseException):
        """As a signal handler raises it."""

    for at in itertools.count(1):
        tasks: Queue[str] = Queue(ack=True, arena=arena)
        tasks.put(record)
        steps = itertools.count(1)

        def trace(frame: Any, event: str, _: Any, steps: Any = steps, at: int = at) -> Any:
            if frame.f_code in ours and event in ("line", "return") and next(steps) == at:
                raise Broken
            return trace

        sys.settrace(trace)
        try:
            tasks.get(timeout=5)
            broken = False
        except Broken:
            broken = True
        finally:
            sys.settrace(None)
        with contextlib.suppress(queue.Empty):
            assert tasks.get(timeout=0) == record
        tasks.task_done()
        with pytest.raises(ValueError, match="too many"):
            tasks.task_done()
        assert tasks._ring._unfinished() == 0
        tasks.destroy()
        if not broken:
            assert at > 5
            break


# With the standard library


def test_a_queue_carries_log_records(fork: Fork) -> None:
    """QueueHandler in the children, QueueListener here."""
    records: Queue[logging.LogRecord] = Queue()
    seen: list[tuple[int, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.process or 0, record.getMessage()))

    def log() -> None:
        logger = logging.Logger("worker")
        logger.addHandler(logging.handlers.QueueHandler(records))
        for number in range(10):
            logger.warning("line %d", number)

    listener = logging.handlers.QueueListener(records, Keep())
    listener.start()
    children = [fork(log) for _ in range(3)]
    assert [child.wait() for child in children] == [0] * 3
    listener.stop()
    for child in children:
        lines = [line for pid, line in seen if pid == child.pid]
        assert lines == [f"line {number}" for number in range(10)]


def test_a_queue_has_what_dict_config_asks_for() -> None:
    """All of the methods by which logging.config knows a queue."""
    for make in (Queue, JoinableQueue):
        objects: Any = make()
        for name in (
            "empty",
            "full",
            "get",
            "get_nowait",
            "put",
            "put_nowait",
            "join",
            "qsize",
            "task_done",
        ):
            assert callable(getattr(objects, name))


def test_a_queue_says_what_it_is() -> None:
    """With its bound."""
    assert repr(Queue(5)) == "<ipcmap.Queue maxsize=5>"
    assert repr(JoinableQueue()) == "<ipcmap.JoinableQueue maxsize=0>"
    assert ipcmap.Queue is Queue
