"""The manager of an executor: the thread that sees to what nobody else waits for.

That a worker died is noticed by the manager, through its pidfd, and said in the ring of answers:
when that notice is taken, every answer of the worker has been. The manager buries it then, whoever
took the notice: a burial cannot be done again, and no signal handler breaks off what a thread
other than the main one does. So whatever was broken off elsewhere is mended here.

It is told what there is to do by what others say in the assignments and the answers, and woken to
look at that.

Shared fields      written
  thread           under the lock, by whoever has it begin
  asleep           by the thread: it waits without end, and who adds tasks wakes it
  _rounds          by the thread, under the lock: how often workers were forked, if any were wanting
  _awaiting        by whoever waits for the next of them: a gate, which the thread opens
  _calls_back      by the thread: nobody waits for it now, since a callback may wait for whoever does
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
from collections import deque

from ipcmap.answers import LED, Answers
from ipcmap.messages import CHECKED, DIED, TAIL, WORKER
from ipcmap.seats import Seat
from ipcmap.workforce import Workforce

__all__ = ["Manager"]

_LOOK = 0.001  # seconds until the manager leads where nobody does
_QUIET = 50  # looks without a task, until the manager sleeps


class Manager:
    """The thread, and the end of its executor.

    Args:
        answers: What comes back, and what there is to do.
        workforce: Who does it.
    """

    def __init__(self, answers: Answers, workforce: Workforce) -> None:
        self._answers, self._workforce = answers, workforce
        answers.attend = self.attend
        self.thread: threading.Thread | None = None
        self.asleep = False
        self._calls_back = False
        self._rounds = 0
        self._awaiting: deque[threading.Lock] = deque()
        self._notices: deque[bytes] = deque()  # to be put behind the answers that are there
        self._epoll: select.epoll

    @property
    def has_begun(self) -> bool:
        """Whether the thread has begun; not where an exception has broken its start off."""
        return self.thread is not None and self.thread.ident is not None

    def begin(self) -> None:
        """Have the thread begin, if it has not; called with the lock."""
        if self.has_begun:
            return
        answers = self._answers
        if answers.bell < 0:
            answers.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(answers.bell, select.EPOLLIN)
        self.thread = threading.Thread(target=self._manage, name="ipcmap: executor", daemon=True)
        self.thread.start()

    def await_workers(self) -> None:
        """Wait until it has had workers forked that are wanting, or has tried to."""
        answers = self._answers
        # It needs the lock, which this thread may have: it has been interrupted by a handler.
        if answers.lock._is_owned() or self.thread is threading.current_thread():
            return
        # Not a Condition: a handler that raises in its __enter__, which is Python, leaves it locked.
        gate = threading.Lock()
        gate.acquire()
        rounds = self._rounds
        self._awaiting.append(gate)
        while self._rounds == rounds and answers.lacks_workers and not self._calls_back:
            if gate.acquire(timeout=LED):
                break

    def _manage(self) -> None:
        answers = self._answers
        with answers.lock:
            if self.thread is not threading.current_thread():
                return  # its start was broken off, and another begun
        try:
            self._look_after_all()
        except BaseException as error:
            with answers.lock:
                answers.break_down(f"manager of the executor failed: {error!r}", error)
            answers.settle()
            raise
        finally:
            self.end()

    def _look_after_all(self) -> None:
        answers = self._answers
        quiet, led, wait = 0, answers.led, _LOOK
        while not (answers.closing and not answers.tasks and not answers.finished):
            self.asleep = quiet >= _QUIET and not answers.tasks and not self._notices
            if self.asleep and (answers.tasks or answers.closing):
                self.asleep = False
            self._attend(None if self.asleep else wait)
            self._call_back()
            quiet = 0 if answers.tasks else quiet + 1
            if answers.lead.locked():
                wait = LED
            elif (answers.tasks or len(answers.results)) and (
                answers.hurried or answers.led == led or answers.closing
            ):
                with answers.lead:
                    answers.pump(LED)
                self._call_back()
                wait = 0
                if not answers.tasks:
                    answers.hurried = False
            else:
                # The longer others lead, the longer it lets them.
                wait = _LOOK if answers.led == led else min(LED, max(_LOOK, 2 * wait))
            led = answers.led

    def _attend(self, timeout: float | None) -> None:
        """Wait for what happens, and see to it; all but to call back."""
        answers, workforce = self._answers, self._workforce
        for descriptor, _ in self._epoll.poll(timeout):
            if descriptor == answers.bell:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(descriptor)
            else:
                self._note_death(descriptor)
        self.asleep = False
        self._send_notices()
        answers.execute_the_condemned()
        if answers.noticed or answers.changing or answers.lacks_workers:
            self._see_to_seats()
        answers.do_what_was_left()
        workforce.look_at_the_clock()
        workforce.kill_who_stayed()
        answers.say_if_stalled()

    def attend(self) -> None:
        """See to what has happened, where a callback in the thread waits; others do nothing."""
        if self.thread is threading.current_thread():
            self._attend(0)

    def _call_back(self) -> None:
        """Settle: who waits for the manager may hold what a callback waits for."""
        if self._answers.finished:
            self._calls_back = True
            try:
                self._answers.settle()
            finally:
                self._calls_back = False

    def _see_to_seats(self) -> None:
        """Mend what was broken off; bury the dead whose answers have been dealt with; hire."""
        answers, workforce = self._answers, self._workforce
        with answers.lock:
            if answers.changing:
                answers.deal()
                for seat in answers.mend():
                    self._note(seat, CHECKED)
            answers.changing = True
            noticed = bool(answers.noticed)
            while answers.noticed:
                kind, index, pid = answers.noticed.popleft()
                known = answers.seats.get(index)
                if known is None or known.process.pid != pid:
                    continue  # twice is once
                if kind == DIED:
                    workforce.bury(known)
                elif not answers.resume(known):
                    self._note(known, CHECKED)
            answers.feed()
            while hired := workforce.hire():
                self._epoll.register(hired.process.sentinel, select.EPOLLIN)
                answers.feed()
            answers.changing = False
            self._rounds += 1
        while self._awaiting:
            self._awaiting.popleft().release()
        if noticed:
            answers.nudge()

    # Notices

    def _note_death(self, descriptor: int) -> None:
        """Note that the worker of a pidfd has ended."""
        for seat in self._answers.seats.values():
            if seat.process.sentinel == descriptor:
                self._epoll.unregister(descriptor)
                self._note(seat, DIED)
                return

    def _note(self, seat: Seat, kind: int) -> None:
        self._notices.append(WORKER.pack(seat.index, seat.process.pid or 0) + TAIL.pack(0, kind))

    def _send_notices(self) -> None:
        """Put notices behind the answers that are there, as far as there is room."""
        while self._notices:
            try:
                self._answers.results.put(self._notices[0], 0)
            except queue.Full:
                return
            self._notices.popleft()

    # The end

    def end(self) -> None:
        """Let the workers go, and give back what the executor has, once: as the thread, or alone."""
        answers, workforce = self._answers, self._workforce
        # Whoever leads waits in the ring that is given back here.
        with answers.lead, answers.lock:
            if answers.over:
                return
            answers.over = True
            workforce.dismiss_all()
        workforce.see_them_off()
        with answers.lead, answers.lock:
            workforce.give_back()
            if answers.bell >= 0:
                self._epoll.close()
                os.close(answers.bell)
                answers.bell = -1
