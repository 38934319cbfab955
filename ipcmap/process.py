"""A child process as in multiprocessing, whose end is told in full.

:class:`Process` is multiprocessing's own class; name, daemon, authkey, the list of
active children and what happens at exit are its work. New are these:

* The child dies with its parent, however that ends. Forked by the first thread of
  the process, the kernel sees to it (PR_SET_PDEATHSIG). Forked by another thread it
  cannot: the kernel would end the child with that thread. Then a thread of the child
  waits for the end of the parent. A child that watches its parent by itself
  (``parent_process()``: ``is_alive``, ``join``, ``sentinel``) is left to do so.
* What ended the child is in :attr:`Process.exit_record`, with the text of the
  exception and the traceback (last_words.py).
* The parent sweeps its arenas before it reaps: afterwards nobody knows of what the
  child died.
* Where the kernel has them, a pidfd is the sentinel, at both ends. The pipe that
  multiprocessing takes for it stays open as long as a grandchild has inherited it.

Not promised: an end with the parent after the child has changed its user or group
id, or its file capabilities (the kernel takes PR_SET_PDEATHSIG back); and where the
child was forked by another thread, while the child holds the GIL in C code, or after
it has replaced itself by exec.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, popen_fork, process, util
from types import FrameType
from typing import Any

from ipcmap._core import libc, liveness
from ipcmap.arena import sweep_arenas
from ipcmap.family import ExitRecord
from ipcmap.last_words import LastWords

__all__ = ["Process"]

_LOOK_FOR_PARENT = 0.5  # seconds between two looks, where the kernel has no pidfd


class Process(process.BaseProcess):
    """An activity that runs in a child, forked directly from the caller.

    Everything that ``multiprocessing.Process`` has is there and works the same.
    The child also

    - dies, by ``SIGKILL``, when its parent ends, in whatever way; unless its first thread
      has asked ``parent_process()`` whether it lives, and so sees to that by itself;
    - does nothing at ``SIGINT``: a Ctrl-C at the terminal is the parent's to handle.
      Programs that the child starts get the default again;
    - has random numbers of its own from ``random`` and from NumPy's global
      generator; generators that you made are yours to seed.

    Args:
        group: ``None``; it is there for the signature.
        target: What ``run()`` calls in the child; ``None`` = nothing.
        name: For people to read; ``None`` = one is made up.
        args: What the target is called with.
        kwargs: The same, by keyword.
        daemon: Whether the parent terminates it when it exits itself, in place of
            waiting for it; ``None`` = as the parent is.

    Example:
        >>> import os
        >>> worker = Process(target=os._exit, args=(3,))
        >>> worker.start()
        >>> worker.join()
        >>> worker.exitcode
        3
        >>> worker.exit_record.cause
        'exited'
        >>> worker.close()
    """

    _start_method = "fork"
    _popen: _Popen | None
    _record: ExitRecord | None = None
    _silent = False  # an exception that the record tells of is not printed as well

    @staticmethod
    def _Popen(process: Process) -> _Popen:  # noqa: N802
        return _Popen(process)

    def start(self) -> None:
        """Fork the child, which calls ``run()``.

        Raises:
            OSError: The kernel has no room for another process.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            super().start()
        finally:
            # Here, not in _launch: a handler that raises finds the process started.
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def exit_record(self) -> ExitRecord | None:
        """How the process ended; ``None`` while it runs and before it was started.

        ``exception`` and ``traceback`` are texts, there if an exception ended it.
        Of a long traceback the end is kept. If somebody else reaped the process,
        the cause is ``"unknown"``. The record outlives :meth:`close`.

        Example:
            >>> import signal
            >>> worker = Process(target=signal.pause)
            >>> worker.start()
            >>> worker.exit_record
            >>> worker.kill()
            >>> worker.join()
            >>> worker.exit_record.cause, worker.exit_record.signal
            ('killed', 9)
        """
        popen = self._popen
        if popen is not None:
            popen.poll()
            self._record = popen.record
        return self._record

    def is_alive(self) -> bool:
        """Return whether the process runs; not so, too, if somebody else reaped it."""
        return super().is_alive() and self.exit_record is None

    def close(self) -> None:
        """Let go of the process, which must have ended; nearly every later call raises.

        Raises:
            ValueError: It runs still; ``join()`` it first.
        """
        ended = self.exit_record is not None
        if self._popen is not None and self._popen.returncode is None and ended:
            # Somebody else reaped it. The base class takes no exit code for alive.
            self._popen.returncode = 255
        super().close()


