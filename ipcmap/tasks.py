"""Tasks, and who waits for them: a future each, or one call of map for many."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import _base as states
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from ipcmap._deadline import Deadline
from ipcmap.messages import RETURNED, UNLOADABLE, load, numbers_of

__all__ = [
    "Condition",
    "Dispatcher",
    "Function",
    "MapCall",
    "Owner",
    "Task",
    "TaskFuture",
    "TaskName",
    "is_main_thread",
    "outcome",
    "wait_until",
]

T = TypeVar("T")

_FOR_EVER = Deadline(None)
_OVER = (states.FINISHED, states.CANCELLED, states.CANCELLED_AND_NOTIFIED)


class Condition(threading.Condition):
    """A condition whose lock a signal handler's exception leaves as it is to be.

    ``with`` takes it and lets it go by one step of C. Of threading's own that is a call of Python,
    after which, or before which, a handler may raise: then it stays taken. To wait, call
    :func:`wait_until`: :meth:`wait` is Python as well.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class Dispatcher(Protocol):
    """What a future asks of its executor."""

    load: Callable[[bytes], Any]

    def pull(
        self, done: Callable[[], bool], condition: threading.Condition, deadline: Deadline
    ) -> None:
        """Take answers until ``done()``, or until the deadline."""

    def drop(self, task: Task) -> bool:
        """Give a task up; return whether that came off."""

    def settle(self) -> None:
        """Give the futures their answers."""

    def is_begun(self, task: Task) -> bool:
        """Return whether a worker has the task in hand."""

    def hurry(self) -> None:
        """Take answers without being asked for them."""


@dataclass(frozen=True)
class TaskName:
    """Which task of an executor.

    Attributes:
        number: Counted in the order in which they were submitted, from 1 on.
        function: The name of the function.
        index: Which item of its ``map``, or which chunk of items, from 0 on; ``None`` = it was
            submitted alone.
    """

    number: int
    function: str
    index: int | None = None

    def __str__(self) -> str:
        item = "" if self.index is None else f", item {self.index}"
        return f"{self.number} ({self.function}{item})"


class Function:
    """What a task calls: its pickle is sent once to each worker, then its number stands for it."""

    __slots__ = ("name", "number", "record")

    def __init__(self, number: int, record: bytes, called: Callable[..., Any]) -> None:
        self.number, self.record = number, record
        while isinstance(called, functools.partial):
            called = called.func
        self.name: str = getattr(called, "__qualname__", None) or type(called).__qualname__

    def on_behalf_of(self, called: Callable[..., Any]) -> Function:
        """Return the same, by the name of what it calls."""
        return Function(self.number, self.record, called)


class Owner(Protocol):
    """Whom a task is for, or many, if it is called when all of them are done."""

    function: Function

    @property
    def timeout(self) -> float | None:
        """Seconds that a task may take."""

    @property
    def retries(self) -> int:
        """How often a task is done again."""

    def settle(self, answer: bytes | BaseException) -> None:
        """Take the answer, with nothing held; only the first counts."""


class Task:
    """Something to do, until it is done."""

    __slots__ = ("index", "number", "owner", "record", "seat")

    def __init__(self, number: int, record: bytes, owner: Owner | MapCall, index: int) -> None:
        self.number, self.record, self.owner, self.index = number, record, owner, index
        self.seat: Any = None  # whose worker has it; None = it waits for one

    @property
    def name(self) -> TaskName:
        """Say which task it is."""
        index = self.index if isinstance(self.owner, MapCall) else None
        return TaskName(self.number, self.owner.function.name, index)


