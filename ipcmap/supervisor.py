"""Workers that are kept running: who ends is noticed at once, buried, and started again.

The words are Erlang's. A supervisor has places; a place has one worker at a time, which is
a :class:`Process` of the caller.

    started --> runs --> ended --> buried: arenas swept, reaped, callbacks called
       ^                             |
       +---- within the budget ------+---- not to be restarted: the place stays empty
                                     +---- budget spent: all stopped, BrokenError

All of it happens in the thread that calls ``run()`` or ``attend()``, which sleeps on the
pidfds of its workers and on an eventfd. A signal handler, another thread or another
process of the family only asks for the stop: it stores ``_stop_asked``, or writes to the
eventfd, or both.

A stop has stages, with ``stop_timeout`` for all of them together:

    flag set       the end of workers that have ever called ``stopping()``
    SIGTERM        at once for the other workers, and for these at half time
    SIGKILL        at the end of the time, or at the second SIGTERM or Ctrl-C

If the supervisor's process dies, its workers die with it (process.py). If a worker dies
at any point, it is a worker that has ended. A pidfd and a process that is not reaped yet
name that process and no other, so nobody else is ever signalled.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, get_args

from ipcmap._deadline import Deadline
from ipcmap.errors import BusyError, ClosedError
from ipcmap.family import ExitRecord
from ipcmap.restart_budget import RestartBudget
from ipcmap.stop_flag import StopFlag
from ipcmap.stop_signals import StopSignals
from ipcmap.worker_place import Place, Restart, Worker, WorkerStatistics

__all__ = ["Supervisor", "SupervisorStatistics"]

Strategy = Literal["one_for_one", "one_for_all"]
Callback = Callable[[str, ExitRecord], object]

# Seconds of one sleep. A signal that comes between Python's last look and poll(2) is handled
# when that returns, and may be what asks for the stop.
_SLICE = 0.5
_PIPE_CLOSED = 0.01  # seconds between two looks at a worker that has closed its end of a pipe
_ASKED_FOR = (signal.SIGTERM, signal.SIGKILL)  # what a stop ends a worker with

_log = logging.getLogger("ipcmap")


@dataclass(frozen=True)
class SupervisorStatistics:
    """A supervisor as it was: a snapshot, stale as soon as it is taken.

    Attributes:
        workers: Its places, in the order in which they were added.
        running: How many of them have a worker.
        restarts: How often it restarted one, or all of them.
    """

    workers: tuple[WorkerStatistics, ...]
    running: int
    restarts: int


class Supervisor:
    """Starts workers, and starts them again when they end, until told to stop.

    Args:
        strategy: What is started again when one ends that is to be: ``"one_for_one"``
            that one; ``"one_for_all"`` all, after the others were stopped.
        intensity: How many restarts there may be within ``period``. When one more is
            needed, the supervisor gives up.
        period: Seconds.
        stop_timeout: Seconds that the workers have to end at a stop, before SIGKILL;
            ``None`` = as long as they need.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from ipcmap import Ring
        >>> tasks, done = Ring(), Ring()
        >>> tasks.put_many([b"one", b"two", b"three"])
        >>> supervisor = Supervisor()
        >>> @supervisor.on_death
        ... def look(name, record):
        ...     if len(done) == 3:
        ...         supervisor.stop()
        >>> supervisor.add(lambda: done.put(tasks.get().upper()), name="upper").run()
        >>> done.get_many()
        [b'ONE', b'TWO', b'THREE']
        >>> supervisor.statistics().restarts
        2
    """

    def __init__(
        self,
        *,
        strategy: Strategy = "one_for_one",
        intensity: int = 3,
        period: float = 5.0,
        stop_timeout: float | None = 5.0,
    ) -> None:
        _one_of("strategy", strategy, get_args(Strategy))
        if stop_timeout is not None and not stop_timeout >= 0:
            raise ValueError(
                f"stop_timeout must be 0 seconds or more, or None: stop_timeout={stop_timeout}"
            )
        self._strategy, self._budget = strategy, RestartBudget(intensity, period)
        self._stop_timeout = math.inf if stop_timeout is None else stop_timeout
        self._places: list[Place] = []
        self._callbacks: list[Callback] = []
        self._flag: StopFlag | None = None
        self._owner = 0  # pid of the process whose workers these are, once there are any
        self._attending = False
        self._stop_asked = self._hurry = False
        # The eventfd, -1 = there is none; whoever writes to it keeps it from being closed.
        self._wake = -1
        self._wake_lock = threading.RLock()

    # Before

    def add(
        self,
        target: Callable[..., object],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        count: int = 1,
        restart: Restart = "permanent",
    ) -> Self:
        """Add a worker, or several that do the same; return the supervisor.

        Args:
            target: What a worker calls.
            args: What it is called with.
            kwargs: The same, by keyword.
            name: For people to read; ``None`` = the target's. Of several, each has its
                number behind it, from 1 on.
            count: How many workers.
            restart: When one is started again: ``"permanent"`` whenever it ends,
                ``"transient"`` if it ends by a signal, an exception or an exit code
                other than 0, ``"temporary"`` never.

        Raises:
            BusyError: The supervisor has begun.
            ValueError: An argument is out of range.
        """
        _one_of("restart", restart, get_args(Restart))
        if count < 1:
            raise ValueError(f"number of workers must be 1 or more: count={count}")
        if self._owner:
            raise BusyError("workers must be added before the supervisor begins; make another")
        name = name or str(getattr(target, "__name__", type(target).__name__))
        args, kwargs = tuple(args), dict(kwargs or {})
        for number in range(1, count + 1):
            named = name if count == 1 else f"{name}-{number}"
            self._places.append(Place(len(self._places), named, target, args, kwargs, restart))
        return self

    def on_death(self, callback: Callback) -> Callback:
        """Have ``callback(name, exit_record)`` called for each worker that ends, and return it.

        However it ends, at a stop too; after its arenas were swept and before another is
        started in its place. Called by the thread in ``run()`` or ``attend()``. If it
        raises, all workers are stopped, and the exception comes out of that call.
        """
        self._callbacks.append(callback)
        return callback

    # Meanwhile

    def run(self) -> None:
        """Start the workers, and see to them until all have ended for good or :meth:`stop`.

        In the first thread SIGTERM stops it as :meth:`stop` does, and Ctrl-C too, which is
        then raised as KeyboardInterrupt; a second one of them ends the workers at once.
        A signal that is ignored stays so, and so does a SIGINT handler of your own. The
        handlers are put back at the end. However it ends, no worker is left.

        Raises:
            BrokenError: Workers ended more often than they may be restarted. Its
                ``deaths`` are what the last restarts were for; its cause is the traceback
                of the last worker.
            BusyError: It runs already.
            ClosedError: It has run before.
            OSError: The kernel has no room for another process, or no descriptor.
        """
        with StopSignals(self._signalled), self:
            self._attend_until_the_end()

    def _attend_until_the_end(self) -> None:
        while self.attend():
            pass

    def __enter__(self) -> Self:
        """Start the workers, to be seen to with :meth:`attend`; the end of the block stops them."""
        if self._flag is not None:
            raise BusyError("a supervisor can be started once at a time: it runs already")
        if self._owner:
            raise ClosedError("a supervisor can be started once: it has ended; make another")
        self._owner = os.getpid()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._start_all()
        except BaseException:
            self._end(quietly=True)
            raise
        return self

    def _start_all(self) -> None:
        self._flag = StopFlag(len(self._places))
        for place in self._places:
            place.start(self._flag)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owner == os.getpid():  # a process forked since leaves the block too
            self._end(quietly=error is not None)

    def attend(self, timeout: float | None = None) -> bool:
        """See to the workers for a while, in a ``with`` block; return whether any is left.

        For a process that has other work to do: workers that end meanwhile wait, unburied,
        for the next call.

        Args:
            timeout: Seconds; ``None`` = until none is left, 0 = see to those that have
                ended by now.

        Raises:
            BusyError: Called by a callback, or by a signal handler that interrupted it.
            ClosedError: The supervisor does not run in this process.
            ValueError: ``timeout`` is not a number.
            BrokenError: As of :meth:`run`. All workers have been stopped then.

        Example:
            >>> from ipcmap import Ring
            >>> squares = Ring()
            >>> def square(number):
            ...     squares.put(b"%d" % number**2)
            >>> with Supervisor().add(square, (7,), restart="transient") as supervisor:
            ...     while supervisor.attend(timeout=1):
            ...         pass
            >>> squares.get()
            b'49'
        """
        if self._flag is None or self._owner != os.getpid():
            raise ClosedError(
                "a supervisor is attended where it runs: it does not in this process; "
                "call run(), or attend() inside its with block"
            )
        if self._attending:
            raise BusyError("a supervisor is attended by one at a time: it is being attended")
        deadline = Deadline(timeout)
        self._attending = True
        try:
            self._see_to_all(deadline)
            if self._stop_asked:
                self._stop_all()
        except Exception:
            with contextlib.suppress(Exception):  # what callbacks raise on: the first is told
                self._stop_all(quietly=True)
            raise
        finally:
            self._attending = False
        return bool(self._running())

    def _see_to_all(self, deadline: Deadline) -> None:
        while self._running() and not self._stop_asked:
            left = deadline.remaining()
            self._see_to(self._wait(left))
            if not left:
                break

    def stop(self) -> None:
        """Ask for the end; :meth:`run` or :meth:`attend` stops all workers, and returns.

        May be called from a signal handler, another thread, a callback or a worker; before
        the beginning too, and more than once. It does not wait.
        """
        self._stop_asked = True
        if self._owner == os.getpid():
            with self._wake_lock:
                self._write()
        else:  # a lock may be held for ever in a copy; but nobody closes the descriptor there
            self._write()

    def _write(self) -> None:
        if self._wake >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake, 1)

    def statistics(self) -> SupervisorStatistics:
        """Return what can be said of it in figures."""
        workers = tuple(place.statistics() for place in self._places)
        running = sum(worker.pid is not None for worker in workers)
        return SupervisorStatistics(workers, running, self._budget.count)

    def _signalled(self, again: bool) -> None:
        self._hurry = again
        self.stop()

    # Deaths

    def _running(self) -> list[tuple[Place, Worker]]:
        return [(place, worker) for place in self._places if (worker := place.worker)]

    def _wait(self, timeout: float) -> list[Place]:
        """Wait, for a slice at most, until a worker ends or a stop is asked for.

        Returns:
            The places whose worker has ended.
        """
        by_sentinel = {worker.sentinel: (place, worker) for place, worker in self._running()}
        poll = select.poll()
        for descriptor in (self._wake, *by_sentinel):
            poll.register(descriptor, select.POLLIN)
        milliseconds = math.ceil(min(timeout, _SLICE) * 1000)
        ready = {descriptor for descriptor, _ in poll.poll(milliseconds)}
        if self._wake in ready:
            self._stop_asked = True
            ready.remove(self._wake)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        ended = [
            place
            for descriptor, (place, worker) in by_sentinel.items()
            if descriptor in ready and worker.exit_record is not None
        ]
        if ready and not ended:
            time.sleep(_PIPE_CLOSED)
        return ended

    def _see_to(self, ended: list[Place]) -> None:
        """Bury the ended, and start again whom the strategy says."""
        assert self._flag is not None
        to_be_restarted = []
        for place in ended:
            record = self._bury(place)
            if record.exitcode != 0:
                _tell(place, record, quietly=place.to_be_restarted(record))
            if place.to_be_restarted(record):
                to_be_restarted.append((place, record))
        for place, record in to_be_restarted:
            if self._stop_asked:
                return
            self._budget.spend(place.name, record)
            if self._strategy == "one_for_all":
                self._restart_all()
                return
            place.start(self._flag)

    def _restart_all(self) -> None:
        assert self._flag is not None
        self._stop_all()
        self._flag.clear()
        for place in self._places:
            if place.restart != "temporary" and not self._stop_asked:
                place.start(self._flag)

    def _bury(self, place: Place) -> ExitRecord:
        record = place.bury()
        for callback in self._callbacks:
            callback(place.name, record)
        return record

    # The end

    def _stop_all(self, *, quietly: bool = False) -> None:
        """Stop all workers, in stages; raise what the first of the callbacks raised.

        Quietly, where one traceback is on its way already.
        """
        if not self._running():
            return
        assert self._flag is not None
        self._flag.set()
        begun, errors = time.monotonic(), list[Exception]()
        stages = [
            (begun, self._end_who_never_asked),
            (begun + self._stop_timeout / 2, self._end_politely),
            (begun + self._stop_timeout, self._kill),
        ]
        while self._running():
            if self._hurry:
                self._kill()
                stages.clear()
            while stages and stages[0][0] <= time.monotonic():
                stages.pop(0)[1]()
            left = stages[0][0] - time.monotonic() if stages else math.inf
            for place in self._wait(max(0.0, left)):
                try:
                    record = self._bury(place)
                    if record.exitcode and record.signal not in _ASKED_FOR:
                        _tell(place, record, quietly=quietly)
                except Exception as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _end_who_never_asked(self) -> None:
        assert self._flag is not None
        for place, worker in self._running():
            if not self._flag.has_asked(place.number):
                worker.stop()

    def _end_politely(self) -> None:
        for _, worker in self._running():
            worker.stop()

    def _kill(self) -> None:
        for _, worker in self._running():
            worker.kill()

    def _end(self, *, quietly: bool) -> None:
        """Stop all, and leave nothing behind."""
        try:
            if self._flag is not None:
                self._stop_all(quietly=quietly)
        finally:
            self._kill()
            for place, _ in self._running():
                place.bury()
            with self._wake_lock:
                wake, self._wake = self._wake, -1
                os.close(wake)
            flag, self._flag = self._flag, None
            if flag is not None:
                flag.close()


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}: {name}={given!r}")


def _tell(place: Place, record: ExitRecord, *, quietly: bool) -> None:
    """Log that a worker ended as it should not, with its traceback; that may be told elsewhere."""
    _log.warning("worker ended: name=%r, %s", place.name, record)
    if record.traceback:
        _log.log(logging.INFO if quietly else logging.WARNING, "%s", record.traceback)