class _Popen(popen_fork.Popen):
    """The parent's end: forks the child, and learns how it ended."""

    def __init__(self, process: Process) -> None:
        self.record: ExitRecord | None = None
        self._parent = os.getpid()
        self._by_pidfd = False
        self._seen: int | None = None  # the exit code, before the child is reaped
        # A signal handler may ask for what it interrupted.
        self._lock = threading.RLock()
        super().__init__(process)

    def _launch(self, process: Process) -> None:
        self._last_words = LastWords()
        parent_pidfd = -1
        with contextlib.suppress(OSError):
            parent_pidfd = liveness.pidfd_open(self._parent)
        # A handler that raises in the child, before multiprocessing is ready for it,
        # would send it up the parent's stack.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        first_thread = threading.get_native_id() == self._parent
        birth = _Birth(process, self._parent, parent_pidfd, first_thread, mask, self._last_words)
        try:
            super()._launch(birth)  # type: ignore[misc]
        except BaseException:
            self._last_words.take()
            raise
        finally:
            if parent_pidfd >= 0:
                os.close(parent_pidfd)
        if parent_pidfd >= 0:
            self._take_pidfd()

    def _take_pidfd(self) -> None:
        """Make a pidfd the sentinel, in place of the pipes; they stay where it cannot be had."""
        try:
            pidfd = liveness.pidfd_open(self.pid)
        except OSError:
            return
        try:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            os.close(pidfd)
            return
        self.close()
        self.finalizer = util.Finalize(self, os.close, (pidfd,))
        self.sentinel, self._by_pidfd = pidfd, True

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code, ``None`` where there is none (yet)."""
        # A process forked from this one has a copy of this object: no child, and a lock
        # that a thread may have held which it has not got.
        if os.getpid() == self._parent:
            with self._lock:
                if self.record is None:
                    self._look()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return what :meth:`poll` returns."""
        if self.record is None and os.getpid() == self._parent:
            if timeout is not None and not connection.wait([self.sentinel], timeout):
                return None
            # Several threads may wait here: the child stays, for poll() to reap.
            with contextlib.suppress(ChildProcessError):
                self._waitid(os.WEXITED | os.WNOWAIT)
        return self.poll()

    def _waitid(self, options: int) -> os.waitid_result | None:
        # A pid may have gone to another child of ours; a pidfd never does.
        if self._by_pidfd:
            return os.waitid(os.P_PIDFD, self.sentinel, options)
        return os.waitid(os.P_PID, self.pid, options)

    def _look(self) -> None:
        """Look whether the child has ended; if so, sweep, reap it, and write the record.

        A handler that raises may break this off anywhere: the next call goes on.
        """
        try:
            found = self._waitid(os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            pass  # reaped: by us, if the exit code was seen
        else:
            if found is None:
                return
            exited = found.si_code == os.CLD_EXITED
            self._seen = found.si_status if exited else -found.si_status
            sweep_arenas()
            with contextlib.suppress(ChildProcessError):
                self._waitid(os.WEXITED | os.WNOHANG)
        words = self._last_words.take()
        if self.record is None:
            self.record = _record(self.pid, self._seen, *words)
        self.returncode = self._seen

    def _send_signal(self, number: int) -> None:
        if not self._by_pidfd:
            super()._send_signal(number)  # type: ignore[misc]
        elif self.record is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.sentinel, number)


def _record(
    pid: int, exitcode: int | None, exception: str | None, traceback: str | None
) -> ExitRecord:
    killed = exitcode is not None and exitcode < 0
    return ExitRecord(
        pid,
        exitcode,
        -exitcode if exitcode is not None and killed else None,
        exception,
        traceback,
        "unknown" if exitcode is None else "killed" if killed else "exited",
        time.time(),
    )


