"""ProcessPoolExecutor: the standard interface, of which a dead worker costs its own task alone."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from ipcmap._core.processors import available
from ipcmap._deadline import Deadline
from ipcmap.arena import Arena, default_arena
from ipcmap.chunks import check_chunks, chunks_of, do_chunk
from ipcmap.dispatch import Dispatcher
from ipcmap.executor_statistics import ExecutorStatistics
from ipcmap.messages import KEYWORDS, RETURNED_END, TAIL, dump, joined
from ipcmap.progress import progress_bar
from ipcmap.ring import Ring
from ipcmap.seats import Seat
from ipcmap.tasks import MapCall, Owner, Task, TaskFuture, outcome
from ipcmap.worker import Blueprint, Cells

__all__ = ["ProcessPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_ANSWERS = 1 << 22  # bytes of answers that nobody has taken; longer ones are in the arena
_AT_ONCE = 256  # items of a map that are pickled before the workers get them


class ProcessPoolExecutor(Executor):
    """Workers that do what they are given: ``concurrent.futures.ProcessPoolExecutor``, but robust.

    A worker that dies is replaced. Its task's future raises :class:`WorkerDied`, which says how
    the worker ended, or the task is done again (``retries``); all other tasks go on.

    Workers see the program as it stood when the executor was made: then a zygote is forked, which
    forks them one by one when they are needed. So make it before threads, or call
    :func:`prefork` before; functions that are defined later are not known to the workers.

    Args:
        max_workers: The most at a time; ``None`` = the processors that affinity and cgroup grant.
        mp_context: For the signature: workers are always forked.
        initializer: Called first by every worker; where it raises, the executor is broken.
        initargs: With these.
        max_tasks_per_child: After how many tasks a worker is replaced; ``None`` = never.
        max_rss: A worker with more bytes resident after a task is replaced; ``None`` = never.
        retries: How often a task is done again whose worker died, or that took too long.
        arena: Where tasks and results travel; ``None`` = the default arena.

    Raises:
        ArenaFull: The arena has no room for it.
        ValueError: A number is out of range.

    Example:
        >>> with ProcessPoolExecutor(2) as executor:
        ...     future = executor.submit(pow, 2, 10)
        ...     list(executor.map(abs, [-1, -2, -3])), future.result()
        ([1, 2, 3], 1024)
    """

    _early = False  # whether workers see the program as prefork() saw it, if it was called
    _dump_result = staticmethod(dump)  # where it has no short form

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        max_rss: int | None = None,
        retries: int = 0,
        arena: Arena | None = None,
    ) -> None:
        workers = available() if max_workers is None else max_workers
        if workers <= 0:
            raise ValueError(f"max_workers must be greater than 0: max_workers={max_workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable: initializer={initializer!r}")
        for name, number in (("max_tasks_per_child", max_tasks_per_child), ("max_rss", max_rss)):
            if number is not None and number <= 0:
                raise ValueError(f"{name} must be 1 or more, or None: {name}={number}")
        self._max_workers = workers
        self._mp_context = mp_context
        self._timeout: float | None = None
        self._retries = _checked_retries(retries)
        arena = arena or default_arena()
        results = Ring(_ANSWERS, arena=arena)
        block = arena.allocate(Cells.nbytes(workers))
        blueprint = Blueprint(
            results,
            block,
            arena._engine,
            initializer,
            initargs,
            max_tasks_per_child or 0,
            max_rss or 0,
            max(1, available() // workers),
            self._dump_result,
        )
        blueprint.initialise()
        self._dispatcher = Dispatcher(blueprint, arena, workers, early=self._early)
        self._keeper = _Keeper()  # of all that with_options made
        weakref.finalize(self._keeper, self._dispatcher.let_go).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` done, and return its future.

        What cannot be pickled is the future's exception. ``future.cancel()`` cancels a task
        that runs, too: its worker is killed, and no other task lost.

        Raises:
            BrokenProcessPool: An initializer failed, or no worker can be forked.
            RuntimeError: The executor was shut down, or belongs to another process.
        """
        future: TaskFuture[T] = TaskFuture(self._dispatcher, self._timeout, self._retries)
        future._task = self._submit(future, fn, args, kwargs)
        return future

    def _submit(
        self, owner: Owner, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Task | None:
        """Have a call made; return its task, ``None`` = it cannot be pickled, as the owner knows."""
        dispatcher = self._dispatcher
        number = next(dispatcher.numbers)
        try:
            owner.function = function = dispatcher.function(fn)
            if kwargs:
                tail = TAIL.pack(number, function.number | KEYWORDS)
                record = joined(dispatcher.dump((args, kwargs)), tail)
            else:
                record = joined(dispatcher.dump(args), TAIL.pack(number, function.number))
        except Exception as error:
            dispatcher.check()
            owner.settle(error)
            return None
        task = Task(number, record, owner, 0)
        dispatcher.add((task,), timed=self._timeout is not None)
        return task

    async def asubmit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Have ``fn(*args, **kwargs)`` done, and return its result, in asyncio.

        Where the task that awaits it is cancelled, or runs out of time (``asyncio.timeout``), so
        is ``fn``: a worker that does it already is killed and replaced, and no other task lost.

        Raises:
            BrokenProcessPool: As :meth:`submit`.
            RuntimeError: As :meth:`submit`.
            WorkerDied: The worker died with it.
            Exception: What ``fn`` raises.

        Example:
            >>> import asyncio
            >>> async def main(executor):
            ...     return await asyncio.gather(*(executor.asubmit(pow, 2, n) for n in range(4)))
            >>> with ProcessPoolExecutor(2) as executor:
            ...     asyncio.run(main(executor))
            [1, 2, 4, 8]
        """
        import asyncio  # noqa: PLC0415 - who does not await is spared the time

        loop, future = asyncio.get_running_loop(), self.submit(fn, *args, **kwargs)
        over = loop.create_future()

        def say_so() -> None:
            if not over.done():
                over.set_result(None)

        def tell(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(say_so)

        # The result is taken here: no future of asyncio carries a StopIteration, and who
        # waits for one that should would wait for ever (asyncio.wrap_future, before 3.12).
        future.add_done_callback(tell)
        try:
            await over
        except asyncio.CancelledError:
            future.cancel()
            raise
        if future.cancelled():
            raise asyncio.CancelledError
        return future.result()

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[T]:
        """Return an iterator over ``map(fn, *iterables)``, whose calls the workers make.

        The items are handed over many at a time where they are short; still each is a task of its
        own, and a worker that dies costs one.

        Args:
            fn: What is called with an item of each.
            iterables: Taken at once, unless there is a ``buffersize``.
            timeout: Seconds from now in which every result must be there; ``None`` = for ever.
            chunksize: How many items are one task: lost together, and answered together.
            buffersize: How many tasks are under way at most; ``None`` = all.
            progress: Whether a bar is drawn, by rich or tqdm, as results are taken.

        Raises:
            ModuleNotFoundError: Neither rich nor tqdm is installed.
            TimeoutError: From the iterator: the result was not there in time.
            ValueError: ``chunksize`` or ``buffersize`` is less than 1.
        """
        check_chunks(chunksize, buffersize)
        bar = progress_bar() if progress else None
        self._dispatcher.check()
        deadline = Deadline(timeout)
        items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        function = self._dispatcher.function(fn)
        if chunksize > 1:
            items = zip(itertools.repeat(fn), chunks_of(items, chunksize))
            function = self._dispatcher.function(do_chunk).on_behalf_of(fn)
        call = MapCall(self._dispatcher, function, self._timeout, self._retries)
        tasks = self._tasks(call, items)
        count = 0
        while batch := list(itertools.islice(tasks, _at_once(buffersize, count))):
            self._add(batch)
            self._dispatcher.collect()
            count += len(batch)
        results = self._until_given_up(call, self._taken(call, tasks, count, deadline))
        if bar is not None:
            results = bar(results, count if buffersize is None else None)
        return itertools.chain.from_iterable(results) if chunksize > 1 else results

    def _tasks(self, call: MapCall, items: Iterator[tuple[Any, ...]]) -> Iterator[Task | None]:
        """Yield a task for each item; ``None`` for one that has its answer: it cannot be pickled."""
        numbers, pack, function = self._dispatcher.numbers, TAIL.pack, call.function.number
        dump = self._dispatcher.dump
        for index, args in enumerate(items):
            number = next(numbers)
            try:
                body = dump(args)
            except Exception as error:
                call.answers[index] = error
                yield None
                continue
            tail = pack(number, function)
            record = body + tail if type(body) is bytes else joined(body, tail)
            yield Task(number, record, call, index)

    def _add(self, tasks: list[Task | None]) -> None:
        known = [task for task in tasks if task is not None]
        self._dispatcher.add(known, timed=self._timeout is not None)

    def _until_given_up(self, call: MapCall, results: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from results
        finally:
            self._dispatcher.drop_call(call)

    def _taken(
        self, call: MapCall, tasks: Iterator[Task | None], count: int, deadline: Deadline
    ) -> Iterator[Any]:
        answers, load, index = call.answers, self._dispatcher.load, 0
        while index < count:
            answer = answers.pop(index, None) or call.wait(index, deadline)
            for task in tasks:
                self._add([task])
                count += 1
                break
            index += 1
            if type(answer) is bytes and answer.endswith(RETURNED_END):
                yield load(answer)
            else:
                yield _value(answer)

    def statistics(self) -> ExecutorStatistics:
        """Say what there is to do, and what each worker does and has done.

        Raises:
            RuntimeError: This is a child of the process that made it.

        Example:
            >>> with ProcessPoolExecutor(1) as executor:
            ...     _ = executor.submit(abs, -1).result()
            ...     [worker.state for worker in executor.statistics().workers]
            ['waits']
        """
        return self._dispatcher.statistics()

    def with_options(
        self, *, timeout: float | None = None, retries: int | None = None
    ) -> ProcessPoolExecutor:
        """Return this executor with other options for what is submitted through it.

        The workers are the same, and a shutdown of either is one of both.

        Args:
            timeout: Seconds that a task may take from its begin. Then its worker is killed, and the
                task raises ``TimeoutError`` or is done again. ``None`` = for ever.
            retries: As of the executor; ``None`` = as it is here.

        Example:
            >>> import time
            >>> with ProcessPoolExecutor(1) as executor:
            ...     hasty = executor.with_options(timeout=0.05)
            ...     type(hasty.submit(time.sleep, 60).exception()).__name__
            'TimeoutError'
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, or None: timeout={timeout}")
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._timeout = timeout
        if retries is not None:
            twin._retries = _checked_retries(retries)
        return twin

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; those that were submitted are done first.

        Args:
            wait: Whether to return when they are, and the workers have ended.
            cancel_futures: Whether those that no worker has begun are cancelled.

        Raises:
            BusyError: To wait, in a signal handler that has interrupted a wait for results.
        """
        if cancel_futures:
            self._dispatcher.closing = True
            self._dispatcher.drop_waiting()
            self._dispatcher.settle()
        self._dispatcher.shutdown(wait=wait)

    def terminate_workers(self) -> None:
        """Cancel what was not begun, end the workers by ``SIGTERM``, and shut down.

        What they had in hand raises :class:`WorkerDied`. Who has not ended after 5 seconds
        is killed.
        """
        self._end_workers(kill=False)

    def kill_workers(self) -> None:
        """As :meth:`terminate_workers`, by ``SIGKILL``."""
        self._end_workers(kill=True)

    def _end_workers(self, *, kill: bool) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        self._dispatcher.end_workers(kill=kill)
        self._dispatcher.shutdown(wait=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        # Ctrl-C, and whatever else ends the program: nobody asks for the results any more.
        if kind is not None and not issubclass(kind, Exception):
            self.kill_workers()
        else:
            self.shutdown()
        return None

    def __repr__(self) -> str:
        dispatcher = self._dispatcher
        state = "broken" if dispatcher.broken else "shut down" if dispatcher.closing else "open"
        return (
            f"<ipcmap.ProcessPoolExecutor of {self._max_workers} workers: {state}, "
            f"{len(dispatcher.tasks)} tasks>"
        )

    @property
    def _processes(self) -> dict[int, Any]:
        """The workers by pid, as the standard executor has them."""
        # In a child they are the parent's, and the lock may be taken for good.
        if not self._dispatcher.is_ours:
            return {}
        with self._dispatcher.lock:
            return _by_pid(self._dispatcher.seats.values())

    @property
    def _broken(self) -> str | bool:
        return self._dispatcher.broken or False


def _by_pid(seats: Iterable[Seat]) -> dict[int, Any]:
    return {seat.process.pid or 0: seat.process for seat in seats}


class _Keeper:
    """Ends with the last handle of an executor."""


def _value(answer: bytes | BaseException) -> Any:
    value, error = outcome(answer)
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # its traceback has this frame


def _at_once(buffersize: int | None, count: int) -> int:
    return _AT_ONCE if buffersize is None else min(_AT_ONCE, buffersize - count)


def _checked_retries(retries: int) -> int:
    if retries < 0:
        raise ValueError(f"retries must not be negative: retries={retries}")
    return retries
