"""Who sends the kills and stops of a storm, replaces the dead, and keeps the account.

Most kills come at random. Some are aimed at whoever is seen inside a section, since that
is where a process spends the least of its time and where a death matters most.

In the storm itself a process that is stuck would soon be killed, and its fault with it. So
there is a lull every LULL kills: nobody is killed or stopped until everybody has done
something. Nobody waits without a limit here: what does not come in time is a hang.

The conductor sweeps only while nobody is stopped: who is stopped may hold a section, and would
wait for the conductor to be continued.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from children import Child, Fork
from ipcmap import ClosedError
from storm_account import Account, Journal
from storm_crew import LIVES, ROLES, Stage, Worker
from storm_report import OWNER

LULL = 50  # kills from one lull to the next
HANG = float(os.environ.get("IPCMAP_STORM_HANG", "30"))  # seconds without what is waited for
AIM = 0.01  # seconds of looking for somebody inside a section
LONGEST_STOP = 0.5  # seconds
SAY = 5.0  # seconds between two lines of progress


class Hang(Exception):
    """What had to come did not."""


class Seat:
    """A place in the crew, which one process after the other has."""

    def __init__(self, number: int, role: str) -> None:
        self.number, self.role = number, role
        self.journal = Journal()
        self.child = Child(0)
        self.life = 0
        self.stopped_until: float | None = None


class Conductor:
    """Seats, the processes on them, and what is done to these."""

    def __init__(
        self, stage: Stage, crew: list[str], fork: Fork, chance: random.Random, name: str
    ) -> None:
        self.stage, self.fork, self.chance, self.name = stage, fork, chance, name
        self.seats = [Seat(number, role) for number, role in enumerate(crew)]
        self.account = Account()
        self.sections = stage.sections()
        self.killed: set[int] = set()  # pids
        self.ended: Counter[str] = Counter()  # how lives ended
        self.spawned: Counter[int] = Counter()  # by pid
        self.caught = 0  # inside a section
        self.members = 0  # lives that certainly used the arena
        self.counted = [[0, 0] for _ in stage.pairs]  # surely, at most
        self.began = self.said = time.monotonic()
        for seat in self.seats:
            self.fill(seat)

    # The crew

    def fill(self, seat: Seat) -> None:
        """Give a seat to a new process."""
        seat.life = sum(self.spawned.values()) + 1
        assert seat.life < LIVES, "too many lives for a storm"
        seat.stopped_until = None
        seat.journal.begin_life()
        seed = self.chance.randrange(2**32)
        worker = Worker(self.stage, seat.number, seat.life, seat.journal, seed)
        seat.child = self.fork(worker.live, ROLES[seat.role])
        self.spawned[seat.child.pid] += 1

    def settle(self, seat: Seat, died: int | None) -> None:
        """Take over what the one who is gone has left in the journal."""
        journal = seat.journal
        if seat.role == "produce":
            self.account.settle_producer(seat.life, journal)
        elif seat.role == "consume":
            self.account.settle_consumer(journal, died)
        elif seat.role == "count":
            counted = self.counted[seat.number % len(self.counted)]
            counted[0] += journal.done
            counted[1] += journal.begun
        self.members += seat.role in ("count", "fill") and journal.beats > 0
        self.ended["killed" if died else "done"] += 1

    def look(self, seat: Seat) -> bool:
        """Tell whether a process has ended by itself; if so, take its journal over."""
        if seat.child.status is not None:
            return True
        if not _has_ended(seat.child.pid):
            return False
        status = seat.child.wait()
        assert status == 0, f"a process failed, see stderr: {seat.role}, status {status}"
        self.settle(seat, None)
        return True

    # What is done to them

    def run(self, kills: int) -> Hang | None:
        """Kill so many, then end; return what did not come."""
        try:
            self.storm(kills)
            self.end()
        except Hang as hang:
            return hang
        return None

    def storm(self, kills: int) -> None:
        """Kill so many."""
        while self.ended["killed"] < kills:
            self.wait_a_little()
            for seat in self.seats:
                if self.look(seat):
                    self.fill(seat)
                self.go_on(seat, time.monotonic())
            self.strike(self.chance.choice(self.seats))
            if self.ended["killed"] % LULL == 0:
                self.lull()
            self.say()

    def wait_a_little(self) -> None:
        """Let a random number of things happen, or a moment pass."""
        until = self.beats() + self.chance.randrange(1, 200)
        give_up = time.monotonic() + self.chance.uniform(0, 0.05)
        while self.beats() < until and time.monotonic() < give_up:
            time.sleep(0.0005)

    def beats(self) -> int:
        """Return how much the crew has done in these lives."""
        return sum(seat.journal.beats for seat in self.seats)

    def strike(self, seat: Seat) -> None:
        """Stop a process for a while, or kill it."""
        if self.look(seat):
            self.fill(seat)
        if self.chance.random() < 0.2:
            if seat.stopped_until is None:
                seat.stopped_until = time.monotonic() + self.chance.uniform(0, LONGEST_STOP)
                os.kill(seat.child.pid, signal.SIGSTOP)
            return
        if self.chance.random() < 0.3:
            seat = self.aim(seat)
        pid = seat.child.pid
        self.stage.condemned[seat.life] = 1
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        died = time.monotonic_ns()
        self.killed.add(pid)
        seat.stopped_until = None
        # The others find the dead as one that is there still, or is reaped, or is swept.
        sweeps = all(other.stopped_until is None for other in self.seats)
        if self.chance.random() < 0.2:
            time.sleep(self.chance.uniform(0, 0.005))
        if sweeps and self.chance.random() < 0.2:
            self.stage.arena.sweep()
        status = seat.child.wait()
        assert status in (0, -signal.SIGKILL), (
            f"a process failed, see stderr: {seat.role}, {status}"
        )
        self.settle(seat, died if status else None)  # 0 = it was faster
        self.fill(seat)

    def aim(self, seat: Seat) -> Seat:
        """Return one who is stopped inside a section, if one can be had, else the one given."""
        seats = {other.child.pid: other for other in self.seats if other.child.status is None}
        words = list(self.sections.values())
        self.chance.shuffle(words)
        give_up = time.monotonic() + AIM
        while time.monotonic() < give_up:
            for word in words:
                found = seats.get(word[0] & OWNER)
                if found and self.is_caught(found, word):
                    return found
        return seat

    def is_caught(self, seat: Seat, word: memoryview) -> bool:
        """Stop one who was seen inside a section; tell whether that was soon enough."""
        pid = seat.child.pid
        if seat.stopped_until is None:
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if word[0] & OWNER == pid:
            self.caught += 1
            return True
        if seat.stopped_until is None:
            os.kill(pid, signal.SIGCONT)
        return False

    def go_on(self, seat: Seat, now: float) -> None:
        """Continue a process whose time is over."""
        if seat.stopped_until is not None and seat.stopped_until <= now:
            seat.stopped_until = None
            os.kill(seat.child.pid, signal.SIGCONT)

    def lull(self) -> None:
        """Wait until each has done something, while nothing is done to anyone."""
        for seat in self.seats:
            self.go_on(seat, float("inf"))
        before = [seat.journal.beats for seat in self.seats]

        def idle() -> list[Seat]:
            pairs = zip(self.seats, before, strict=True)
            return [s for s, beats in pairs if s.journal.beats == beats and not self.look(s)]

        self.wait_until_none(idle, "did nothing while nobody was killed or stopped")

    def wait_until_none(self, left: Callable[[], list[Seat]], what: str) -> None:
        """Wait for seats; those that are left when nothing has changed for too long hang."""
        seats, give_up = left(), time.monotonic() + HANG
        while seats:
            time.sleep(0.0005)
            if len(now := left()) < len(seats):
                give_up = time.monotonic() + HANG
            elif time.monotonic() > give_up:
                names = [f"{seat.role} (pid {seat.child.pid})" for seat in now]
                raise Hang(f"{', '.join(names)} {what}")
            seats = now

    # The end

    def end(self) -> None:
        """Let all finish, and take what is left."""
        for seat in self.seats:
            self.go_on(seat, float("inf"))
        self.stage.stop[0] = 1
        consumers = [seat for seat in self.seats if seat.role == "consume"]
        others = [seat for seat in self.seats if seat.role != "consume"]

        def at_work() -> list[Seat]:
            for seat in consumers:  # whose journal is full
                if self.look(seat):
                    self.fill(seat)
            return [seat for seat in others if not self.look(seat)]

        self.wait_until_none(at_work, "did not stop")
        self.stage.ring.close()
        self.wait_until_none(
            lambda: [seat for seat in consumers if not self.look(seat)], "did not see the end"
        )
        self.stage.arena.sweep()
        self.account.settle_rest(_rest(self.stage))

    def say(self, force: bool = False) -> None:
        """Print a line of progress, from time to time."""
        now = time.monotonic()
        if not force and now < self.said + SAY:
            return
        self.said, passed = now, now - self.began
        taken = self.account.taken
        print(
            f"storm, {self.name}: {self.ended['killed']} kills in {passed:.0f} s, {taken} records "
            f"({taken / passed:.0f}/s), {sum(self.spawned.values())} processes",
            flush=True,
        )

    def names(self) -> dict[int, str]:
        """Return who is who, by pid."""
        return {seat.child.pid: f"{seat.role}, life {seat.life}" for seat in self.seats}


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _rest(stage: Stage) -> list[bytes]:
    records = []
    try:
        while True:
            records.append(stage.ring.get(10))
    except ClosedError:
        return records
