"""The executor's inside as the executor sees it: tasks are taken on, and there is an end.

What each part knows
  assignments.py      which worker has which task, and the lock of all that
  answers.py          what comes back, and whose turn it is to take it
  workforce.py        workers: how they come, and what becomes of the dead
  manager_thread.py   the thread that sees to what nobody else waits for
A dispatcher is the first two, which any thread calls, and has the others, which are the manager's.
It tells the manager what there is to do by what it says of the tasks, and wakes it to look.
"""

from __future__ import annotations

import atexit
import itertools
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util
from typing import Any

from ipcmap._deadline import Deadline
from ipcmap.answers import Answers
from ipcmap.arena import Arena
from ipcmap.manager_thread import Manager
from ipcmap.messages import TAIL, dump_function
from ipcmap.tasks import Function, Task
from ipcmap.worker import Blueprint
from ipcmap.workforce import Workforce

__all__ = ["Dispatcher"]

_KEPT_FUNCTIONS = 256


class Dispatcher(Answers):
    """Tasks, from when they are taken on.

    Args:
        blueprint: What every worker has.
        arena: Where the rings are.
        max_workers: The most at a time.
        early: As of a workforce.

    Attributes:
        ends_at_exit: Whether it ends with the program and with its last handle, rather than when
            its tasks are done.
    """

    def __init__(
        self, blueprint: Blueprint, arena: Arena, max_workers: int, *, early: bool = False
    ) -> None:
        super().__init__(blueprint.results, max_workers, blueprint.engine)
        self.workforce = Workforce(self, blueprint, arena, early=early)
        self.manager = Manager(self, self.workforce)
        self._functions: dict[Any, Function] = {}  # those that are found by name
        self._function_numbers = itertools.count(1)
        self.ends_at_exit = False
        _dispatchers.add(self)
        if _exits_of != [self.pid]:
            # A process of multiprocessing ends without atexit, and waits for its children.
            _exits_of[:] = [self.pid]
            util.Finalize(None, _end_all, exitpriority=10)

    # Tasks come

    def function(self, fn: Callable[..., Any]) -> Function:
        """Return a function by number: the same each time, if it is found by name."""
        named = _is_named(fn)
        known = self._functions.get(fn) if named else None
        if known is None:
            number = next(self._function_numbers)
            known = Function(number, dump_function(fn) + TAIL.pack(0, number), fn)
            if named:
                if len(self._functions) >= _KEPT_FUNCTIONS:
                    self._functions.clear()
                self._functions[fn] = known
        return known

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
        self._check_owner()  # by no lock, which a thread may have had when this one was forked
        manager = self.manager
        with self.lock:
            self.check()
            if manager.thread is None or manager.thread.ident is None:  # has_begun, a call less
                manager.begin()
            interrupts = self.changing
            self.changing = True
            self.timed |= timed
            if not self.tasks:
                self._moved = time.monotonic()
            self._list(tasks)
            self.queue.extend(tasks)
            if not interrupts:
                self.feed()
                self.changing = False
        if interrupts or manager.asleep:
            self.wake()
        if self.lacks_workers:
            manager.await_workers()

    def _list(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.tasks[task.number] = task

    def staff(self) -> None:
        """Fork all workers, now and whenever one has ended.

        Raises:
            BrokenProcessPool: No worker can be forked.
            RuntimeError: It was shut down.
        """
        with self.lock:
            self.check()
            self.manager.begin()
            self.keeps_all = True
        self.wake()
        self.manager.await_workers()
        if not self.workforce.has_hired:
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
            thread = self.manager.thread if self.manager.has_begun else None
        if thread is None:
            self.manager.end()
            return
        self.wake()
        if wait and thread is not threading.current_thread():
            self._check_calls()
            thread.join()

    def end_workers(self, *, kill: bool) -> None:
        """Send every worker a signal that ends it."""
        if self.is_ours:
            self.workforce.end(kill=kill)

    def let_go(self) -> None:
        """Be shut down, since nobody can give it a task any more; called by a finalizer."""
        if self.is_ours:
            self.closing = True
            if self.ends_at_exit:
                self.workforce.grace = Deadline(0)
            if self.manager.has_begun:
                self.wake()
            else:
                self.manager.end()


def _is_named(fn: Any) -> bool:
    """Return whether the function is found by its name, and so lives as long as its module."""
    if isinstance(fn, types.BuiltinFunctionType):
        return isinstance(fn.__self__, types.ModuleType)
    return isinstance(fn, types.FunctionType) and "<" not in fn.__qualname__


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
