"""An executor in each worker of a distributed cluster, for tasks that are annotated with its name.

A task then runs in a child of the worker: what kills it costs that task, and not the worker with
all that it holds, and what it does with the GIL holds nobody up.
"""

from __future__ import annotations

import warnings
from typing import Any

from distributed import Worker, WorkerPlugin

from ipcmap.executor import ProcessPoolExecutor

__all__ = ["ExecutorPlugin"]

# Two threads of distributed's, without which no worker process is: they wait, and hold nothing.
_KNOWN_THREADS = r"fork while threads run: Thread-1 \(monitor_parent\), Nanny stop queue watch;"


class ExecutorPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives each worker of a cluster an executor by the name of ``"ipcmap"``.

    Register it before there is work: then the worker is forked with none of its threads busy. Where
    it is registered already, that one stays. When it is taken away, and when the worker
    ends, whatever its executor does is killed.

    Args:
        max_workers: The most children of a worker; ``None`` = one for each of its threads.
        timeout: Seconds that a task may take from its begin; ``None`` = for ever.
        options: Of :class:`ipcmap.ProcessPoolExecutor`: ``retries``, ``max_rss``, and the others.

    Example, of which the page on clusters has the rest::

        client.register_plugin(ExecutorPlugin(retries=2))
        with dask.annotate(executor="ipcmap"):
            future = client.submit(work)
    """

    name = "ipcmap"
    idempotent = True

    def __init__(
        self, max_workers: int | None = None, *, timeout: float | None = None, **options: Any
    ) -> None:
        self._max_workers, self._timeout, self._options = max_workers, timeout, options

    def setup(self, worker: Worker) -> None:
        """Make the executor; called by distributed in each worker."""
        workers = self._max_workers or worker.state.nthreads
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _KNOWN_THREADS, RuntimeWarning)
            executor = ProcessPoolExecutor(workers, **self._options)
        worker.executors[self.name] = executor.with_options(timeout=self._timeout)

    def teardown(self, worker: Worker) -> None:
        """End the executor; called by distributed in each worker."""
        executor = worker.executors.pop(self.name, None)
        if executor is not None:
            executor.kill_workers()
