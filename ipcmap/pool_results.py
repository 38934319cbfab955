"""What a pool's calls come to: of one, or of all items of a map.

A result is settled by whoever deals with the answers: a thread that waits for its own, or
the manager of the executor. Nothing is held then, so a callback may do as it likes; only to wait
in it for another result is to keep the manager, at times, from seeing that a worker died.
Settled twice is once, and what a signal handler breaks off there is no wait for ever.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import _RemoteTraceback
from multiprocessing import pool as standard
from typing import Any, TypeVar, cast

from ipcmap._deadline import Deadline
from ipcmap.dispatch import Dispatcher
from ipcmap.messages import RETURNED_END
from ipcmap.tasks import Condition, Function, MapCall, is_main_thread, outcome

__all__ = ["AsyncResult", "Calls", "MapResult", "value_of"]

T = TypeVar("T")
Callback = Callable[[Any], object] | None

_log = logging.getLogger("ipcmap")
_RemoteText: Any = standard.RemoteTraceback  # type: ignore[attr-defined]


class AsyncResult(standard.ApplyResult[T]):
    """What one call of a pool comes to, from :meth:`Pool.apply_async`.

    Example:
        >>> import ipcmap
        >>> with ipcmap.Pool(1) as pool:
        ...     result = pool.apply_async(pow, (2, 10))
        ...     result.get(timeout=60), result.ready(), result.successful()
        (1024, True, True)
    """

    timeout: float | None = None  # of a task, as the executor has them
    retries = 0
    function: Function

    def __init__(
        self, pool: Any, dispatcher: Dispatcher, callback: Callback, error_callback: Callback
    ) -> None:
        self._pool = pool  # lives until this is settled
        self.dispatcher = dispatcher
        self._callbacks = callback, error_callback
        self._settled = Condition()
        self._turn = iter((True,))
        self._value: Any = None
        self._error: BaseException | None = None
        self._ready = False

    def ready(self) -> bool:
        """Return whether the call is done."""
        return self._ready

    def successful(self) -> bool:
        """Return whether the call returned, and raised nothing.

        Raises:
            ValueError: It is not done.
        """
        if not self._ready:
            raise ValueError(f"result is not ready: {self!r}; wait() for it first")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call is done, at most ``timeout`` seconds; ``None`` = for ever."""
        if not self._ready:
            self.dispatcher.pull(self.ready, self._settled, Deadline(timeout))

    def get(self, timeout: float | None = None) -> T:
        """Return what the call returned; raise what it raised.

        Args:
            timeout: Seconds to wait for it at most; ``None`` = for ever.

        Raises:
            multiprocessing.TimeoutError: It is not done in time.
            WorkerDied: Its worker died over it.
            CancelledError: The pool was terminated before it was begun.
        """
        self.wait(timeout)
        if not self._ready:
            raise multiprocessing.TimeoutError(
                f"result is not there in time: timeout={timeout} s; ask again, or give it more"
            )
        if self._error is None:
            return cast(T, self._value)
        try:
            raise self._error
        finally:
            del self  # the traceback has this frame

    def settle(self, answer: bytes | BaseException) -> None:
        """Take the answer, and call back; only the first counts."""
        value, error = self._outcome(answer)
        # A turn that was taken is in the try already, whatever a signal handler raises.
        for _ in self._turn:
            try:
                self._value, self._error = value, error
                self._call_back()
            finally:
                self._ready = True
                self._pool = None
                with self._settled:
                    self._settled.notify_all()
        del value, error  # a frame of its traceback has it

    def _outcome(self, answer: bytes | BaseException) -> tuple[Any, BaseException | None]:
        return value_of(answer, self.dispatcher.load)

    def _call_back(self) -> None:
        callback, error_callback = self._callbacks
        if self._error is not None:
            callback = error_callback
        self._callbacks = None, None
        if callback is None:
            return
        try:
            callback(self._value if self._error is None else self._error)
        except BaseException as error:
            # Where signal handlers run it may be one of theirs.
            if not isinstance(error, Exception) and is_main_thread():
                raise
            _log.exception("callback of a pool raised, and is not called again: %r", callback)


class MapResult(AsyncResult[list[T]], standard.MapResult[T]):
    """What all calls of a map come to, from :meth:`Pool.map_async`: a list, or the first error.

    It is ready when every call is done, also where one has failed.
    """

    _calls: Calls | None = None

    def begin(self, function: Function, count: int, chunked: bool) -> Calls:
        """Return the calls that it is of."""
        self._chunked = chunked
        self._calls = Calls(self.dispatcher, function, count, self)
        return self._calls

    def settle(self, answer: bytes | BaseException) -> None:
        """Put the answers together, and call back."""
        super().settle(answer)
        self._calls = None

    def _outcome(self, answer: bytes | BaseException) -> tuple[Any, BaseException | None]:
        calls, values = self._calls, []
        if isinstance(answer, BaseException):
            return None, answer
        if calls is None:  # another thread has settled it
            return None, None
        answers = [calls.answers[index] for index in range(calls.count)]
        try:
            values = _results(answers, self.dispatcher.load)
        except Exception:
            for one in answers:
                value, error = value_of(one, self.dispatcher.load)
                if error is not None:
                    return None, error
                values.append(value)
            if is_main_thread():  # it was a signal handler's
                raise
        if self._chunked:
            values = [*itertools.chain.from_iterable(values)]
        return values, None


class Calls(MapCall):
    """All calls of one map, whose result is settled when they are done.

    Args:
        dispatcher: Who has the answers.
        function: What is called.
        count: How many.
        result: Of all.
    """

    def __init__(
        self, dispatcher: Dispatcher, function: Function, count: int, result: AsyncResult[Any]
    ) -> None:
        super().__init__(dispatcher, function, None, 0)
        self.count = count
        self.waiters = 1  # so notify() is called
        self._finish, self._result = dispatcher.finish, result

    def notify(self) -> None:
        """See whether all answers are there; called with the dispatcher's lock."""
        if len(self.answers) == self.count:
            self._finish(self._result)


def _results(answers: Any, load: Callable[[bytes], Any]) -> list[Any]:
    """Return what all calls returned; raise where one of them has raised."""
    if not all(type(answer) is bytes and answer.endswith(RETURNED_END) for answer in answers):
        raise ValueError
    return [*map(load, answers)]


def value_of(
    answer: bytes | BaseException, load: Callable[[bytes], Any]
) -> tuple[Any, BaseException | None]:
    """Return what an answer says: a result, or an exception as multiprocessing raises it."""
    value, error = outcome(answer, load)
    if error is not None and isinstance(error.__cause__, _RemoteTraceback):
        error.__cause__ = _RemoteText(error.__cause__.tb)
    return value, error
