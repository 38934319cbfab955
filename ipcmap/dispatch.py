"""The executor's inside: tasks come, answers come back, the dead are noticed."""

from __future__ import annotations

import atexit
import itertools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util
from typing import Any

from ipcmap._deadline import Deadline
from ipcmap.arena import Arena
from ipcmap.manager_thread import Manager
from ipcmap.tasks import Function, Task
from ipcmap.worker import Blueprint

__all__ = ["Dispatcher"]


class Dispatcher(Manager):
    """Tasks are taken on, and their executor ends.

    Args:
        blueprint: What every worker has.
        arena: Where the rings are.
        max_workers: The most at a time.
        early: As of a workforce.
    """

    def __init__(
        self, blueprint: Blueprint, arena: Arena, max_workers: int, *, early: bool = False
    ) -> None:
        super().__init__(blueprint, arena, max_workers, early=early)
        self._functions = itertools.count(1)
        self.ends_at_exit = False  # and with its last handle; or its tasks are done first
        _dispatchers.add(self)
        if _exits_of != [self.pid]:
            # A process of multiprocessing ends without atexit, and waits for its children.
            _exits_of[:] = [self.pid]
            util.Finalize(None, _end_all, exitpriority=10)

    # Tasks come

    def function(self, function: Callable[..., Any], pickled: bytes) -> Function:
        """Number a function."""
        return Function(next(self._functions), function, pickled)

    def check(self) -> None:
        """Raise where it takes no tasks any more."""
        self._check_owner()
        if self.broken is not None:
            raise BrokenProcessPool(self.broken)
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def add(self, tasks: Sequence[Task], *, timed: bool) -> None:
        """Take tasks on; ``timed`` = some of them have a timeout.

        Raises:
            BrokenProcessPool: No worker can be had.
            RuntimeError: It was shut down.
        """
        with self.lock:
            self.check()
            if self.manager is None or self.manager.ident is None:
                self._begin()
            interrupts = self._changing
            self._changing = True
            self._timed |= timed
            if not self.tasks:
                self._moved = time.monotonic()
            for task in tasks:
                self.tasks[task.number] = task
            self.queue.extend(tasks)
            if not interrupts:
                self._feed()
                self._changing = False
        if interrupts or self._asleep:
            self.wake()
        if self.lacks_workers:
            self._await_workers()

    def staff(self) -> None:
        """Fork all workers, now and whenever one has ended.

        Raises:
            BrokenProcessPool: No worker can be forked.
            RuntimeError: It was shut down.
        """
        with self.lock:
            self.check()
            if self.manager is None or self.manager.ident is None:
                self._begin()
            self.keeps_all = True
        self.wake()
        self._await_workers()
        if not self._has_hired:
            self.check()

    # The end

    def shutdown(self, *, wait: bool) -> None:
        """Take no more tasks; end when all are done.

        Raises:
            BusyError: To wait, in a signal handler that has interrupted a call of it.
        """
        if not self.is_ours:
            return
        with self.lock:
            self.closing = True
            manager = self.manager
        if manager is None or manager.ident is None:
            self._finish()
            return
        self.wake()
        if wait and manager is not threading.current_thread():
            self._check_calls()
            manager.join()

    def let_go(self) -> None:
        """Be shut down, since nobody can give it a task any more; called by a finalizer."""
        if self.is_ours:
            self.closing = True
            if self.ends_at_exit:
                self._grace = Deadline(0)
            if self.manager is None or self.manager.ident is None:
                self._finish()
            else:
                self.wake()


_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_exits_of: list[int] = []  # the pid whose end calls _end_all


@atexit.register
def _end_all() -> None:
    """Let the tasks of this process's executors be done before it exits; not after a Ctrl-C.

    Those of a pool are not, as of multiprocessing's.
    """
    interrupted = _was_interrupted()
    for dispatcher in list(_dispatchers):
        if dispatcher.is_ours:
            if interrupted or dispatcher.ends_at_exit:
                dispatcher.drop_waiting()
                dispatcher.settle()
                dispatcher.end_workers(kill=True)
            dispatcher.shutdown(wait=True)


def _was_interrupted() -> bool:
    """Return whether the program ends of a Ctrl-C, or of what that broke in its way up."""
    error: BaseException | None = getattr(sys, "last_value", None)
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
