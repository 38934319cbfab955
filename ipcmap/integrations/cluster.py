"""Our executor's interface over a cluster of distributed, so that a program moves either way."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, TypeVar

from ipcmap._deadline import Deadline
from ipcmap.chunks import check_chunks, chunks_of, do_chunk
from ipcmap.executor import _checked_retries
from ipcmap.progress import progress_bar

__all__ = ["ClusterExecutor", "cluster_executor"]

P = ParamSpec("P")
T = TypeVar("T")


def cluster_executor(client: Any, *, retries: int = 0, **where: Any) -> ClusterExecutor:
    """Return an executor whose tasks run on a cluster, each in a child of a worker.

    What was written for :class:`ipcmap.ProcessPoolExecutor` runs on it, but for what a
    cluster cannot do, of which the error says what to do instead. Workers that have no
    executor yet get one (:class:`ipcmap.integrations.dask.ExecutorPlugin`).

    Args:
        client: A ``distributed.Client``.
        retries: How often a task is done again that raised, or whose worker died.
        where: ``workers``, ``resources`` and ``allow_other_workers``, as of ``Client.submit``.

    Raises:
        ModuleNotFoundError: distributed is not installed.
        TypeError: Something else is in ``where``.
        ValueError: ``retries`` is negative.
    """
    plugin = importlib.import_module("ipcmap.integrations.dask").ExecutorPlugin
    client.register_plugin(plugin())
    return ClusterExecutor(client, _checked_retries(retries), where)


class ClusterExecutor(Executor):
    """What :func:`ipcmap.cluster_executor` returns."""

    def __init__(self, client: Any, retries: int, where: dict[str, Any]) -> None:
        self._client, self._retries, self._where = client, retries, where
        self._inner = client.get_executor(pure=False, retries=retries, **where)
        self._annotate = importlib.import_module("dask").annotate
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._closed: list[bool] = []  # not empty = shut down; that of all with_options made

    @property
    def _max_workers(self) -> int:
        """How many tasks the cluster does at a time: dask asks."""
        return sum(self._client.nthreads().values()) or 1

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` done, and return its future.

        What cannot be pickled is the future's exception.

        Raises:
            RuntimeError: The executor was shut down.
        """
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        # In one piece: the client would take some names for its own, and tasks for its to do.
        call = functools.partial(fn, *args, **kwargs)
        future: Future[T]
        try:
            with self._annotate(executor="ipcmap"):
                future = self._inner.submit(call)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._futures.add(future)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[T]:
        """Return an iterator over ``map(fn, *iterables)``; see :meth:`ProcessPoolExecutor.map`.

        A task takes a cluster about a millisecond of its scheduler: have the ``chunksize`` fit.

        Raises:
            ModuleNotFoundError: Neither rich nor tqdm is installed.
            TimeoutError: From the iterator: the result was not there in time.
            ValueError: ``chunksize`` or ``buffersize`` is less than 1.
        """
        check_chunks(chunksize, buffersize)
        bar = progress_bar() if progress else None
        deadline = Deadline(timeout)
        items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        call: Callable[..., Any] = fn
        if chunksize > 1:
            items, call = zip(itertools.repeat(fn), chunks_of(items, chunksize)), do_chunk
        futures = deque(self.submit(call, *args) for args in itertools.islice(items, buffersize))
        results = _until_given_up(self._taken(call, items, futures, deadline), futures)
        if bar is not None:
            results = bar(results, len(futures) if buffersize is None else None)
        return itertools.chain.from_iterable(results) if chunksize > 1 else results

    def _taken(
        self,
        call: Callable[..., Any],
        items: Iterator[tuple[Any, ...]],
        futures: deque[Future[Any]],
        deadline: Deadline,
    ) -> Iterator[Any]:
        while futures:
            left = deadline.remaining()
            value = futures[0].result(None if math.isinf(left) else left)
            futures.popleft()
            futures.extend(self.submit(call, *args) for args in itertools.islice(items, 1))
            yield value

    def with_options(
        self, *, timeout: float | None = None, retries: int | None = None
    ) -> ClusterExecutor:
        """Return this executor with other options for what is submitted through it.

        Raises:
            NotImplementedError: There is a ``timeout``.
        """
        if timeout is not None:
            raise NotImplementedError(
                f"a cluster does not end a task that takes too long: timeout={timeout}; give it to "
                "the executors of the workers, before this one is made: client.register_plugin("
                f"ipcmap.integrations.dask.ExecutorPlugin(timeout={timeout}))"
            )
        if retries is None:
            return self
        twin = ClusterExecutor(self._client, _checked_retries(retries), self._where)
        twin._futures, twin._closed = self._futures, self._closed
        return twin

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks. The cluster goes on, and so does its client.

        Args:
            wait: Whether to return when those that were submitted are done.
            cancel_futures: Whether those that are not done are cancelled. What a worker does
                already it goes on with, and its result is dropped.
        """
        self._closed[:] = [True]
        futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            wait_for(futures)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        # As the other executor: after a Ctrl-C nobody asks for the results.
        given_up = kind is not None and not issubclass(kind, Exception)
        self.shutdown(wait=not given_up, cancel_futures=given_up)
        return None

    def terminate_workers(self) -> NoReturn:
        """Raise ``NotImplementedError``: others may use the workers."""
        self._refuse("terminate_workers", "shutdown(cancel_futures=True), or client.restart()")

    def kill_workers(self) -> NoReturn:
        """Raise ``NotImplementedError``: others may use the workers."""
        self._refuse("kill_workers", "shutdown(cancel_futures=True), or client.restart()")

    def statistics(self) -> NoReturn:
        """Raise ``NotImplementedError``: the scheduler has them."""
        self._refuse("statistics", "client.scheduler_info(), client.processing()")

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise NotImplementedError(
            f"a cluster has no {what}() for one of its executors: {self!r}; use {instead}"
        )

    def __repr__(self) -> str:
        state = "shut down" if self._closed else "open"
        address = getattr(getattr(self._client, "scheduler", None), "address", "unknown")
        return f"<ipcmap.cluster_executor on {address}: {state}>"


def _until_given_up(results: Iterator[Any], futures: deque[Future[Any]]) -> Iterator[Any]:
    try:
        yield from results
    finally:
        for future in futures:
            future.cancel()
