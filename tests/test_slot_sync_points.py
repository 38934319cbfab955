"""Who is killed or stopped at each named sync point of the table of process slots.

test_slot_deaths breaks off before every store, and asks that all comes right in the end;
here each point is known by its name, and what holds after it is what the header of
reference_slots says, before anybody has repaired anything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest

from children import Fork, die
from families import Place
from ipcmap._core import reference_slots
from ipcmap._core import slot_layout as at

CLAIM, SWEEP = "claim", "sweep"
LIFE = at.SLOT + at.LIFE  # of the first slot


def stop_oneself() -> None:
    """Stop, until somebody lets this process go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


class Point(NamedTuple):
    """A sync point: which call comes to it, and by which store it is known."""

    call: str
    word: int
    private: bool = False
    state: int | None = None  # of a life that is stored
    nonzero: bool = False

    def is_at(self, index: int, value: int, *, private: bool) -> bool:
        """Return whether this is its store."""
        return (
            (index, private) == (self.word, self.private)
            and (self.state is None or value & at.STATE_MASK == self.state)
            and bool(value or not self.nonzero)
        )


POINTS = {
    "F1 try": Point(CLAIM, reference_slots._TRIED, private=True),
    "F2 claim": Point(CLAIM, LIFE, state=at.LIVE),
    "F3 know": Point(CLAIM, reference_slots._NUMBER, private=True),
    "D1 mark": Point(SWEEP, LIFE, state=at.DYING),
    "D2 intend": Point(SWEEP, at.H_JOURNAL_SLOT, nonzero=True),
    "D3 log": Point(SWEEP, at.H_DEATHS),
    "D4 free": Point(SWEEP, LIFE, state=at.FREE),
}
# What the slot is then, before anybody else has entered the section.
THEN = {
    ("F1 try", "before"): at.FREE,
    ("F1 try", "after"): at.FREE,
    ("F2 claim", "before"): at.FREE,
    ("F2 claim", "after"): at.LIVE,
    ("F3 know", "before"): at.LIVE,
    ("F3 know", "after"): at.LIVE,
    ("D1 mark", "before"): at.LIVE,
    ("D1 mark", "after"): at.DYING,
    ("D2 intend", "before"): at.DYING,
    ("D2 intend", "after"): at.DYING,
    ("D3 log", "before"): at.DYING,
    ("D3 log", "after"): at.DYING,
    ("D4 free", "before"): at.DYING,
    ("D4 free", "after"): at.FREE,
}
MOMENTS = pytest.mark.parametrize(("name", "moment"), THEN)


class Watched:
    """Words of the table that act at one store, before or after it."""

    def __init__(
        self, words: memoryview, point: Point, moment: str, act: Callable[[], object], private: bool
    ) -> None:
        self.words, self.point, self.moment = words, point, moment
        self.act, self.private = act, private

    def __getitem__(self, index: Any) -> Any:
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        here = self.point.is_at(index, value, private=self.private)
        if here and self.moment == "before":
            self.act()
        self.words[index] = value
        if here and self.moment == "after":
            self.act()


def come_to(place: Place, name: str, moment: str, act: Callable[[], object]) -> None:
    """Claim or sweep, and act at a point."""
    table, point = place.table, POINTS[name]
    words = Watched(table._words, point, moment, act, private=False)
    own = Watched(table._own, point, moment, act, private=True)
    table._words, table._own = cast(Any, words), cast(Any, own)
    if point.call == CLAIM:
        table.slot()
    else:
        table.sweep()


def prepare(place: Place, name: str, fork: Fork) -> None:
    """Have a death to be found, where that is what the call is for."""
    if POINTS[name].call == SWEEP:
        fork(place.table.slot).wait()


def test_every_point_of_the_header_is_here() -> None:
    """Those of the life of a slot, as the header names them."""
    header = reference_slots.__doc__ or ""
    begin, end = header.index("Sync points"), header.index("If a process dies")
    named = {
        line[2:12].strip()
        for line in header[begin:end].splitlines()
        if line[2:3] in ("F", "D") and line[3:4].isdigit()
    }

    assert named == set(POINTS)


@MOMENTS
def test_who_is_killed_at_a_point_leaves_what_the_header_says(
    name: str, moment: str, place: Place, fork: Fork
) -> None:
    """And one death in the log for each slot that was somebody's; the next finds one free."""
    prepare(place, name, fork)
    killed = fork(lambda: come_to(place, name, moment, die))
    assert killed.wait() == -signal.SIGKILL

    assert place.words[LIFE] & at.STATE_MASK == THEN[name, moment]
    if name in ("D2 intend", "D3 log", "D4 free") and (name, moment) != ("D2 intend", "before"):
        assert place.pids() == [], "whoever enters finishes the burial"
    place.table.sweep()
    assert place.pids() == []
    claimed = POINTS[name].call == SWEEP or THEN[name, moment] == at.LIVE
    assert len(place.table.deaths()) == claimed
    assert fork(lambda: os._exit(place.table.slot() != 1)).wait() == 0


@MOMENTS
def test_who_is_stopped_at_a_point_goes_on_where_it_was(
    name: str, moment: str, place: Place, fork: Fork
) -> None:
    """Nothing is taken from it: others wait for it, or go on without it."""
    prepare(place, name, fork)
    stopped = fork(lambda: come_to(place, name, moment, stop_oneself))
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
    assert place.words[LIFE] & at.STATE_MASK == THEN[name, moment]
    other = fork(place.table.slot)
    os.kill(stopped.pid, signal.SIGCONT)

    assert stopped.wait() == 0
    assert other.wait() == 0
    place.table.sweep()
    assert place.pids() == []
    deaths = [(death.slot, death.generation) for death in place.table.deaths()]
    assert len(deaths) == len(set(deaths)) == 2
