"""A process with one thread, forked early, that forks workers whenever they are needed.

A process that has threads should not fork: the child has one thread, and the locks of all.
So an executor forks its zygote while it is made, and whatever it needs later is forked by
the zygote. The workers are the zygote's siblings (cloning.py): the caller's own children, which
it waits for as for any other, and which die with it and not with the zygote. Why so:
docs/design/0010-zygote.md.

A request is a record on a socket, the answer is the worker's pid. An answer to an earlier
request is skipped. What the zygote does, and what holds if it dies: zygote_server.py.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing import process, util
from typing import Any, cast

from ipcmap._core import liveness
from ipcmap.errors import BusyError
from ipcmap.last_words import LastWords
from ipcmap.process import Process, _Popen
from ipcmap.zygote_server import ANSWER, LONGEST, OF_A_SPARE, ZygoteServer, socket_pair

__all__ = ["Zygote", "ZygoteProcess", "prefork", "zygote_for"]

_ENDED = os.WEXITED | os.WNOHANG
_LAST_WAIT = 1.0  # seconds for the word of a child whose zygote is dead
_LOOK = 1.0  # seconds between two looks whether a zygote that does not answer is stopped


class Zygote:
    """Forks workers for the process that made it.

    Args:
        target: What a worker calls; ``None`` = each worker's comes with its request, by
            pickle. The target itself travels by fork, and needs no pickle.

    Raises:
        OSError: The kernel has no room for another process, or no pidfd.
    """

    def __init__(self, target: Callable[..., object] | None = None) -> None:
        self.target = target
        self._maker = os.getpid()
        self._lock = threading.RLock()
        self._count = 0
        # Children that nobody has had from fork(), dead or alive, and when they started.
        self._spares: dict[int, int] = {}
        self._told = 0  # the one of them that the zygote has told of last
        self._youngest = mmap.mmap(-1, mmap.PAGESIZE)  # whom it has forked last
        self._pidfd = -1
        self._socket, theirs = socket_pair()
        try:
            with theirs:
                self._begin(theirs)
        except BaseException:  # a signal handler's, too
            self.close()
            raise

    def _begin(self, theirs: socket.socket) -> None:
        # Its workers' parent is the thread that forks it.
        first_thread = threading.get_native_id() == self._maker
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            parent_pidfd = liveness.pidfd_open(self._maker)
            try:
                util._flush_std_streams()  # type: ignore[attr-defined]
                with warnings.catch_warnings():
                    # Of threads we warn ourselves, by name.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    self.pid = os.fork()
                if self.pid == 0:
                    self._socket.close()
                    ZygoteServer(
                        theirs,
                        self.target,
                        self._maker,
                        parent_pidfd,
                        first_thread,
                        mask,
                        self._youngest,
                    ).run()
            finally:
                # Before the next is opened: so there is room for it.
                os.close(parent_pidfd)
            self._pidfd = liveness.pidfd_open(self.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def usable(self) -> bool:
        """Whether it lives, and is this process's."""
        pidfd = self._pidfd  # which another thread may close
        return pidfd >= 0 and self._maker == os.getpid() and not _is_readable(pidfd)

    def fork(self, request: bytes) -> int:
        """Have a worker forked, and return its pid.

        One that is found stopped (SIGSTOP) twice, a second apart, is killed.

        Raises:
            BrokenPipeError: The zygote is dead.
            BusyError: It was called by a signal handler that interrupted it.
            ChildProcessError: Its children die, one after another, before they are ready.
            OSError: The kernel has no room for another process.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise BusyError(
                "zygote is in use by the code that this signal handler or finalizer interrupted: "
                f"pid={self.pid}; leave the handler first"
            )
        with self._lock:
            self._count += 1
            try:
                if self._pidfd < 0:  # whoever shares it has found it dead
                    raise BrokenPipeError
                self._socket.sendall(struct.pack("<Q", self._count) + request)
                pid = self._answer_to(self._count)
            except (ConnectionError, struct.error):
                raise BrokenPipeError(f"zygote is dead: pid={self.pid}; make another") from None
            self._spares.pop(pid, None)
            self._reap(alive=False)
        if pid == -errno.ECHILD:
            raise ChildProcessError(
                errno.ECHILD,
                f"children of the zygote die before they are ready: zygote={self.pid}; "
                "what they print says why",
            )
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def _answer_to(self, count: int) -> int:
        number, pid = OF_A_SPARE, 0
        while number != count:
            number, pid = self._hear()
        return pid

    def _hear(self) -> tuple[int, int]:
        """Return the next answer; ``struct.error`` if there will be none."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        stopped = False
        while not (ready := {descriptor for descriptor, _ in poll.poll(_LOOK * 1000)}):
            stopped = self._kill_if_stopped(stopped)
        if ready == {self._pidfd}:
            poll.unregister(self._pidfd)
            ready = {descriptor for descriptor, _ in poll.poll(_LAST_WAIT * 1000)}
        number, pid, started = ANSWER.unpack(self._socket.recv(ANSWER.size) if ready else b"")
        if number == OF_A_SPARE:
            self._spares[pid], self._told = started, pid
        return number, pid

    def _kill_if_stopped(self, before: bool) -> bool:
        """Kill it if it is stopped, and was at the look ``before``; return whether it is.

        Who needs a worker cannot wait for one that may never go on; another can be forked. One
        look alone says too little: this process may have been stopped with it, and have gone on
        a moment earlier.
        """
        stat = liveness.read_stat(self.pid)
        stopped = stat is not None and stat.state == "T"
        if stopped and before:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        return stopped

    def _reap(self, *, alive: bool) -> None:
        """Reap the spares that are dead; ``alive`` = the others are to die first."""
        # By pid: there may be no room for a pidfd.
        for pid, started in list(self._spares.items()):
            stat = liveness.read_stat(pid)
            strange = stat and started and stat.started != started
            with contextlib.suppress(ChildProcessError, ProcessLookupError):  # somebody else has
                if not strange and os.waitid(os.P_PID, pid, _ENDED) is None:
                    if not alive:
                        continue
                    os.kill(pid, signal.SIGKILL)
                    os.waitid(os.P_PID, pid, os.WEXITED)
            self._spares.pop(pid, None)

    def close(self) -> None:
        """End it, and the spare that it has; its workers go on. Twice is once.

        A signal handler that raises may break it off anywhere: the next call goes on.
        """
        if self._maker != os.getpid():  # a copy, whose lock a thread may have that is not here
            self._let_go()
            return
        with self._lock:
            if self._pidfd >= 0:
                self._end()
            self._let_go()

    def _let_go(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        self._socket.close()

    def _end(self) -> None:
        # Asked, it does not end before it has told of a spare; who is stopped hears nothing.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if not _is_readable(self._pidfd, _LAST_WAIT):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        with contextlib.suppress(ConnectionError, struct.error):
            while True:
                self._hear()
        youngest = int.from_bytes(self._youngest[:4], sys.byteorder)
        if youngest not in (0, self._told):  # killed by somebody else, it had no time for that
            self._spares[youngest] = 0
        self._reap(alive=True)


class ZygoteProcess(Process):
    """A process that a zygote forks: a child of this process as any other.

    Args:
        zygote: Who forks it.
        target: What it calls; pickled for a zygote that has no target.
        args: What that is called with; pickled.
        name: For people to read; ``None`` = one is made up.
    """

    def __init__(
        self,
        zygote: Zygote,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, daemon=False)
        self._zygote = zygote
        self._carried = pickle.dumps((None if zygote.target else target, args))

    def start(self) -> None:
        """Have the zygote fork it.

        Unlike other processes it may have children, and be one, where the parent is daemonic: it
        dies with the parent in any case.

        Raises:
            BrokenPipeError: The zygote is dead.
            OSError: The kernel has no room for another process, or has no pidfd.
        """
        if self._popen is not None:
            raise AssertionError("cannot start a process twice")
        self._popen = _ZygotePopen(cast(Process, self))
        self._sentinel = self._popen.sentinel
        process._children.add(self)  # type: ignore[attr-defined]

    def let_go(self) -> None:
        """Be nobody's child any more, having ended; its pidfd goes with the last reference."""
        process._children.discard(self)  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Let it go on, if it was stopped."""
        assert self._popen is not None
        self._popen._send_signal(signal.SIGCONT)


class _ZygotePopen(_Popen):
    """The parent's end of a process that a zygote forks."""

    def _launch(self, process: Any) -> None:
        self._last_words = words = LastWords()
        identity = process._identity
        try:
            request = pickle.dumps((process.name, identity, words, process._carried))
            if len(request) > LONGEST - 8:
                raise ValueError(
                    f"arguments are too long for a zygote: nbytes={len(request)}, "
                    f"most={LONGEST - 8}; send them through a Queue"
                )
            self.pid = process._zygote.fork(request)
        except BaseException:
            self._last_words.take()
            raise
        self._take_pidfd()
        if not self._by_pidfd:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self._last_words.take()
            raise OSError(
                f"worker cannot be watched: pid={self.pid}; it has ended and somebody else has "
                "reaped it, or no pidfd can be had"
            )


_early: list[Zygote] = []


def prefork() -> None:
    """Fork a zygote now, for executors that are made when this process has threads.

    To be called while there is one thread, after the imports that workers should share.
    An executor that is made later, beside other threads, has its workers forked by this
    zygote: they see the program as it stands now, and what they need (initializer and its
    arguments) travels by pickle. Twice is once.

    Raises:
        OSError: The kernel has no room for another process.

    Example:
        >>> import ipcmap
        >>> ipcmap.prefork()
    """
    if not any(zygote.usable for zygote in _early):
        _forget_early()
        util.Finalize(None, _forget_early, exitpriority=0)
        _warn_of_threads()
        _early.append(Zygote())


def zygote_for(target: Callable[..., object], *, early: bool = False) -> Zygote:
    """Return a zygote for workers that call ``target``: a fresh one, or that of ``prefork()``.

    ``early`` = the latter even where there is one thread.
    """
    threads = _other_threads()
    if threads or early:
        for zygote in _early:
            if zygote.usable:
                return zygote
    if threads:
        _warn_of_threads()
    return Zygote(target)


def _forget_early() -> None:
    while _early:
        _early.pop().close()


def _other_threads() -> list[str]:
    """Name the threads beside this one, but for ours, which hold nothing that a child takes."""
    return [
        one.name
        for one in threading.enumerate()
        if one is not threading.current_thread() and not one.name.startswith("ipcmap: ")
    ]


def _warn_of_threads() -> None:
    names = _other_threads()
    if names:
        warnings.warn(
            f"fork while threads run: {', '.join(names)}; what they hold at this moment stays "
            "locked in the child; make executors before threads, or call ipcmap.prefork() first",
            RuntimeWarning,
            stacklevel=4,
        )


def _is_readable(descriptor: int, timeout: float = 0) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
