"""joblib's parallel loops, and so scikit-learn's, on ipcmap's executor.

The workers are forked by a zygote that is forked by :func:`register`: so they see what was
imported by then, and nothing of the threads that the program and its BLAS and OpenMP have started
since. What they need of the rest goes to them by pickle, functions of ``__main__`` by value.

An executor serves one call of ``Parallel`` at a time. After the call one is kept, with its
workers, for the next call that asks for the same; :func:`shutdown` ends it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from ipcmap.errors import WorkerDied
from ipcmap.executor import ProcessPoolExecutor
from ipcmap.integrations.lent_arrays import Lender, run
from ipcmap.worker import limit_blas
from ipcmap.zygote import prefork

__all__ = ["Backend", "register", "shutdown"]

_MAX_NBYTES = 1 << 20  # bytes; larger arrays are lent, as joblib's own backends do


def register(*, make_default: bool = False) -> None:
    """Make ``"ipcmap"`` known to joblib as a backend, and fork the zygote of its workers.

    To be called after the imports and before the first threads. Twice is once.

    Args:
        make_default: Whether it is what ``Parallel`` takes where nothing else is asked for.

    Example:
        >>> import ipcmap.integrations.joblib
        >>> from joblib import Parallel, delayed, parallel_config
        >>> ipcmap.integrations.joblib.register()
        >>> with parallel_config(backend="ipcmap", n_jobs=2):
        ...     Parallel()(delayed(pow)(number, 2) for number in range(5))
        [0, 1, 4, 9, 16]
        >>> ipcmap.integrations.joblib.shutdown()
    """
    joblib.register_parallel_backend("ipcmap", Backend, make_default=make_default)
    prefork()


def shutdown() -> None:
    """End the workers that are kept for the next call; it forks others."""
    _keep(None)


class _Executor(ProcessPoolExecutor):
    """An executor, and what its workers were lent."""

    _early = True
    lender: Lender
    made_for: tuple[Any, ...]


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """A backend of joblib. The options are those of the executor.

    Args:
        nesting_level: How many calls of ``Parallel`` are around it; joblib counts.
        inner_max_num_threads: How many threads BLAS and OpenMP may use in each worker; ``None`` =
            its share of the processors.
        retries: How often a batch is done again whose worker died.
        max_tasks_per_child: After how many batches a worker is replaced; ``None`` = never.
        max_rss: A worker with more bytes resident after a batch is replaced; ``None`` = never.

    Example:
        >>> import ipcmap.integrations.joblib
        >>> from joblib import Parallel, delayed, parallel_config
        >>> ipcmap.integrations.joblib.register()
        >>> with parallel_config("ipcmap", n_jobs=2, retries=3, inner_max_num_threads=1):
        ...     Parallel()(delayed(abs)(number) for number in (-1, -2))
        [1, 2]
        >>> ipcmap.integrations.joblib.shutdown()
    """

    supports_inner_max_num_threads = True
    supports_retrieve_callback = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        retries: int = 0,
        max_tasks_per_child: int | None = None,
        max_rss: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = (retries, max_tasks_per_child, max_rss)
        self._executor: _Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers there will be; negative = counted down from all processors + 1."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(joblib.cpu_count() + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        *,
        max_nbytes: int | None = _MAX_NBYTES,
        mmap_mode: str | None = "r",
        **_: Any,
    ) -> int:
        """Get the workers ready, and return how many there are at most.

        Args:
            n_jobs: How many; 1 = joblib does it here, without this backend.
            parallel: The ``Parallel`` that asks.
            prefer: Its hint.
            require: What it cannot do without.
            max_nbytes: Arrays of more bytes are copied once, into a block that workers read.
            mmap_mode: What they may do with it; ``None`` = each task has a copy of its own.
        """
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        variables = tuple(sorted(self._prepare_worker_env(workers).items()))
        lending = (None, "r") if mmap_mode is None else (max_nbytes, mmap_mode)
        wanted = (workers, variables, self.inner_max_num_threads, self._options, lending)
        self._executor = _kept_for(wanted) or _new(wanted)
        return workers

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Have a batch done; whatever fails, fails in its future."""
        executor = self._executor
        future: Future[Any]
        try:
            if executor is None:
                raise RuntimeError("backend has no workers: configure() comes first")
            parcel, lent = executor.lender.pack(func)
            future = executor.submit(run, parcel)  # type: ignore[arg-type] # as it is loaded
            # Before joblib's, which may begin the next batch.
            future.add_done_callback(
                functools.partial(_returned, executor.lender, lent, _name_of(func))
            )
        except Exception as error:  # joblib calls from a thread whose exceptions nobody sees
            future = Future()
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what a batch returned; raise what it raised."""
        return out.result().result

    def stop_call(self) -> None:
        """Lend no array any more: its content may be another at the next call."""
        if self._executor is not None:
            self._executor.lender.forget(self._executor._processes)

    def terminate(self) -> None:
        """Keep the workers for the next call."""
        executor, self._executor = self._executor, None
        if executor is not None:
            _keep(executor)
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Kill the workers, whatever they do; have others, if they are asked for."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.kill_workers()
            executor.lender.forget(())
        if ensure_ready:
            self.configure(
                self.parallel.n_jobs, self.parallel, **getattr(self.parallel, "_backend_kwargs", {})
            )


def _name_of(batch: Any) -> str:
    # In place of the batch: joblib keeps futures, and so what their callbacks have.
    first = batch.items[0][0]
    return f"calls={len(batch)}, the first of {getattr(first, '__qualname__', first)}"


def _returned(lender: Lender, lent: list[Any], name: str, future: Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    if isinstance(error, WorkerDied):
        error.add_note(f"the task was a batch of joblib's: {name}")
    failed = future.cancelled() or error is not None
    lender.returned(lent, None if failed else future.result())


# Executors

_lock = threading.Lock()
_idle: list[_Executor] = []  # the one that is kept, if any


def _kept_for(wanted: tuple[Any, ...]) -> _Executor | None:
    """Take the executor that is kept, if it is what is wanted and good still."""
    with _lock:
        fits = bool(_idle) and _idle[0].made_for == wanted and _is_good(_idle[0])
        return _idle.pop() if fits else None


def _keep(executor: _Executor | None) -> None:
    """Keep an executor in place of the one that is kept."""
    with _lock:
        before = _idle[:]
        _idle[:] = [executor] if executor is not None and _is_good(executor) else []
    for other in before:
        other.shutdown(wait=True)
        other.lender.forget(())


def _is_good(executor: _Executor) -> bool:
    dispatcher = executor._dispatcher
    return dispatcher.is_ours and not (dispatcher.closing or dispatcher.broken)


def _new(wanted: tuple[Any, ...]) -> _Executor:
    _keep(None)  # or its workers would sit idle beside these
    workers, variables, threads, (retries, max_tasks_per_child, max_rss), lending = wanted
    executor = _Executor(
        workers,
        initializer=_prepare,
        initargs=(variables, threads),
        retries=retries,
        max_tasks_per_child=max_tasks_per_child,
        max_rss=max_rss,
    )
    executor.lender, executor.made_for = Lender(*lending), wanted
    return executor


def _prepare(variables: tuple[tuple[str, str], ...], threads: int | None) -> None:
    """Limit the threads in a worker, before its first batch."""
    os.environ.update(variables)
    if threads is not None:
        limit_blas(threads)
