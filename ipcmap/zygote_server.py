"""What runs in a zygote: it has a child ready, and hands it the next request.

To fork takes a millisecond or two, and a Python process about as long again to find itself
in the child. So the zygote forks before it is asked: a spare, which is made ready as far as
can be without the request, and waits for it. When the spare has gone, it forks the next.

A spare becomes the worker of one request, or nothing. It waits at a socket whose other end
the zygote alone has, and so ends when the zygote does.

Records to the caller     from
  0, pid         a spare          the zygote, before it hands the spare a request
  number, pid    a worker         the zygote, when the spare has been handed that request;
                                  and the spare, when it has taken it
  number, -errno no worker        the zygote
A spare's start time comes with its pid, which may be another's when the caller reads that.
The pid of the youngest child stands in shared memory from before that runs.
So the caller hears of each child, and of no worker that it is a spare afterwards. It reaps
the spares that are dead.

If the zygote dies
  before it hands the request over   the spare ends, and then the caller's socket; if nobody had
                                     told of the spare, it is the youngest child
  after that                         the spare answers
If the spare dies
  before it is handed a request      its end is closed: the zygote forks another
  after that                         the zygote answers; the caller finds a worker that is dead
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import gc
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from multiprocessing import util
from typing import Any, Final, NoReturn

from ipcmap._core import libc, liveness
from ipcmap._core.cloning import clone_sibling
from ipcmap.process import Process, _Birth, _do_nothing

__all__ = ["ANSWER", "LONGEST", "OF_A_SPARE", "ZygoteServer", "socket_pair"]

# The number of a request, a pid or minus an errno, a spare's start time (0 = unknown).
ANSWER: Final = struct.Struct("<QqQ")
OF_A_SPARE: Final = 0  # in place of that number
LONGEST: Final = 1 << 16  # bytes of a request, its number included
_TRIES = 3  # spares for one request
# From then on a process of multiprocessing has its finalizers called so, and not by _bootstrap.
_ENDS_BY_ATEXIT = sys.version_info >= (3, 13)
_REST = 2  # milliseconds without a request, before a spare is forked


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends that keep records apart, and wait whatever socket.setdefaulttimeout() says."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(None)
    return ends


class ZygoteServer:
    """The zygote's own side.

    Args:
        requests: The socket to the caller.
        target: What a worker calls; ``None`` = its request says.
        parent: The caller's pid.
        parent_pidfd: The same as a descriptor.
        first_thread: Whether the caller's first thread forked us.
        mask: The caller's blocked signals.
        youngest: Shared memory for the pid of the youngest child.
    """

    def __init__(
        self,
        requests: socket.socket,
        target: Callable[..., object] | None,
        parent: int,
        parent_pidfd: int,
        first_thread: bool,
        mask: set[int],
        youngest: mmap.mmap,
    ) -> None:
        self._requests, self._target = requests, target
        self._parent, self._parent_pidfd = parent, parent_pidfd
        self._first_thread, self._mask = first_thread, mask
        self._youngest = ctypes.c_int.from_buffer(youngest)
        self._spare: tuple[int, socket.socket] | None = None  # its pid, and the way to it

    def run(self) -> NoReturn:
        """Have a worker for each request, until the parent ends."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, _do_nothing)
            if self._first_thread:
                libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            # What a collection in a worker looked through would be copied page by page.
            gc.freeze()
            self._serve()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        poll.register(self._parent_pidfd, select.POLLIN)
        wanting = True
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(_REST if wanting else None)]
            if self._parent_pidfd in ready or os.getppid() != self._parent:
                os._exit(0)
            if not ready:
                wanting = False  # tried once: where there is no room, whoever asks next is told
                with contextlib.suppress(OSError):
                    self._spare = self._forked()
                continue
            try:
                request = self._requests.recv(LONGEST)
            except ConnectionError:  # it ended with a record of ours unread
                request = b""
            if not request:
                os._exit(0)
            number = int.from_bytes(request[:8], "little")
            try:
                pid = self._hand_over(request)
            except OSError as error:
                pid = -(error.errno or 1)
            self._answer(number, pid)
            wanting = True

    def _hand_over(self, request: bytes) -> int:
        """Return the pid of the worker that has it now."""
        for _ in range(_TRIES):
            pid, channel = self._spare or self._forked()
            self._spare = None
            with channel, contextlib.suppress(OSError):  # it is dead
                channel.send(request)
                return pid
        raise OSError(errno.ECHILD, os.strerror(errno.ECHILD))

    def _answer(self, number: int, pid: int) -> None:
        known = number == OF_A_SPARE and liveness.proc_is_ours()
        stat = liveness.read_stat(pid) if known else None
        with contextlib.suppress(OSError):  # the parent is gone: poll says so next
            self._requests.send(ANSWER.pack(number, pid, stat.started if stat else 0))

    def _forked(self) -> tuple[int, socket.socket]:
        channel, theirs = socket_pair()
        with theirs:
            try:
                pid = clone_sibling(ctypes.addressof(self._youngest))
            except BaseException:
                channel.close()
                raise
            if pid == 0:
                self._be_a_spare(channel, theirs)
        self._answer(OF_A_SPARE, pid)
        return pid, channel

    # In the child

    def _be_a_spare(self, zygotes: socket.socket, channel: socket.socket) -> NoReturn:
        code = 1
        try:
            if _ENDS_BY_ATEXIT:
                atexit._clear()
                atexit.register(util._exit_function)  # type: ignore[attr-defined]
            worker: Any = Process(daemon=False)
            worker._parent_pid = self._parent
            birth = _Birth(
                worker, self._parent, self._parent_pidfd, self._first_thread, self._mask, None
            )
            worker.run = functools.partial(self._work, birth, channel)
            code = birth._bootstrap(zygotes.detach())  # closes it
        except BaseException:
            traceback.print_exc()
        finally:
            if _ENDS_BY_ATEXIT:
                atexit._run_exitfuncs()
            os._exit(code)

    def _work(self, birth: _Birth, channel: socket.socket) -> None:
        """Wait for a request and do it; what is missing here is told as the worker's end."""
        try:
            request = channel.recv(LONGEST)
        except BaseException:  # a signal handler's, which nobody asked for here
            os._exit(1)
        if not request:
            os._exit(0)
        self._answer(int.from_bytes(request[:8], "little"), os.getpid())
        channel.close()
        self._requests.close()
        worker = birth.process
        worker.name, worker._identity, birth.last_words, carried = pickle.loads(request[8:])
        also_carried, args = pickle.loads(carried)
        (self._target or also_carried)(*args)
