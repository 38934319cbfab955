"""A pool is multiprocessing's, on every engine."""

from __future__ import annotations

import collections
import functools
import inspect
import itertools
import logging
import multiprocessing.pool
import os
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

import executors as work
import ipcmap
from interrupts import OF_AN_EXECUTOR, interrupted
from ipcmap import AsyncResult, IMapIterator, MapResult, Pool, Ring
from ipcmap.zygote import _warn_of_threads


@pytest.fixture
def pool(default_engine: ipcmap.Arena) -> Iterator[Pool]:
    """A pool of two workers."""
    with Pool(2) as pool:
        yield pool


def test_a_call_is_made_by_a_worker(pool: Pool) -> None:
    """Arguments by place and by name, and the result comes back."""
    assert pool.apply(divmod, (17, 5)) == (3, 2)
    assert pool.apply(int, ["ff"], {"base": 16}) == 255
    assert pool.apply_async(work.pid_of).get() != os.getpid()


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
def test_results_of_a_map_are_a_list_in_order(pool: Pool, chunksize: int | None) -> None:
    """Whatever the chunks, and of whatever can be iterated over."""
    assert pool.map(work.same, range(300), chunksize) == list(range(300))
    assert pool.map(work.same, iter("abc"), chunksize) == ["a", "b", "c"]
    assert pool.map(work.same, [], chunksize) == []
    pairs = list(itertools.pairwise(range(300)))
    assert pool.starmap(work.add, pairs, chunksize) == [2 * item + 1 for item in range(299)]
    assert pool.starmap_async(work.add, map(list, pairs), chunksize).get() == [
        2 * item + 1 for item in range(299)
    ]


@pytest.mark.parametrize("chunksize", [1, 7])
@pytest.mark.parametrize("buffersize", [None, 1, 50])
def test_results_come_one_by_one(pool: Pool, chunksize: int, buffersize: int | None) -> None:
    """All of them, in order or not, and then no more."""
    results = pool.imap(work.same, range(300), chunksize, buffersize)
    assert list(results) == list(range(300))
    assert list(results) == []
    any_order = pool.imap_unordered(work.same, range(300), chunksize, buffersize=buffersize)
    assert sorted(any_order) == list(range(300))
    assert list(pool.imap(work.same, [], chunksize, buffersize)) == []


def test_every_item_is_done_once(pool: Pool, said: Ring) -> None:
    """The workers count what they do."""
    items = [(said, item) for item in range(200)]
    assert pool.starmap(work.record, items, 1) == list(range(200))
    assert sorted(map(int, said.get_many())) == list(range(200))


def test_whatever_is_done_first_comes_first(pool: Pool, said: Ring, default_engine: object) -> None:
    """Where no order is asked for."""
    gate = Ring()
    results: IMapIterator[object] = pool.imap_unordered(work.Blocker(said, gate, 0), range(20))
    said.get()

    assert {*itertools.islice(results, 19)} == {*range(1, 20)}
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.01)
    gate.put(b"")

    assert list(results) == [0]
    gate.destroy()


def test_what_a_call_raises_is_raised_with_its_traceback(pool: Pool) -> None:
    """As multiprocessing has it: the text of the worker's is the cause."""
    with pytest.raises(KeyError) as caught:
        pool.apply(work.fail, (KeyError("k"),))
    assert type(caught.value.__cause__) is multiprocessing.pool.RemoteTraceback  # type: ignore[attr-defined]
    assert "in fail" in str(caught.value.__cause__)


def test_a_map_is_done_before_it_raises(pool: Pool, said: Ring) -> None:
    """Then it raises what the first item did."""
    calls = [(said, item) for item in range(9)]
    calls[3] = calls[7] = (said, b"no number")  # type: ignore[assignment]
    result = pool.starmap_async(work.record_number, calls, 1)

    with pytest.raises(ValueError, match="no number"):
        result.get()
    assert not result.successful()
    assert sorted(map(int, said.get_many())) == [0, 1, 2, 4, 5, 6, 8]


