"""Blocks of an arena, one of whose owners is struck at a sync point: scenes, and the accounts.

Everything runs in a program that has loaded the hook build (sync_point_program). The
owners say themselves which slot is theirs (places), so that a sweep frees what one of
them had, and says how much that was.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from types import FrameType
from typing import Any

from ipcmap import Mapping, StaleHandle
from ipcmap._core import native as loaded
from ipcmap._core.layout import JOURNAL
from ipcmap._core.native_allocator import NativeAllocator
from ipcmap._core.reference_allocator import GIVE_BACK, KEEP, Allocator
from ipcmap._core.reference_cells import Cell
from places import Place
from sync_point_stage import (
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

COUNT = 3  # blocks that the victim takes, frees or hands on
SMALL = 100  # bytes
KIND = 9
LIMIT = 32 << 20  # bytes in use; a quarter of that is kept warm
SURVIVOR, VICTIM, HELPER, CHILD = 1, 2, 3, 4  # slots
OTHERS = (5, 6)  # who go on
ROUNDS = 12  # of theirs

# Of the tag: before it the call has done nothing, after it all.
DECISIVE = {
    "allocate": "A1 take in cells_take",
    "free": "A2 free in cells_free",
    "retag": "A4 retag in cells_retag",
}
# Where a holder of the section has changed nothing, and where its counts are not made yet.
INSIDE, HALFWAY = "length in cells_take, before", "A1 take in cells_take, after"


class BlockStage:
    """An arena's allocator, a victim that has blocks or takes some, and a survivor's blocks."""

    def __init__(self, call: str, strike: Strike | None) -> None:
        self.call, self.strike = call, strike
        self.mode = strike.mode if strike else ""
        self.place = Place(LIMIT, engine="native")
        self.place.slot = SURVIVOR
        self.nbytes, self.given = SMALL, list[Cell]()
        self.kept = [self._filled(SMALL), self._filled(GIVE_BACK)]
        # Of the victim: calls that returned, calls that raised, whether its handler ran.
        self.facts = Mapping.anonymous(24).view().cast("Q")
        self.also: list[tuple[str, int, int]] = []
        self.victim = 0
        self._trace, self._trace_write = os.pipe()

    def strike_down(self) -> None:
        """Start the victim."""
        self.victim = start(self._be_struck)

    def give(self, nbytes: int) -> None:
        """Say how long the victim's blocks are; what it frees or hands on, it has."""
        self.nbytes, self.place.slot = nbytes, VICTIM
        if self.call != "allocate":
            self.given = [self._filled(nbytes) for _ in range(COUNT)]
        self.place.slot = SURVIVOR

    def leave_free(self, nbytes: int, count: int) -> None:
        """Free so many cells, which were used once."""
        for cell in [self._filled(nbytes) for _ in range(count)]:
            self.place.allocator.free(cell)

    def helper(self, point: str, number: int) -> int:
        """Start a process that is killed or stopped at a point of an allocate, and see it so."""

        def be_helper() -> None:
            self.place.slot = HELPER
            native.disarm()
            native.arm(point, 1, number)
            self.place.allocator.allocate(SMALL)

        pid = start(be_helper)
        until(lambda: is_over(pid))
        assert number != signal.SIGKILL or code_of(pid) == -signal.SIGKILL
        return pid

    def trace(self) -> list[str]:
        """Return the points that the victim passed, which has ended by itself."""
        return os.read(self._trace, 1 << 20).decode().split("\n")

    def check_content(self, cell: Cell) -> None:
        """Nobody else has written into a block."""
        view = self.place.view(cell)
        assert view[0] == view[-1] == cell.generation & 255, cell

    def _filled(self, nbytes: int, way: Callable[..., Cell] | None = None) -> Cell:
        allocator = self.place.allocator
        cell = way(allocator, nbytes, KIND) if way else allocator.allocate(nbytes, KIND)
        view = self.place.view(cell)
        view[0] = view[-1] = cell.generation & 255
        return cell

    def _be_struck(self) -> None:
        signals: dict[str, int] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
        signal.signal(signal.SIGUSR1, self._fork if self.mode == "fork" else self._raise)
        self.place.slot, allocator = VICTIM, self.place.allocator
        native.disarm()
        for armed in self.also:
            native.arm(*armed)
        if self.strike:
            number = signals.get(self.mode, signal.SIGUSR1)
            native.arm(self.strike.point, self.strike.passing, number)
        for number in range(COUNT):
            try:
                if self.call == "allocate":
                    self._filled(self.nbytes)
                elif self.call == "free":
                    allocator.free(self.given[number])
                else:
                    allocator.retag(self.given[number], SURVIVOR)
                self.facts[0] += 1
            except Raised:
                self.facts[1] += 1
        os.write(self._trace_write, "\n".join(native.trace()).encode())

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.facts[2] = 1
        raise Raised

    def _fork(self, number: int, frame: FrameType | None) -> None:
        """Have a child use the arena amid a call of its parent."""
        self.facts[2] = 1

        def use() -> None:
            self.place.slot = CHILD
            self.place.allocator.free(self._filled(self.nbytes))

        assert code_of(start(use)) == 0

    def go_on(self, slot: int) -> None:
        """Take, hand on and free blocks by the methods of either engine, and look into them."""
        self.place.slot, mine = slot, list[Cell]()
        ways = cycle([NativeAllocator, Allocator, Allocator])
        for number in range(ROUNDS):
            way: type[Any] = next(ways)
            nbytes = GIVE_BACK if number % 4 == 3 else self.nbytes if number % 2 else SMALL
            mine.append(self._filled(nbytes, way.allocate))
            mine[-1] = way.retag(self.place.allocator, mine[-1], slot)
            if len(mine) > 3:
                self.check_content(mine[0])
                way.free(self.place.allocator, mine.pop(0))
        for cell in mine:
            self.check_content(cell)


