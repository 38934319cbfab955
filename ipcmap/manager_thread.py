"""The manager of an executor: the thread that sees to what nobody else waits for.

That a worker died is noticed by the manager, through its pidfd, and said in the same ring: when
that notice is taken, every answer of the worker has been. The manager buries it then, whoever
took the notice: a burial cannot be done again, and no signal handler breaks off what a thread
other than the main one does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import select
import threading
import time
from collections import deque

from ipcmap._core import stall_log
from ipcmap.answers import LED, WORKER, Answers
from ipcmap.arena import Arena
from ipcmap.messages import CHECKED, DIED, TAIL
from ipcmap.seats import Seat
from ipcmap.worker import Blueprint

__all__ = ["Manager"]

_log = logging.getLogger("ipcmap")
_LOOK = 0.001  # seconds until the manager leads where nobody does
_QUIET = 50  # looks without a task, until the manager sleeps


class Manager(Answers):
    """The thread, and how it is woken.

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
        self.manager: threading.Thread | None = None
        self._notices: deque[bytes] = deque()  # to be put behind the answers that are there
        self._rounds = 0  # how often workers were forked, if any were wanting
        self._awaiting: deque[threading.Lock] = deque()  # of those who wait for the next of them
        self._asleep = self._calls_back = False
        self._wake = -1

    def _begin(self) -> None:
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self.manager = threading.Thread(target=self._manage, name="ipcmap: executor", daemon=True)
        self.manager.start()

    def _await_workers(self) -> None:
        """Wait until the manager has had workers forked that are wanting, or has tried to."""
        # It needs the lock, which this thread may have: it has been interrupted by a handler.
        if self.lock._is_owned() or self.manager is threading.current_thread():
            return
        # Not a Condition: a handler that raises in its __enter__, which is Python, leaves it locked.
        gate = threading.Lock()
        gate.acquire()
        rounds = self._rounds
        self._awaiting.append(gate)
        while self._rounds == rounds and self.lacks_workers and not self._calls_back:
            if gate.acquire(timeout=LED):
                break

    def _manage(self) -> None:
        with self.lock:
            if self.manager is not threading.current_thread():
                return  # its start was broken off, and another begun
        try:
            self._look_after_all()
        except BaseException as error:
            with self.lock:
                self._break(f"manager of the executor failed: {error!r}", error)
            self.settle()
            raise
        finally:
            self._finish()

    def _look_after_all(self) -> None:
        quiet, led, wait = 0, self._led, _LOOK
        while not (self.closing and not self.tasks and not self._finished):
            self._asleep = quiet >= _QUIET and not self.tasks and not self._notices
            if self._asleep and (self.tasks or self.closing):
                self._asleep = False
            for descriptor, _ in self._epoll.poll(None if self._asleep else wait):
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                else:
                    self._note_death(descriptor)
            self._asleep = False
            self._send_notices()
            if self._accused:
                self._execute_the_condemned()
            if self._noticed or self._changing or self.lacks_workers:
                self._see_to_seats()
            if self._given_up or self._clearing:
                self._do_what_was_left()
            self._look_at_the_clock()
            self._kill_who_stayed()
            self._say_if_stalled()
            self._call_back()
            quiet = 0 if self.tasks else quiet + 1
            if self._lead.locked():
                wait = LED
            elif (self.tasks or len(self._results)) and (
                self._hurried or self._led == led or self.closing
            ):
                with self._lead:
                    self._pump(LED)
                self._call_back()
                wait = 0
                if not self.tasks:
                    self._hurried = False
            else:
                # The longer others lead, the longer it lets them.
                wait = _LOOK if self._led == led else min(LED, max(_LOOK, 2 * wait))
            led = self._led

    def _call_back(self) -> None:
        """Settle, as the manager: who waits for it may hold what a callback waits for."""
        if self._finished:
            self._calls_back = True
            try:
                self.settle()
            finally:
                self._calls_back = False

    def _say_if_stalled(self) -> None:
        """Log what each worker does, where nothing has come for long."""
        stalled = time.monotonic() - self._moved
        if self.tasks and stalled >= stall_log.SECONDS:
            self._moved = math.inf  # once, until something comes
            _log.warning(
                "pid %d has waited %.1f s for any worker of an executor: %s",
                os.getpid(), stalled, self.statistics().describe(time.time()),
            )  # fmt: skip

    def _see_to_seats(self) -> None:
        """Mend what was broken off; bury the dead whose answers have been dealt with; hire."""
        with self.lock:
            if self._changing:
                self._deal()
                self._mend()
            self._changing = True
            noticed = bool(self._noticed)
            while self._noticed:
                kind, index, pid = self._noticed.popleft()
                seat = self.seats.get(index)
                if seat is not None and seat.process.pid == pid:  # twice is once
                    self._bury(seat) if kind == DIED else self._resume(seat)
            self._feed()
            while self._hire():
                self._feed()
            self._changing = False
            self._rounds += 1
        while self._awaiting:
            self._awaiting.popleft().release()
        if noticed:
            self._nudge()

    # The dead are noticed

    def _watch(self, seat: Seat) -> None:
        self._epoll.register(seat.process.sentinel, select.EPOLLIN)

    def _note_death(self, descriptor: int) -> None:
        """Note that the worker of a pidfd has ended."""
        for seat in self.seats.values():
            if seat.process.sentinel == descriptor:
                self._epoll.unregister(descriptor)
                self._note(seat, DIED)
                return

    def _check_on(self, seat: Seat) -> None:
        self._note(seat, CHECKED)

    def _note(self, seat: Seat, kind: int) -> None:
        self._notices.append(WORKER.pack(seat.index, seat.process.pid or 0) + TAIL.pack(0, kind))

    def _send_notices(self) -> None:
        """Put notices behind the answers that are there, as far as there is room."""
        while self._notices:
            try:
                self._results.put(self._notices[0], 0)
            except queue.Full:
                return
            self._notices.popleft()

    def wake(self) -> None:
        """Have the manager look; safe in a finalizer and in a signal handler."""
        if self._wake >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake, 1)

    # The end

    def _finish(self) -> None:
        # Whoever leads waits in the ring that is given back here.
        with self._lead, self.lock:
            if self._over:
                return
            self._over = True
            self._dismiss_all()
        self._see_them_off()
        with self._lead, self.lock:
            self._give_back()
            if self._wake >= 0:
                self._epoll.close()
                os.close(self._wake)
                self._wake = -1
