"""Pool: multiprocessing's, of which a worker that is killed costs its own task alone.

It is a face of the executor: calls become tasks of its dispatcher, and a map many, whose
answers are put together here (pool_results.py) or handed out one by one (pool_streams.py).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import pool as standard
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from typing import Any, TypeVar

from ipcmap.chunks import check_chunks, chunks_of
from ipcmap.dispatch import Dispatcher
from ipcmap.errors import BusyError
from ipcmap.executor import ProcessPoolExecutor
from ipcmap.messages import dump_plainly
from ipcmap.pool_results import AsyncResult, MapResult
from ipcmap.pool_streams import IMapIterator, Stream, UnorderedStream, feed
from ipcmap.tasks import Condition, Task

__all__ = ["Pool"]

S = TypeVar("S")
T = TypeVar("T")

_RUN, _CLOSE, _TERMINATE, _INIT = "RUN", "CLOSE", "TERMINATE", "INIT"
_AT_ONCE = 256  # tasks that are pickled before the workers get them
_SLICE = 1.0  # seconds
_MOMENT = 0.1  # seconds for a feeder to end that does not wait in its iterable


class Pool(standard.Pool):
    """Workers that do what they are given: ``multiprocessing.Pool``, but robust.

    A worker that dies is replaced. What it had in hand raises :class:`WorkerDied`, which says how
    it ended; all other tasks go on, and nobody waits for ever.

    Workers see the program as it stood when the pool was made, those that come later, too.
    ``with`` terminates the pool at its end, as multiprocessing's does, and so does the end of the
    program. What is to be done by then is to be waited for: by results, or by :meth:`close` and
    :meth:`join`.

    Args:
        processes: How many; ``None`` = the processors that affinity and cgroup grant.
        initializer: Called first by every worker; where it raises, the pool is broken.
        initargs: With these.
        maxtasksperchild: After how many tasks a worker is replaced, where a chunk is one task;
            ``None`` = never.
        context: For the signature: workers are always forked.

    Raises:
        ArenaFull: The default arena has no room for it.
        BrokenProcessPool: No worker can be forked.
        ValueError: A number is out of range.

    Example:
        >>> import ipcmap
        >>> with ipcmap.Pool(2) as pool:
        ...     pool.map(abs, [-1, -2, -3]), pool.apply(pow, (2, 10))
        ([1, 2, 3], 1024)
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any | None = None,
    ) -> None:
        self._state = _INIT
        if processes is not None and processes < 1:
            raise ValueError(f"processes must be 1 or more, or None: processes={processes}")
        if maxtasksperchild is not None and not (
            isinstance(maxtasksperchild, int) and maxtasksperchild > 0
        ):
            raise ValueError(
                "maxtasksperchild must be a whole number, 1 or more, or None: "
                f"maxtasksperchild={maxtasksperchild!r}"
            )
        self._executor = executor = _Engine(
            processes, None, initializer, tuple(initargs), max_tasks_per_child=maxtasksperchild
        )
        self._dispatcher: Dispatcher = executor._dispatcher
        self._dispatcher.ends_at_exit = True
        self._processes = executor._max_workers
        self._changed = Condition()
        self._feeders: dict[Stream, threading.Thread] = {}
        self._givers: dict[
            MapResult[Any], int
        ] = {}  # maps that are being given out, by which thread
        try:
            self._repopulate_pool()
        except BaseException:
            executor.kill_workers()
            raise
        self._state = _RUN

    # One call

    def apply(
        self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> T:
        """Return ``func(*args, **kwds)``, called by a worker; raise what it raises.

        Raises:
            ValueError: The pool was closed or terminated.
            WorkerDied: The worker died over it.
        """
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Have ``func(*args, **kwds)`` called by a worker, and return what it will come to.

        Args:
            func: What is called.
            args: With these.
            kwds: And these.
            callback: Called with what it returned, before the result is ready, by whichever thread
                deals with it. What it raises is logged.
            error_callback: Called with what it raised.

        Raises:
            ValueError: The pool was closed or terminated.
        """
        self._check_running()
        result: AsyncResult[T] = AsyncResult(self, self._dispatcher, callback, error_callback)
        self._executor._submit(result, func, tuple(args), dict(kwds))
        self._hurry(callback, error_callback)
        return result

    # Many calls

    def map(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int | None = None
    ) -> list[T]:
        """Return the list of what ``func`` returns for each item.

        Args:
            func: What is called.
            iterable: With an item of this; all are taken first.
            chunksize: How many items are one task: lost together, and answered together.
                ``None`` = so many that each worker gets four tasks.

        Raises:
            ValueError: The pool was closed or terminated.
            WorkerDied: A worker died over an item; the others were done all the same.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[T]:
        """As :meth:`map`, but return at once what it will come to.

        Where calls raise, it comes to the exception of the first item that did.

        Args:
            func: As of :meth:`map`.
            iterable: As of :meth:`map`.
            chunksize: As of :meth:`map`.
            callback: Called with the list, as that of :meth:`apply_async`.
            error_callback: Called with the exception.
        """
        return self._map(func, iterable, False, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """As :meth:`map`, of items that are the arguments of a call: ``func(*item)``."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As :meth:`map_async`, of items that are the arguments of a call."""
        return self._map(func, iterable, True, chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        starred: bool,
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult[T]:
        self._check_running()
        items = list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (4 * self._processes)))
        check_chunks(chunksize)
        count = -(-len(items) // chunksize)
        executor, dispatcher = self._executor, self._dispatcher
        result: MapResult[T] = MapResult(self, dispatcher, callback, error_callback)
        run: Callable[..., Any] = func
        args: Iterator[tuple[Any, ...]] = map(tuple, items) if starred else zip(items)
        if chunksize > 1:
            run = functools.partial(_do_starred if starred else _do, func)
            args = zip(chunks_of(items, chunksize))
        try:
            function = dispatcher.function(run).on_behalf_of(func)
        except Exception as error:
            result.settle(error)
            return result
        calls = result.begin(function, count, chunksize > 1)
        tasks = executor._tasks(calls, args)
        try:
            with self._changed:
                self._check_running()
                self._givers[result] = threading.get_ident()
            self._give(tasks)
        finally:
            self._givers.pop(result, None)  # in one step, whatever a signal handler raises
            self._say_who_left()
        self._hurry(callback, error_callback)
        if len(calls.answers) == count:  # they may all be no worker's
            with dispatcher.lock:
                calls.notify()
            dispatcher.wake()
        return result

    def _give(self, tasks: Iterator[Task | None]) -> None:
        while batch := list(itertools.islice(tasks, _AT_ONCE)):
            self._executor._add(batch)
            self._dispatcher.collect()

    # One by one

    def imap(  # type: ignore[override]
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> IMapIterator[T]:
        """Return an iterator over what ``func`` returns for each item, in order.

        A thread takes the items, which may be without end, not far ahead of the workers. What
        the iterable raises is the last result.

        Args:
            func: What is called.
            iterable: With an item of this.
            chunksize: How many items are one task: lost together, and answered together.
            buffersize: How many items are taken ahead of whoever reads the results, in whole
                chunks; ``None`` = any number, and results pile up.

        Raises:
            ValueError: The pool was closed or terminated, or a number is less than 1.
        """
        return self._imap(Stream, func, iterable, chunksize, buffersize)

    def imap_unordered(  # type: ignore[override]
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> IMapIterator[T]:
        """As :meth:`imap`, but whatever is done first comes first."""
        return self._imap(UnorderedStream, func, iterable, chunksize, buffersize)

    def _imap(
        self,
        kind: type[Stream],
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int,
        buffersize: int | None,
    ) -> IMapIterator[T]:
        self._check_running()
        self._dispatcher.check()
        check_chunks(chunksize, buffersize)
        ahead = None if buffersize is None else max(1, buffersize // chunksize)
        run: Callable[..., Any] = func
        args: Iterator[tuple[Any, ...]] = zip(iterable)
        if chunksize > 1:
            run, args = functools.partial(_do, func), zip(chunks_of(iterable, chunksize))
        function = self._dispatcher.function(run).on_behalf_of(func)
        stream = kind(self, self._dispatcher, function, chunksize > 1, ahead)
        results: IMapIterator[T] = IMapIterator(stream)
        feeder = threading.Thread(
            # It runs what the caller wrote, and so counts where a process is forked beside it.
            target=feed,
            args=(stream, self._executor._tasks(stream, args), self._fed),
            name="feeder of an imap",
            daemon=True,
        )
        try:
            with self._changed:
                self._check_running()
                self._feeders[stream] = feeder
            feeder.start()
        except BaseException:
            if not feeder.is_alive():  # or it says so itself
                self._fed(stream)
            raise
        return results

    def _fed(self, stream: Stream) -> None:
        """See that a stream is fed no more; called by its feeder."""
        self._feeders.pop(stream, None)
        self._say_who_left()

    def _say_who_left(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._end_if_fed()

    def _end_if_fed(self) -> None:
        # Nobody takes another lock while it has that one: a signal handler may close the pool.
        if self._state == _CLOSE and not (self._feeders or self._givers):
            self._executor.shutdown(wait=False)

    # The end

    def close(self) -> None:
        """Take no more calls; the workers end when all are done."""
        if not self._dispatcher.is_ours:
            return
        with self._changed:
            if self._state == _RUN:
                self._state = _CLOSE
        self._end_if_fed()

    def terminate(self) -> None:
        """End the workers now, by ``SIGTERM``, and those that do not end of it by ``SIGKILL``.

        What they had in hand raises :class:`WorkerDied`, and what was not begun
        ``concurrent.futures.CancelledError``. In a signal handler that has interrupted a wait for
        results this does not wait for the end; :meth:`join` does.
        """
        if not self._dispatcher.is_ours:
            return
        with self._changed:
            self._state = _TERMINATE
            feeders = dict(self._feeders)
            self._changed.notify_all()
        for stream in feeders:
            stream.stop()
        with contextlib.suppress(BusyError):
            self._executor.terminate_workers()
        for feeder in feeders.values():
            if feeder.is_alive() and feeder is not threading.current_thread():
                feeder.join(_MOMENT)

    def join(self) -> None:
        """Wait until the workers have ended, after :meth:`close` or :meth:`terminate`.

        An iterable of an ``imap`` that waits keeps a closed pool from its end, and so do results
        that nobody reads where there is a ``buffersize``; but not a pool that was terminated.

        Raises:
            BusyError: In a signal handler that has interrupted a call of the pool.
            ValueError: The pool takes calls.
        """
        if not self._dispatcher.is_ours:
            return
        if self._state == _RUN:
            raise ValueError(f"pool is still running: {self!r}; close() or terminate() it first")
        with self._changed:
            self._wait_until_all_is_given()
        self._executor.shutdown(wait=True)

    def _wait_until_all_is_given(self) -> None:
        while (self._feeders or self._givers) and self._state == _CLOSE:
            if threading.get_ident() in self._givers.values():
                raise BusyError(
                    "a signal handler cannot wait for a pool whose map it has interrupted: "
                    f"pid={os.getpid()}; return from the handler first"
                )
            self._changed.wait(_SLICE)

    def __del__(self) -> None:
        """Warn of a pool that nobody has ended; its workers end with it."""
        if self._state == _RUN and self._dispatcher.is_ours:
            warnings.warn(
                f"unclosed running multiprocessing pool {self!r}; end it: with, close() or "
                "terminate()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def _check_running(self) -> None:
        if not self._dispatcher.is_ours:  # by no lock, which a thread may have had at the fork
            self._dispatcher.check()
        if self._state != _RUN:
            raise ValueError(f"pool is not running: {self!r}; make another")

    # What multiprocessing's own has, and others look at

    @property
    def _pool(self) -> list[Any]:
        """The workers' processes."""
        return list(self._executor._processes.values()) if self._dispatcher.is_ours else []

    def _repopulate_pool(self) -> None:
        """Fork the workers that are missing."""
        self._dispatcher.staff()

    def _hurry(self, *callbacks: object) -> None:
        """Have answers taken though nobody waits for them, where there is something to call."""
        if any(callbacks):
            self._dispatcher.hurry()


class _Engine(ProcessPoolExecutor):
    """An executor whose results are pickled as multiprocessing's are, or say why not."""

    @staticmethod
    def _dump_result(result: Any) -> Any:
        try:
            return dump_plainly(result)
        except Exception as error:
            raise MaybeEncodingError(error, result) from None


def _do(func: Callable[[S], T], chunk: list[S]) -> list[T]:
    return [*map(func, chunk)]


def _do_starred(func: Callable[..., T], chunk: list[Iterable[Any]]) -> list[T]:
    return [*itertools.starmap(func, chunk)]
