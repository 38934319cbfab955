"""Pools of workers that are given tasks: ipcmap's, the standard library's, and loky's, which joblib has.

Their workers end with the measuring process, however that ends, since it may be killed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ipcmap import pool as own_pool
from ipcmap.bench.channels import Can, Peer, Terms, die_with_the_parent
from ipcmap.executor import ProcessPoolExecutor

__all__ = ["POOLS", "Pool"]

Task = Callable[[int], int]


@dataclass(frozen=True)
class Pool:
    """How it is used.

    Attributes:
        map: Has a task done for each item, each by itself; yields the results in order.
        call: Has one done, and returns its result.
        pids: Who its workers are, once they have worked.
        close: Ends it.
    """

    map: Callable[[Task, Sequence[int]], Iterable[int]]
    call: Callable[[Task, int], int]
    pids: Callable[[], Iterable[int]]
    close: Callable[[], object]


def _executor(executor: Any) -> Pool:
    return Pool(
        executor.map,
        lambda task, item: executor.submit(task, item).result(),
        lambda: list(executor._processes),
        executor.shutdown,
    )


def _own(terms: Terms) -> Pool:
    return _executor(ProcessPoolExecutor(terms.consumers))


def _futures(terms: Terms) -> Pool:
    context = multiprocessing.get_context("fork")
    return _executor(
        futures.ProcessPoolExecutor(terms.consumers, context, die_with_the_parent, (os.getpid(),))
    )


def _loky(terms: Terms) -> Pool:
    loky = import_module("joblib.externals.loky")
    ends = {"initializer": die_with_the_parent, "initargs": (os.getpid(),)}
    return _executor(loky.get_reusable_executor(terms.consumers, **ends))


def _pool(pool: Any) -> Pool:
    def close() -> None:
        pool.close()
        pool.join()

    return Pool(
        lambda task, items: pool.map(task, items, 1),
        lambda task, item: pool.apply(task, (item,)),
        lambda: [worker.pid for worker in pool._pool],
        close,
    )


def _own_pool(terms: Terms) -> Pool:
    return _pool(own_pool.Pool(terms.consumers))


def _standard_pool(terms: Terms) -> Pool:
    context = multiprocessing.get_context("fork")
    return _pool(context.Pool(terms.consumers, die_with_the_parent, (os.getpid(),)))


POOLS = (
    Peer("ipcmap.ProcessPoolExecutor", _own, can=Can.TASKS, ours=True),
    Peer("ipcmap.Pool", _own_pool, can=Can.TASKS, ours=True),
    Peer("concurrent.futures", _futures, can=Can.TASKS),
    Peer("multiprocessing.Pool", _standard_pool, can=Can.TASKS),
    Peer("loky", _loky, "joblib", "'ipcmap[bench]'", Can.TASKS),
)
