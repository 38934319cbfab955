"""The queues of the context: what cannot be pickled is reported, as in multiprocessing.

There a thread pickles behind the caller's back, so ``put`` never raises for the object: the
thread calls ``_on_queue_feeder_error``, which prints and goes on. Code that takes its
queues from a context may rely on that, and may override the method. Here it is called by
``put`` itself (docs/design/0013). ``ipcmap.Queue`` raises.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any, TypeVar

from ipcmap.errors import ClosedError
from ipcmap.joinable_queue import JoinableQueue
from ipcmap.queues import Queue, seconds

__all__ = ["ReportingJoinableQueue", "ReportingQueue"]

T = TypeVar("T")


class ReportingQueue(Queue[T]):
    """A :class:`ipcmap.Queue` whose ``put`` does not raise for what cannot be pickled.

    Example:
        >>> import contextlib, io
        >>> objects, said = ReportingQueue(), io.StringIO()
        >>> with contextlib.redirect_stderr(said):
        ...     objects.put(lambda: None)
        >>> "pickle" in said.getvalue()
        True
        >>> objects.qsize()
        0
    """

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Append an object, or report that it cannot be pickled; see :meth:`ipcmap.Queue.put`."""
        timeout = seconds(block, timeout)
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        try:
            record = self._dumps(obj)
        except Exception as error:
            self._on_queue_feeder_error(error, obj)
            return
        try:
            self._put_record(record, timeout)
        except ClosedError:
            raise self._shut() from None
        self._used = True

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """Say on stderr what an object raised that is not put; may be overridden."""
        text = "".join(traceback.format_exception(e))
        sys.stderr.write(f"not put, since it cannot be pickled: type={type(obj).__name__}\n{text}")


class ReportingJoinableQueue(ReportingQueue[T], JoinableQueue[T]):
    """A :class:`ipcmap.JoinableQueue` whose ``put`` does not raise for what cannot be pickled."""