def test_an_item_that_raises_ends_no_imap(pool: Pool) -> None:
    """The next call goes on with the next item."""
    results = pool.imap(int, ["1", "x", "3"])
    assert next(results) == 1
    with pytest.raises(ValueError, match="'x'"):
        next(results)
    assert list(results) == [3]


def test_a_result_that_cannot_be_pickled_is_an_encoding_error(pool: Pool) -> None:
    """With what it was and why, and the worker goes on."""
    pids = {*pool._executor._processes}
    for _ in range(3):
        with pytest.raises(multiprocessing.pool.MaybeEncodingError) as caught:  # type: ignore[attr-defined]
            pool.apply(work.make_undumpable)
        assert "not to be dumped" in caught.value.exc
        assert "Undumpable" in caught.value.value
    assert {*pool._executor._processes} == pids


def test_what_cannot_be_pickled_for_a_worker_is_raised(pool: Pool) -> None:
    """By the result, with the error of its pickle, and nothing waits."""
    caught: list[BaseException] = []
    with pytest.raises(ValueError, match="not to be dumped"):
        pool.apply_async(work.same, [work.Undumpable()], error_callback=caught.append).get()
    with pytest.raises(ValueError, match="not to be dumped"):
        pool.map_async(work.same, [work.Undumpable()] * 2, 1, None, caught.append).get()
    with pytest.raises(ValueError, match="not to be dumped"):
        pool.map_async(work.Undumpable(), [1], 1, None, caught.append).get()  # type: ignore[arg-type]
    assert [str(error) for error in caught] == ["not to be dumped"] * 3

    results = pool.imap(work.same, [1, work.Undumpable(), 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="not to be dumped"):
        next(results)
    assert list(results) == [3]


def test_large_results_and_arguments_arrive_whole(pool: Pool) -> None:
    """Beyond what any ring holds."""
    big = bytes(range(256)) * (1 << 15)
    assert pool.map(work.same, [big, b"", big], 1) == [big, b"", big]


# Results


def test_a_result_is_asked_for(pool: Pool, said: Ring, default_engine: object) -> None:
    """Whether it is ready, whether it is good, and with a timeout."""
    gate = Ring()
    result = pool.apply_async(work.say_and_wait, (said, gate, 7))
    said.get()

    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0.01)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    gate.put(b"")

    assert result.get(60) == 7
    assert result.ready()
    assert result.successful()
    assert isinstance(result, AsyncResult)
    assert isinstance(result, multiprocessing.pool.AsyncResult)
    gate.destroy()


def test_a_result_is_ready_though_nobody_waits(pool: Pool) -> None:
    """Its state can be polled."""
    results: list[AsyncResult[object]] = [
        pool.apply_async(abs, (-1,)),
        pool.map_async(abs, [-1], 1),  # type: ignore[list-item]
    ]
    work.wait_until(lambda: all(result.ready() for result in results))
    assert [result.get(0) for result in results] == [1, [1]]


def test_callbacks_are_called_before_the_result_is_ready(pool: Pool) -> None:
    """Of what it came to the one that is for it, once."""
    seen: list[object] = []
    wrong: list[object] = []
    for _ in range(50):
        pool.apply_async(abs, (-1,), callback=seen.append, error_callback=wrong.append).wait()
        pool.map_async(abs, [-2], callback=seen.append, error_callback=wrong.append).get()
        pool.starmap_async(divmod, [(1, 0)], None, wrong.append, lambda _: seen.append(3)).wait()
        pool.map_async(abs, [], callback=seen.append).wait()

        assert (seen, wrong) == ([1, [2], 3, []], [])
        seen.clear()


def test_a_callback_is_called_though_nobody_waits(pool: Pool) -> None:
    """Nor keeps the result."""
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    pool.apply_async(abs, (-1,), callback=seen.put)
    assert seen.get(timeout=50) == 1
    pool.starmap_async(abs, [(-1,)], callback=lambda _: seen.put(2))
    assert seen.get(timeout=50) == 2