# What goes on around the victim


def fresh(stage: BlockStage) -> None:
    """No cell of this length was ever freed."""
    stage.give(SMALL)
    stage.strike_down()


def used_before(stage: BlockStage) -> None:
    """Cells near the cursor are free."""
    stage.give(SMALL)
    stage.leave_free(SMALL, COUNT)
    stage.strike_down()


def scattered(stage: BlockStage) -> None:
    """The only free cell is behind the cursor; the one before it is used."""
    stage.give(5000)
    first, second, third = [stage._filled(5000) for _ in range(3)]
    stage.place.allocator.free(first)
    stage.place.allocator.free(second)
    stage.kept += [third, stage._filled(5000)]
    stage.strike_down()


def warm(stage: BlockStage) -> None:
    """Free cells have kept their memory."""
    stage.give(GIVE_BACK)
    stage.leave_free(GIVE_BACK, COUNT)
    stage.strike_down()


def excess(stage: BlockStage) -> None:
    """As much is kept as may be."""
    stage.give(GIVE_BACK)
    stage.leave_free(GIVE_BACK, min(KEEP, LIMIT // 4) // GIVE_BACK)
    stage.strike_down()


def heir(stage: BlockStage) -> None:
    """The last one in the section died there, and had changed nothing."""
    stage.give(SMALL)
    stage.helper(INSIDE, signal.SIGKILL)
    stage.strike_down()


def repair(stage: BlockStage) -> None:
    """The last one in the section died there, before it could count."""
    stage.give(SMALL)
    stage.helper(HALFWAY, signal.SIGKILL)
    stage.strike_down()


def busy(stage: BlockStage) -> None:
    """Somebody is in the section, and goes on."""
    _meet(stage, signal.SIGCONT)


def busy_heir(stage: BlockStage) -> None:
    """Somebody is in the section, and dies there."""
    _meet(stage, signal.SIGKILL)


def busy_for_a_moment(stage: BlockStage) -> None:
    """Somebody is in the section, and has left it at the next try."""
    point = "X1 enter in enter, before"
    stage.give(SMALL)
    holder = stage.helper(INSIDE, signal.SIGSTOP)
    stage.also.append((point, 2, signal.SIGSTOP))
    stage.strike_down()
    until(lambda: is_over(stage.victim))
    os.kill(holder, signal.SIGCONT)
    assert code_of(holder) == 0
    if not (stage.mode == "stop" and stage.strike and stage.strike.point == point):
        os.kill(stage.victim, signal.SIGCONT)


SCENES: dict[str, Callable[[BlockStage], None]] = {
    scene.__name__: scene
    for scene in (
        fresh,
        used_before,
        scattered,
        warm,
        excess,
        heir,
        repair,
        busy,
        busy_heir,
        busy_for_a_moment,
    )
}


def _meet(stage: BlockStage, number: int) -> None:
    """Let the victim come to a section that is held, and its holder then go on, or die."""
    stage.give(SMALL)
    holder = stage.helper(INSIDE, signal.SIGSTOP)
    stage.strike_down()
    until(lambda: is_over(stage.victim) or is_waiting(stage.victim))
    os.kill(holder, number)
    assert code_of(holder) == (0 if number == signal.SIGCONT else -number)


# The accounts


def settle(stage: BlockStage) -> bool:
    """Let all go on and end, and check the accounts; False = the victim came not to the point."""
    others = list[int]()
    struck = _end_of_victim(stage, others)
    if not others:
        others += _start_others(stage)
    for pid in others:
        assert code_of(pid) == 0, "another"
    returned, raised, _ = stage.facts
    in_doubt = raised + (struck and stage.mode == "kill")
    place, allocator = stage.place, stage.place.allocator
    owned = list(allocator.owned_by(VICTIM))
    handed = [cell for cell in allocator.owned_by(SURVIVOR) if cell not in stage.kept]
    done = {"allocate": len(owned), "free": COUNT - len(owned), "retag": len(handed)}[stage.call]
    assert returned <= done <= returned + in_doubt, (returned, done, in_doubt)
    if struck and stage.strike and stage.mode == "kill" and stage.strike.passing == 1:
        point, _, moment = stage.strike.point.rpartition(", ")
        assert point != DECISIVE[stage.call] or done == returned + (moment == "after")
    assert stage.call != "retag" or len(owned) + len(handed) == COUNT
    for cell in [*stage.kept, *handed, *(owned if stage.call != "allocate" else [])]:
        stage.check_content(cell)
    for cell in stage.given:
        _check_handle(stage, cell, cell in owned or cell in handed)
    place.in_use()  # the counts are what the tags say
    assert place.words[JOURNAL] == 0
    for slot in (VICTIM, HELPER, CHILD, *OTHERS):
        freed = allocator.sweep(slot, owner=SURVIVOR)
        assert slot != VICTIM or freed == len(owned)
        assert not list(allocator.owned_by(slot))
    assert place.in_use() == sum(cell.nbytes for cell in [*stage.kept, *handed])
    for cell in [*stage.kept, *handed]:
        allocator.free(cell)
    assert place.in_use() == 0
    assert place.kept() <= LIMIT // 4
    return struck


def _check_handle(stage: BlockStage, cell: Cell, good: bool) -> None:
    """A handle is good for as long as its block is somebody's."""
    try:
        stage.place.allocator.check(cell)
    except StaleHandle:
        assert not good
    else:
        assert good


def _start_others(stage: BlockStage) -> Iterator[int]:
    return (start(stage.go_on, slot) for slot in OTHERS)


def _end_of_victim(stage: BlockStage, others: list[int]) -> bool:
    """See the victim struck, and to its end."""
    if stage.mode == "stop":
        _, status = os.waitpid(stage.victim, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        others += _start_others(stage)
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
    assert bool(stage.facts[2]) == passed
    assert not passed or stage.mode == "fork" or stage.facts[1], "it did not come out"
    return passed