class TaskFuture(Future[T]):
    """The future of one task. Who waits for its result takes the answers of all meanwhile."""

    _task: Task | None = None
    function: Function

    def __init__(self, dispatcher: Dispatcher, timeout: float | None, retries: int) -> None:
        super().__init__()
        self._condition.__class__ = Condition
        self._dispatcher, self.timeout, self.retries = dispatcher, timeout, retries

    def result(self, timeout: float | None = None) -> T:
        """Return what the task returned; raise what it raised."""
        if self._state != states.FINISHED:
            timeout = self._wait(timeout)
        if self._state == states.FINISHED and self._exception is None:
            return self._result  # type: ignore[return-value]
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, ``None`` where it returned."""
        if self._state != states.FINISHED:
            timeout = self._wait(timeout)
        return super().exception(timeout)

    def _wait(self, timeout: float | None) -> float:
        """Wait, and return how long is still to be waited."""
        deadline = _FOR_EVER if timeout is None else Deadline(timeout)
        self._dispatcher.pull(self._is_over, self._condition, deadline)
        return 0.0

    def _is_over(self) -> bool:
        return self._state in _OVER

    def cancel(self) -> bool:
        """Cancel the task; where a worker does it already, that worker is killed.

        No other task is lost by it: the worker is replaced, and what it had not begun is
        given to another.

        Returns:
            Whether the task is cancelled; ``False`` = it is done.
        """
        if self._task is None or self._is_over():
            return self.be_cancelled()
        # Not by hand: what a signal handler breaks off here is done again by whoever settles.
        if self._dispatcher.drop(self._task):
            self._dispatcher.settle()
        return self.cancelled()

    def be_cancelled(self) -> bool:
        """Be a cancelled future, for all that wait."""
        if not super().cancel():
            return False
        with self._condition:
            if self._state == states.CANCELLED:
                self.set_running_or_notify_cancel()
        return True

    def running(self) -> bool:
        """Return whether a worker does the task just now."""
        task = self._task
        return task is not None and not self._is_over() and self._dispatcher.is_begun(task)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have ``fn(future)`` called when the task is done: at once, if it is."""
        super().add_done_callback(fn)
        if self._state != states.FINISHED:
            self._dispatcher.hurry()

    def settle(self, answer: bytes | BaseException) -> None:
        """Take the answer; only the first counts."""
        if isinstance(answer, CancelledError):
            self.be_cancelled()
            return
        value, error = outcome(answer, self._dispatcher.load)
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        # A frame of its traceback has it.
        del value, error


class MapCall:
    """One call of map: the answers to its items, by index, until they are asked for."""

    def __init__(
        self, dispatcher: Dispatcher, function: Function, timeout: float | None, retries: int
    ) -> None:
        self.dispatcher, self.function = dispatcher, function
        self.timeout, self.retries = timeout, retries
        self.answers: dict[int, bytes | BaseException] = {}
        self.condition = Condition()
        self.waiters = 0

    def wait(self, index: int, deadline: Deadline) -> bytes | BaseException:
        """Return the answer for an item.

        Raises:
            TimeoutError: There was none in time.
        """
        answers = self.answers
        if index not in answers:
            self.waiters += 1
            try:
                self.dispatcher.pull(lambda: index in answers, self.condition, deadline)
            finally:
                self.waiters -= 1
            if index not in answers:
                raise TimeoutError
        return answers.pop(index)

    def notify(self) -> None:
        """Wake who waits for an answer, and does not take them all."""
        with self.condition:
            self.condition.notify_all()


def wait_until(done: Callable[[], bool], condition: threading.Condition, timeout: float) -> None:
    """Wait until a condition is notified, unless ``done()``; for so many seconds at most.

    Not by its own wait, which is Python: a signal handler that raises in it may have the lock
    let go twice.
    """
    gate, waiters = threading.Lock(), condition._waiters  # type: ignore[attr-defined]
    gate.acquire()
    try:
        with condition:
            if done():
                return
            waiters.append(gate)
        gate.acquire(timeout=timeout)
    finally:
        with condition, contextlib.suppress(ValueError):  # who was woken is none
            waiters.remove(gate)


def is_main_thread() -> bool:
    """Return whether signal handlers run in this thread."""
    return threading.current_thread() is threading.main_thread()


def _loads(answer: bytes, load: Callable[[bytes], Any]) -> bool:
    try:
        load(answer)
    except Exception:
        return False
    return True


def outcome(
    answer: bytes | BaseException, load: Callable[[bytes], Any] = load
) -> tuple[Any, BaseException | None]:
    """Return what an answer says: a result, or an exception.

    Raises:
        BaseException: That of a signal handler, such as Ctrl-C's.
    """
    if isinstance(answer, BaseException):
        return None, answer
    try:
        value = load(answer)
    except BaseException as error:
        # Where signal handlers run it may be one of theirs: whoever asks again has the result.
        if is_main_thread() and (not isinstance(error, Exception) or _loads(answer, load)):
            raise
        broken = BrokenProcessPool(
            f"result cannot be loaded in this process: {type(error).__name__}: {error}; return "
            "what can be pickled both ways"
        )
        broken.__cause__ = error
        return None, broken
    kind = numbers_of(answer)[1]
    if kind == RETURNED:
        return value, None
    if kind == UNLOADABLE:
        unloadable = BrokenProcessPool(
            f"task cannot be loaded by its worker: {type(value).__name__}: {value}; what it names "
            "is to be defined before the executor is made, and what it is given to be picklable "
            "both ways"
        )
        unloadable.__cause__ = value
        return None, unloadable
    return None, value
