"""A lock or a semaphore, one of whose users is struck at a sync point: scenes, and the accounts.

Everything runs in a program that has loaded the hook build (sync_point_program). Whoever
is killed with it loses it to the next; whoever is interrupted has taken nothing, or has
given it back; tokens that travel are lost with a process that is killed with one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import cycle
from types import FrameType
from typing import Any

from ipcmap import Arena, Lock, Mapping, RLock, Semaphore
from ipcmap._core import native as loaded
from ipcmap._core import reference_sections as sections
from ipcmap.guards import Guard
from monitor_harness import sleepers
from sync_point_stage import (
    PATIENCE,
    STOPPED,
    Raised,
    Strike,
    code_of,
    is_over,
    is_waiting,
    start,
    until,
)

native: Any = loaded  # with what the hook build adds

COUNT = 3  # times that the victim takes it and gives it back
TOKENS = 2  # of a semaphore
ROUNDS = 12  # of those who go on
TAKEN, GIVEN, RAISED, HANDLED, GO, OWNER, FIRST_HOLDER = range(7)  # words that all share

# Where a holder of the section has changed nothing, and where a change is not finished.
INSIDE = {
    "lock": "M1 take in lock_take, before",
    "rlock": "M1 take in lock_take, before",
    "semaphore": "S1 intend in semaphore_take, before",
    "travels": "M1 take, travels in semaphore_take, before",
}
HALFWAY = INSIDE | {"semaphore": "value in semaphore_take, before"}
# What the victim has of a semaphore whose tokens travel, if it was killed at its first pass.
LOST = {
    "M1 take, travels in semaphore_take, before": 0,
    "M1 take, travels in semaphore_take, after": 1,
    "M2 give, travels in semaphore_give, before": 1,
    "M2 give, travels in semaphore_give, after": 0,
}


class GuardStage:
    """What is acquired and released, a victim, and those who use it beside."""

    def __init__(self, call: str, strike: Strike | None) -> None:
        self.call, self.strike = call, strike
        self.mode = strike.mode if strike else ""
        arena = Arena(16 << 20, backend="native")
        self.tokens = TOKENS if call in ("semaphore", "travels") else 1
        self.guard: Any
        if call == "travels":
            self.guard = Semaphore(0, arena=arena)
            for _ in range(TOKENS):
                self.guard.release()
        else:
            makers: dict[str, Callable[[], Any]] = {
                "lock": lambda: Lock(arena=arena),
                "rlock": lambda: RLock(arena=arena),
                "semaphore": lambda: Semaphore(TOKENS, arena=arena),
            }
            self.guard = makers[call]()
        self.levels = 2 if call == "rlock" else 1
        self.facts = Mapping.anonymous(64).view().cast("Q")
        self.also: list[tuple[str, int, int]] = []
        self.awaits = False  # whether the victim gives it back when somebody sleeps
        self.victim, self.others, self.deaths = 0, list[int](), 0
        self._trace, self._trace_write = os.pipe()

    def strike_down(self) -> None:
        """Start the victim."""
        self.victim = start(self._be_struck)

    def trace(self) -> list[str]:
        """Return the points that the victim passed, which has ended by itself."""
        return os.read(self._trace, 1 << 20).decode().split("\n")

    def hold(self, count: int) -> None:
        """Have so many processes take one each, until they are told to go on."""

        def be_holder(number: int) -> None:
            assert self.guard.acquire(timeout=PATIENCE)
            self.facts[FIRST_HOLDER + number] = 1
            until(lambda: self.facts[GO])
            self.guard.release()

        for number in range(count):
            self.others.append(start(be_holder, number))
            while not self.facts[FIRST_HOLDER + number]:
                os.sched_yield()

    def let_go(self) -> None:
        """Tell them to go on."""
        self.facts[GO] = 1

    def helper(self, point: str, number: int) -> int:
        """Start a process that is killed or stopped at a point of an acquire, and see it so."""

        def be_helper() -> None:
            self.guard._core._family.holder()  # without a slot it would not be in C
            native.disarm()
            native.arm(point, 1, number)
            assert self.guard.acquire(timeout=PATIENCE)
            self.guard.release()

        pid = start(be_helper)
        until(lambda: is_over(pid))
        if number == signal.SIGKILL:
            assert code_of(pid) == -signal.SIGKILL
            self.deaths += 1
        return pid

    def rival(self) -> None:
        """Start one more who takes it and gives it back."""
        self.others.append(start(self.go_on))

    def asleep(self, count: int) -> None:
        """Wait until so many sleep, or the victim is struck or has ended."""
        until(lambda: sleepers(self.guard) >= count or is_over(self.victim))

    def _be_struck(self) -> None:
        signals: dict[str, int] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
        signal.signal(signal.SIGUSR1, self._fork if self.mode == "fork" else self._raise)
        self.guard._core._family.holder()
        native.disarm()
        for armed in self.also:
            native.arm(*armed)
        if self.strike:
            number = signals.get(self.mode, signal.SIGUSR1)
            native.arm(self.strike.point, self.strike.passing, number)
        for _ in range(COUNT):
            held = 0
            try:
                while held < self.levels:
                    assert self.guard.acquire(timeout=PATIENCE)
                    held += 1
                self.facts[TAKEN] += 1
                self.check_alone()
                if self.awaits:  # those who would sleep may have ended while it was stopped
                    until(lambda: sleepers(self.guard) or self.facts[GO])
                    self.awaits = False
                while held:
                    held -= 1
                    self.guard.release()
            except Raised:
                self.facts[RAISED] += 1
                assert self._mine() == held, "neither taken nor given back"
                for _ in range(held):
                    self.guard.release()
            self.facts[GIVEN] = self.facts[TAKEN]
        os.write(self._trace_write, "\n".join(native.trace()).encode())

    def _mine(self) -> int:
        """Return how often this process has it."""
        core = self.guard._core
        if self.call in ("lock", "rlock"):
            return int(core.levels())
        if self.call == "travels":  # of which one cannot tell; see how many there are, at the end
            return 0
        holders = [holding.holder for holding in core.holdings()]
        return holders.count(core._family.holder())

    def check_alone(self) -> None:
        """Nobody else has it at the same time."""
        if self.tokens == 1:
            self.facts[OWNER] = os.getpid()
            os.sched_yield()
            assert self.facts[OWNER] == os.getpid()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.facts[HANDLED] = 1
        raise Raised

    def _fork(self, number: int, frame: FrameType | None) -> None:
        """Have a child use it amid a call of its parent."""
        self.facts[HANDLED] = 1

        def use() -> None:
            if self.guard.acquire(block=False):
                self.guard.release()

        assert code_of(start(use)) == 0

    def go_on(self) -> None:
        """Take it and give it back, by the methods of either engine."""
        ways = cycle([type(self.guard), Guard])
        for _ in range(ROUNDS):
            way: Any = next(ways)
            assert way.acquire(self.guard, timeout=PATIENCE)
            self.check_alone()
            way.release(self.guard)


# What goes on around the victim


def alone(stage: GuardStage) -> None:
    """Nobody else is there."""
    stage.strike_down()


def sleeper(stage: GuardStage) -> None:
    """Another sleeps when the victim gives it back."""
    stage.hold(stage.tokens - 1)
    stage.awaits = True
    stage.strike_down()
    until(lambda: stage.facts[TAKEN] or is_over(stage.victim))
    stage.rival()
    until(lambda: stage.facts[GIVEN] or is_over(stage.victim))
    stage.let_go()


def wait(stage: GuardStage) -> None:
    """The victim sleeps, beside another."""
    stage.hold(stage.tokens)
    stage.strike_down()
    stage.asleep(1)
    stage.rival()
    stage.asleep(2)
    stage.let_go()


def bequest(stage: GuardStage) -> None:
    """All who had it were killed with it."""
    if stage.call != "travels":  # whose tokens do not come back
        for _ in range(stage.tokens):
            stage.helper("X2 leave in section_leave, after", signal.SIGKILL)
    stage.strike_down()


def heir(stage: GuardStage) -> None:
    """The last one in the section died there, and had changed nothing."""
    stage.helper(INSIDE[stage.call], signal.SIGKILL)
    stage.strike_down()


def repair(stage: GuardStage) -> None:
    """The last one in the section died there, amid a change."""
    stage.helper(HALFWAY[stage.call], signal.SIGKILL)
    stage.strike_down()


def busy(stage: GuardStage) -> None:
    """Somebody is in the section, and goes on."""
    _meet(stage, signal.SIGCONT)


def busy_heir(stage: GuardStage) -> None:
    """Somebody is in the section, and dies there."""
    _meet(stage, signal.SIGKILL)


def busy_for_a_moment(stage: GuardStage) -> None:
    """Somebody is in the section, and has left it at the next try."""
    _miss(stage, "X1 enter in section_settle, before")


def busy_until_it_waits(stage: GuardStage) -> None:
    """Somebody is in the section, and has left it when the victim begins to wait for it."""
    _miss(stage, "X1 enter in section_wait, before")


SCENES: dict[str, Callable[[GuardStage], None]] = {
    scene.__name__: scene
    for scene in (
        alone,
        sleeper,
        wait,
        bequest,
        heir,
        repair,
        busy,
        busy_heir,
        busy_for_a_moment,
        busy_until_it_waits,
    )
}


def _meet(stage: GuardStage, number: int) -> None:
    """Let the victim come to a section that is held, and its holder then go on, or die."""
    holder = stage.helper(INSIDE[stage.call], signal.SIGSTOP)
    stage.strike_down()
    until(lambda: is_over(stage.victim) or is_waiting(stage.victim))
    os.kill(holder, number)
    if number == signal.SIGCONT:  # to give it back, it may have to wait for the victim
        stage.others.append(holder)
    else:
        assert code_of(holder) == -number
        stage.deaths += 1


def _miss(stage: GuardStage, point: str) -> None:
    """Stop the victim where it has found the section held, and let the holder leave."""
    holder = stage.helper(INSIDE[stage.call], signal.SIGSTOP)
    stage.also.append((point, 1, signal.SIGSTOP))
    stage.strike_down()
    until(lambda: is_over(stage.victim))
    os.kill(holder, signal.SIGCONT)
    assert code_of(holder) == 0
    if not (stage.mode == "stop" and stage.strike and stage.strike.point == point):
        os.kill(stage.victim, signal.SIGCONT)


# The accounts


def settle(stage: GuardStage) -> bool:
    """Let all go on and end, and check the accounts; False = the victim came not to the point."""
    struck = _end_of_victim(stage)
    if stage.mode != "stop":
        stage.rival()
        stage.rival()
    for pid in stage.others:
        assert code_of(pid) == 0, "another"
    killed = bool(struck and stage.strike and stage.mode == "kill")
    taken, given, raised, handled = stage.facts[: HANDLED + 1]
    assert killed or taken + raised >= COUNT
    assert raised <= handled
    assert given <= taken <= COUNT
    guard, lost = stage.guard, 0
    if stage.call == "travels":
        lost = TOKENS - guard.value
        assert 0 <= lost <= killed, lost
        if killed and stage.strike and stage.strike.passing == 1:
            assert lost == LOST.get(stage.strike.point, lost)
    for _ in range(stage.tokens - lost):
        assert guard.acquire(block=False), "it is there"
    if stage.call != "rlock":
        assert not guard.acquire(block=False), "it is there too often"
    for _ in range(stage.tokens - lost):
        guard.release()
    assert guard._get_value() == stage.tokens - lost
    assert not getattr(guard, "recovered", False), "given back, and still told"
    section = guard._core._section
    assert sections.trylock(section) == 0, "the section is held"
    sections.unlock(section)
    if stage.mode != "stop":  # who cannot enter to say so stays counted
        assert sleepers(guard) <= killed
    return struck


def _end_of_victim(stage: GuardStage) -> bool:
    """See the victim struck, and to its end."""
    if stage.mode == "stop":
        _, status = os.waitpid(stage.victim, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        stage.rival()
        stage.rival()
        time.sleep(STOPPED)
        while os.WIFSTOPPED(status):  # once more where the scene stops it, too
            os.kill(stage.victim, signal.SIGCONT)
            _, status = os.waitpid(stage.victim, os.WUNTRACED)
        assert os.waitstatus_to_exitcode(status) == 0, "stopped, and then?"
        return True
    code = code_of(stage.victim)
    assert code in ((0, -signal.SIGKILL) if stage.mode == "kill" else (0,)), f"victim: {code}"
    if stage.mode in ("", "kill"):
        return code != 0 or not stage.mode
    assert stage.strike
    passed = stage.trace().count(stage.strike.point) >= stage.strike.passing
    assert bool(stage.facts[HANDLED]) == passed
    assert not passed or stage.mode == "fork" or stage.facts[RAISED], "it did not come out"
    return passed