@dataclass
class _Birth:
    """What the child knows from before the fork, and does before it is multiprocessing's."""

    process: Any
    parent: int
    parent_pidfd: int  # -1 = none
    first_thread: bool  # whether the first thread of the parent forks
    mask: set[int]  # of signals, before the fork
    last_words: LastWords | None  # None = nobody listens yet
    # Set = the child watches the parent by itself.
    outlives: threading.Event = field(default_factory=threading.Event)

    def _bootstrap(self, parent_sentinel: int) -> int:
        """Be the process: what multiprocessing calls in the child."""
        try:
            self._die_with_the_parent()
            # What it wakes up is the parent's event loop, which would take our signals for its own.
            signal.set_wakeup_fd(-1)
            # SIG_IGN would be inherited through exec; where it was set, it was meant to be.
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, _do_nothing)
            _reseed_numpy()
            if self.parent_pidfd >= 0:
                os.close(parent_sentinel)
                parent_sentinel = self.parent_pidfd
            run = functools.partial(self._run, self.process.run, os.getpid())
            vars(self.process)["run"] = run
        except BaseException as error:
            if self.last_words is not None:
                self.last_words.write(error)
            traceback.print_exc()
            return 1
        exitcode: int = self.process._bootstrap(parent_sentinel=parent_sentinel)
        return exitcode

    def _run(self, run: Callable[[], object], pid: int) -> None:
        try:
            _Parent.take_place(self)
            # From here on multiprocessing sees to what a handler raises.
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            run()
        except SystemExit:
            raise
        except BaseException as error:
            # Not for a process that the target forked.
            words = self.last_words if os.getpid() == pid else None
            told = words is not None and words.write(error)
            if told and self.process._silent:
                raise SystemExit(1) from None
            raise

    def _die_with_the_parent(self) -> None:
        if self.first_thread:
            with contextlib.suppress(OSError):
                libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                # It may have died before that.
                if self._orphaned():
                    _die()
                return
        threading.Thread(target=self._watch, name="ipcmap: parent", daemon=True).start()

    def _watch(self) -> None:
        known = self.parent_pidfd >= 0 and self._parent_ended(None) and os.getppid() != self.parent
        # There is no pidfd, or the child has closed it, as daemons do.
        while not known and not self._orphaned():
            time.sleep(_LOOK_FOR_PARENT)
        if not self.outlives.is_set():
            _die()

    def outlive(self) -> None:
        """Do not die with the parent any more; to be called by the first thread."""
        self.outlives.set()
        if self.first_thread and threading.current_thread() is threading.main_thread():
            libc.prctl(libc.PR_SET_PDEATHSIG, 0, 0, 0, 0)

    def _orphaned(self) -> bool:
        # 1 may well be the parent. 0 = it is outside of our pid namespace, alive or dead.
        parent = os.getppid()
        return parent != self.parent if parent else self._parent_ended(0)

    def _parent_ended(self, timeout: int | None) -> bool:
        if self.parent_pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.parent_pidfd, select.POLLIN)
        # POLLHUP comes with it once the parent was reaped; POLLNVAL = not a descriptor any more.
        return any(events & select.POLLIN for _, events in poll.poll(timeout))


class _Parent(process._ParentProcess):  # type: ignore[name-defined, misc]
    """The parent, as ``parent_process()`` returns it: whoever watches it lives on to see its end."""

    _birth: _Birth

    @classmethod
    def take_place(cls, birth: _Birth) -> None:
        """Be what ``parent_process()`` returns, in place of multiprocessing's."""
        theirs: Any = process.parent_process()
        ours = cls(theirs.name, theirs.pid, theirs.sentinel)
        ours._birth = birth
        process._parent_process = ours  # type: ignore[attr-defined]

    def is_alive(self) -> bool:
        self._birth.outlive()
        return bool(super().is_alive())

    def join(self, timeout: float | None = None) -> None:
        self._birth.outlive()
        super().join(timeout)

    @property
    def sentinel(self) -> int:
        self._birth.outlive()
        return int(super().sentinel)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(128 + signal.SIGKILL)  # the first process of a pid namespace survives its own signal


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT."""


def _reseed_numpy() -> None:
    """Give NumPy's global generator new numbers; the standard library sees to its own at a fork."""
    numpy_random = sys.modules.get("numpy.random")
    generator = getattr(numpy_random, "get_bit_generator", lambda: None)()
    # Held: another thread of the parent had it at the fork, and nobody will ever let it go.
    if numpy_random and generator and generator.lock.acquire(blocking=False):
        generator.lock.release()
        numpy_random.seed()