def test_a_callback_that_raises_is_logged(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """And costs nothing else; multiprocessing's own pool would hang from here on."""
    with caplog.at_level(logging.ERROR, "ipcmap"):
        assert pool.apply_async(abs, (-1,), callback=work.fail_always).get() == 1
    assert "callback of a pool raised" in caplog.text
    assert "fail_always" in caplog.text
    assert pool.map(abs, [-1]) == [1]


def test_an_interrupt_in_a_callback_leaves_the_result_ready(pool: Pool) -> None:
    """What a signal handler raises there comes out of the wait, and the next gets the value."""
    result = pool.apply_async(abs, (-1,), callback=work.interrupt)
    broken_off = 0
    while True:
        try:
            assert result.get(50) == 1
            break
        except KeyboardInterrupt:
            broken_off += 1
    assert broken_off <= 1
    assert pool.apply(abs, (-2,)) == 2  # whichever thread has called it back


def test_a_wait_that_is_broken_off_loses_no_result(pool: Pool) -> None:
    """Whichever line it has come to: the next wait gets them."""
    broken_off = 0
    for at in range(1, 100):
        result = pool.map_async(work.same, range(5), 1)
        broken_off += interrupted(result.get, OF_AN_EXECUTOR | {"threading"}, at)
        assert result.get(20) == list(range(5))
    assert broken_off > 10  # not all: they may be there before they are asked for


def test_who_waits_takes_locks_in_one_step_of_c(pool: Pool) -> None:
    """A signal handler that raised in a step of Python would leave one taken, and all would wait."""
    stream: Any = pool.imap(abs, [1])
    result: Any = pool.map_async(abs, [1])
    future: Any = pool._executor.submit(abs, 1)
    entered: list[str] = []

    def trace(frame: Any, event: str, _: Any) -> None:
        entered.append(frame.f_code.co_name)

    for condition in (stream._stream.condition, result._settled, future._condition, pool._changed):
        sys.settrace(trace)
        try:
            with condition:
                pass
        finally:
            sys.settrace(None)
    assert entered == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("name", ["apply_async", "map_async", "imap"])
def test_what_a_handler_raises_while_a_result_is_loaded_is_raised(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, name: str, error: type[BaseException]
) -> None:
    """It is no fault of the result, which is there for whoever asks again."""

    def interrupt() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(work.Hooked, "hooks", [interrupt])
    before = signal.signal(signal.SIGUSR1, lambda *_: work.fail(error("from a handler")))
    try:
        result = getattr(pool, name)(work.make_hooked, [0])
        ask = result.next if name == "imap" else result.get
        values: list[object] = []
        raised: list[str] = []
        while not values:
            try:
                values.append(ask(50))
            except error as caught:
                raised.append(str(caught))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert values == [[5] if name == "map_async" else 5]
    assert set(raised) <= {"from a handler"}
    assert len(raised) == 1 or name != "imap"  # of the others the manager may have taken care


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_reader_that_is_broken_off_loses_no_result(pool: Pool, name: str, chunksize: int) -> None:
    """Whichever line it has come to: whoever goes on reads all, each once, and then the end."""
    broken_off = 0
    for at in range(1, 60):
        results = getattr(pool, name)(work.same, range(12), chunksize)
        read: list[int] = []
        first = map(read.append, results)
        broken_off += interrupted(functools.partial(next, first), {"ipcmap.pool_streams"}, at)
        read.extend(results)
        assert sorted(read) == list(range(12)), f"{at=}"
    assert broken_off > 20


def test_an_imap_that_is_broken_off_keeps_no_pool_from_its_end(pool: Pool) -> None:
    """Whichever line the call has come to: what was not begun is waited for by nobody."""
    broken_off = sum(
        interrupted(lambda: pool.imap(work.same, range(3)), {"ipcmap.pool"}, at)
        for at in range(1, 40)
    )
    assert broken_off > 15
    pool.close()
    pool.join()


# Iterables


def count_taken(taken: list[int], items: Iterable[int]) -> Iterator[int]:
    """Note each item that is taken."""
    for item in items:
        taken.append(item)
        yield item


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_no_more_is_taken_than_may_be(pool: Pool, name: str) -> None:
    """An iterable without end is read as far as its reader goes on."""
    taken: list[int] = []
    results = getattr(pool, name)(work.same, count_taken(taken, itertools.count()), buffersize=5)
    read = []
    for count in range(1, 100):
        read.append(next(results))
        assert len(taken) <= count + 5
    work.wait_until(lambda: len(taken) == 99 + 5)
    assert len({*read}) == 99  # in any order, perhaps: a worker may be late
    assert {*read} < {*range(99 + 5)}


def test_chunks_are_taken_whole(pool: Pool) -> None:
    """So many as there is room for."""
    taken: list[int] = []
    results = pool.imap(work.same, count_taken(taken, itertools.count()), 4, buffersize=9)
    work.wait_until(lambda: len(taken) == 8)
    assert list(itertools.islice(results, 8)) == list(range(8))
    work.wait_until(lambda: len(taken) == 16)


def test_who_drops_a_bounded_imap_ends_its_feeder(pool: Pool) -> None:
    """Nobody will ever make room for another item."""
    results = pool.imap(work.same, itertools.count(), buffersize=2)
    assert next(results) == 0
    assert pool._feeders
    del results
    work.wait_until(lambda: not pool._feeders)


def test_an_imap_that_nobody_reads_is_done_all_the_same(pool: Pool, said: Ring) -> None:
    """It is fed to its end, also after the pool was closed."""
    pool.imap_unordered(work.Recorder(said), range(300))
    pool.close()
    pool.join()
    assert sorted(map(int, said.get_many())) == list(range(300))


def test_an_iterable_may_wait_for_earlier_results(pool: Pool) -> None:
    """And holds up no other call."""
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()

    def questions() -> Iterator[int]:
        yield 1
        for _ in range(20):
            yield answers.get() + 1

    for result in pool.imap(work.same, questions()):
        assert pool.apply(work.same, (result,)) == result
        answers.put(result)
    assert result == 21


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 4])
def test_an_iterable_that_raises_ends_an_imap(pool: Pool, name: str, chunksize: int) -> None:
    """After all that came before, in whole chunks, and without the worker's traceback."""

    def items() -> Iterator[int]:
        yield from range(10)
        raise KeyError("in the middle")

    results = getattr(pool, name)(work.same, items(), chunksize)
    seen: list[int] = []
    with pytest.raises(KeyError, match="in the middle") as caught:
        collections.deque(map(seen.append, results))
    seen.extend(results)
    assert sorted(seen) == list(range(10 // chunksize * chunksize))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["map", "map_async", "starmap", "starmap_async"])
def test_an_iterable_that_raises_is_raised_to_the_caller(pool: Pool, name: str) -> None:
    """Before anything is begun."""

    def items() -> Iterator[tuple[int]]:
        yield (1,)
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        getattr(pool, name)(work.same, items())
    assert not pool._dispatcher.tasks


def test_what_has_no_end_does_not_fill_the_memory(
    pool: Pool, said: Ring, default_engine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bound, too, items are not taken far ahead of the workers."""
    monkeypatch.setattr("ipcmap.pool_streams._WINDOW", 50)
    gate = Ring()
    taken: list[int] = []
    results = pool.imap_unordered(work.Waiter(said, gate), count_taken(taken, itertools.count()))
    said.get()
    said.get()
    work.wait_until(lambda: len(taken) == 50)
    gate.put_many([b""] * 2)
    assert len({next(results), next(results)}) == 2
    said.get()
    said.get()
    work.wait_until(lambda: len(taken) == 52)
    pool.terminate()
    gate.destroy()


# The pool itself


def test_workers_are_there_from_the_beginning(default_engine: object, said: Ring) -> None:
    """Each calls the initializer once, and there are as many as were asked for."""
    with Pool(3, work.record, (said, 5)) as pool:
        assert [said.get(), said.get(), said.get()] == [b"5"] * 3
        pids = {*pool._executor._processes}
        assert len(pids) == 3
        assert set(pool.map(work.pid_of, range(50))) <= pids
        assert repr(pool) == "<ipcmap.pool.Pool state=RUN pool_size=3>"


def test_workers_are_replaced_after_so_many_tasks(default_engine: object) -> None:
    """A chunk is one task."""
    with Pool(1, maxtasksperchild=2) as pool:
        pids = pool.map(work.pid_of, range(12), 2)
        assert len(set(pids)) == 3
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [4, 4, 4]


@pytest.mark.parametrize("processes", [0, -1])
def test_a_pool_has_a_worker_at_least(processes: int) -> None:
    """What was wrong is named."""
    with pytest.raises(ValueError, match=f"processes={processes}"):
        Pool(processes)
    for wrong in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match=f"maxtasksperchild={wrong!r}"):
            Pool(1, maxtasksperchild=wrong)  # type: ignore[arg-type]


def test_chunks_have_an_item_at_least(pool: Pool) -> None:
    """And so has what is taken ahead."""
    for name in ("map", "imap", "imap_unordered"):
        with pytest.raises(ValueError, match="chunksize=0"):
            getattr(pool, name)(abs, [1], 0)
    with pytest.raises(ValueError, match="buffersize=0"):
        pool.imap(abs, [1], buffersize=0)
    with pytest.raises(TypeError):
        pool.imap(abs, 1)  # type: ignore[arg-type]


def test_a_closed_pool_does_what_it_has(default_engine: object) -> None:
    """Results are there after its end, and nothing is taken any more."""
    pool = Pool(2)
    results = [pool.apply_async(work.same, (item,)) for item in range(50)]
    mapped = pool.map_async(work.same, range(50), 1)
    stream = pool.imap(work.same, range(50))
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    pool.join()
    pool.join()
    pool.close()

    assert [result.get(0) for result in results] == list(range(50))
    assert mapped.get(0) == list(stream) == list(range(50))
    assert pool._pool == []
    for name in ("apply", "map", "imap", "starmap"):
        with pytest.raises(ValueError, match="not running"):
            getattr(pool, name)(abs, [1])
    with pytest.raises(ValueError, match="not running"):
        pool.__enter__()


def test_a_map_that_is_being_given_out_is_done_by_a_closed_pool(
    default_engine: object,
) -> None:
    """It was called before the end, by another thread; whose handlers are told that they are in it."""
    pool = Pool(2)
    closed, half, results = threading.Event(), threading.Event(), queue.SimpleQueue[object]()

    class Number:
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self) -> tuple[object, ...]:
            if self.number == 500:
                half.set()
                closed.wait()
                with pytest.raises(ipcmap.BusyError, match="whose map it has interrupted"):
                    pool.join()
            return int, (self.number,)

    caller = threading.Thread(
        target=lambda: results.put(pool.map(work.same, map(Number, range(600)), 1))
    )
    caller.start()
    half.wait()
    pool.close()
    closed.set()
    pool.join()
    caller.join()
    assert results.get() == list(range(600))
    with pytest.raises(ValueError, match="not running"):
        pool.map(abs, [1])


def test_whoever_leaves_it_terminates_it(
    default_engine: object, said: Ring, monkeypatch: object
) -> None:
    """As multiprocessing's pool; what was not begun is cancelled, and no result is left waiting."""
    gate = Ring()
    with Pool(1) as pool:
        running = pool.apply_async(work.say_and_wait, (said, gate))
        waiting = [pool.map_async(abs, [1], 1), pool.apply_async(abs, (1,))]
        said.get()

    with pytest.raises(ipcmap.WorkerDied):
        running.get()
    for result in waiting:
        with pytest.raises(CancelledError):
            result.get()
    gate.destroy()


def test_a_pool_goes_with_its_last_name(default_engine: object) -> None:
    """It warns as multiprocessing's does; its workers and threads end."""
    pool = Pool(2)
    assert pool.map(abs, [-1]) == [1]
    pids, manager = [*pool._executor._processes], pool._dispatcher.manager.thread
    assert manager
    gone = weakref.ref(pool)

    kept = [pool]
    del pool
    with pytest.warns(ResourceWarning, match=r"unclosed running multiprocessing pool.*RUN"):
        kept.clear()

    assert gone() is None
    manager.join()
    assert all(map(work.is_gone, pids))


def test_a_pool_lives_as_long_as_its_results(default_engine: object) -> None:
    """Whoever has one may wait for it."""
    with pytest.warns(ResourceWarning, match="unclosed"):
        assert Pool(1).map_async(work.same, range(100), 1).get() == list(range(100))
    with pytest.warns(ResourceWarning, match="unclosed"):
        assert list(Pool(1).imap(work.same, range(100))) == list(range(100))
    work.wait_until(lambda: not any("ipcmap" in one.name for one in threading.enumerate()))


def test_a_pool_is_for_this_process(pool: Pool) -> None:
    """It goes to no other by pickle."""
    with pytest.raises(NotImplementedError):
        pool.__reduce__()


def test_pools_may_be_within_pools(pool: Pool) -> None:
    """Workers may have workers, which multiprocessing's daemons may not."""
    assert pool.map(work.squares_of_pool, [2, 3], 1) == [[0, 1], [0, 1, 4]]


def test_several_pools_live_beside_each_other(pool: Pool) -> None:
    """Their threads are no reason for a warning: what they hold no child takes."""
    with Pool(1) as other:
        assert other.map(work.same, pool.map(work.same, range(50))) == list(range(50))
        _warn_of_threads()


def test_threads_call_at_once(pool: Pool) -> None:
    """Each gets its own results."""
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        begin = 1000 * number
        found[number] = [
            *pool.map(work.same, range(begin, begin + 50), 1),
            *pool.imap(work.same, range(begin + 50, begin + 100)),
            *[pool.apply(work.same, (begin + 100 + item,)) for item in range(50)],
        ]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: list(range(1000 * number, 1000 * number + 150)) for number in range(4)}


def test_threads_read_one_imap_together(pool: Pool) -> None:
    """Each result goes to one of them."""
    found: list[int] = []
    both = itertools.chain(
        [pool.imap_unordered(work.same, range(400)), pool.imap(work.same, range(400))] * 3
    )
    threads = [threading.Thread(target=found.extend, args=(results,)) for results in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([*range(400), *range(400)])


def test_the_interface_is_that_of_multiprocessing() -> None:
    """Every public method, with its parameters, their order and defaults."""
    theirs = multiprocessing.pool.Pool
    for name, function in inspect.getmembers(theirs, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        expected = [
            (one.name, one.default) for one in inspect.signature(function).parameters.values()
        ]
        found = [
            (one.name, one.default)
            for one in inspect.signature(getattr(Pool, name)).parameters.values()
        ]
        if name in ("imap", "imap_unordered"):
            assert found.pop() == ("buffersize", None) or len(expected) > len(found)
        assert found == expected[: len(found)]
    for ours, standard in ((AsyncResult, "ApplyResult"), (IMapIterator, "IMapIterator")):
        for name in ("get", "wait", "ready", "successful", "next"):
            known = getattr(getattr(multiprocessing.pool, standard), name, None)
            if known is not None:
                assert [*inspect.signature(known).parameters.values()] == [
                    one.replace(annotation=inspect.Parameter.empty)
                    for one in inspect.signature(getattr(ours, name)).parameters.values()
                ]
    assert issubclass(Pool, theirs)
    assert issubclass(MapResult, multiprocessing.pool.MapResult)
    assert ipcmap.get_context().Pool is Pool
