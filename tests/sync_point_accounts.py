"""What must hold when one of a ring's users was struck at a sync point: the accounts.

Survivors go on, in time or a slice late; every record whose put returned comes once, in
order and whole; in doubt is the struck call alone; whoever enters next counts the death.
"""

from __future__ import annotations

import os
import signal
import time

from ipcmap import Arena
from ipcmap._core import reference_sections as sections
from ipcmap._core.layout import BYTES_IN_USE, JOURNAL, WARM_BYTES
from ring_traffic import GETTING, GETTING_MANY, Name
from sync_point_stage import COUNT, STOPPED, Stage, code_of, until

# What holds no section; all other points do.
OUTSIDE = {
    "X1 enter in section_try, before",
    "X1 enter in section_settle, before",
    "X1 enter in section_wait, before",
    "X2 leave in section_leave, after",
    "P3 sleep in parking_sleep, before",
    "P3 sleep in parking_sleep, after",
    "P5 look in parking_wake_next, before",
    "P5 look in parking_wake_next, after",
    "P6 post in parking_wake, before",
    "P6 post in parking_wake, after",
}
# Where a block is taken, filled, copied and freed: in the allocator's section, or in none.
OUTSIDE_FUNCTIONS = {"put_large", "get_large", "copy", "store_block", "free_block"} | {
    "enter",
    "leave",
    "free_cell",
    "cells_take",
    "cells_free",
    "book",
}
# Whoever dies here was an heir, and had not counted it.
UNCOUNTED = {
    "X1 make consistent in take_over, before",
    "X1 make consistent in take_over, after",
    "X1 count the takeover in take_over, before",
}
# From here on the record of a put is in the ring; before it, and inside, it is not.
COMMITTED = {
    f"R1 publish in {function}, after"
    for function in ("ring_append", "ring_put_many", "ring_put_block")
}
NOT_COMMITTED = {
    f"{step} in {function}, {moment}"
    for function in ("ring_append", "ring_put_many", "ring_put_block")
    for step, moment in [
        ("position", "before"),
        ("position", "after"),
        ("offset", "before"),
        ("offset", "after"),
        ("generation", "before"),
        ("generation", "after"),
        ("header", "before"),
        ("header", "after"),
        ("stub", "before"),
        ("stub", "after"),
        ("R1 publish", "before"),
    ]
} | {
    f"{step} in fill, {moment}"
    for step in ("R0 fill", "R0 stream", "R0 fence")
    for moment in ("before", "amid", "after")
}
NOT_TAKEN = {
    f"{step} in {function}, {moment}"
    for function in ("ring_consume", "ring_get", "ring_get_many")
    for step, moment in [
        ("R0 copy", "before"),
        ("R0 copy", "amid"),
        ("R0 copy", "after"),
        ("R2 consume", "before"),
    ]
} | {
    "B2 retag in ring_get_block, before",
    "A4 retag in cells_pass_on, before",
    "A4 retag in cells_pass_on, after",
    "B2 retag in ring_get_block, after",
    "call in ring_get_block, before",
    "call in ring_get_block, after",
    "R2 consume in ring_get_block, before",
}


def settle(stage: Stage) -> bool:
    """Let all go on and end, and check the accounts; False = the victim came not to the point."""
    struck = _end_of_victim(stage)
    ring = stage.ring
    for pid in stage.late:
        assert code_of(pid) == 0, "a holder, or who closes"
    if not ring.closed:
        stage.consume()
        stage.produce(COUNT)
        for pid in stage.givers:
            assert code_of(pid) == 0, "a producer"
        stage.fill_on()
        until(lambda: not ring._core.backlog())
        ring.close()
    else:
        stage.consume()
        for pid in stage.givers:
            assert code_of(pid) == 0, "a producer"
    for pid in stage.takers:
        assert code_of(pid) == 0, "a consumer"
    _check_records(stage, struck)
    _check_bookkeeping(stage, struck)
    _check_blocks(stage)
    return struck


def _end_of_victim(stage: Stage) -> bool:
    """See the victim struck, and to its end."""
    if stage.mode == "stop":
        stage.see_victim_over()
        _, status = os.waitpid(stage.victim, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        begin = time.monotonic()
        if not stage.ring.closed:
            stage.consume()
            stage.produce(COUNT)
            stage.try_to_fill(0.1)
        time.sleep(max(0.0, begin + STOPPED - time.monotonic()))
        os.kill(stage.victim, signal.SIGCONT)
        stage.see_victim_over()
        assert code_of(stage.victim) == 0, "stopped, and then?"
        return True
    stage.see_victim_over()
    code = code_of(stage.victim)
    assert code in ((0, -signal.SIGKILL) if stage.mode == "kill" else (0,)), f"victim: {code}"
    if stage.mode in ("", "kill"):
        return code != 0 or not stage.mode
    assert stage.strike
    passed = stage.trace().count(stage.strike.point) >= stage.strike.passing
    assert bool(stage.handled[0]) == passed
    assert not passed or stage.mode == "fork" or stage.doubts.count, "it did not come out"
    return passed


def _check_records(stage: Stage, struck: bool) -> None:
    """Every record whose put returned came once, in order; in doubt is the struck call alone."""
    came = [name for log in stage.consumers for name in log.taken]
    assert len(set(came)) == len(came), "a record came twice"
    for log in stage.consumers:
        for producer in range(len(stage.producers)):
            numbers = [name.number for name in log.taken if name.producer == producer]
            assert numbers == sorted(numbers), f"order: {numbers}"
    sure, possible = set[Name](), set[Name]()
    for producer, log in enumerate(stage.producers):
        assert log is stage.victim_log or log in stage.helpers or log.begun == log.count
        sure |= {Name(producer, number) for number in range(log.count)}
        possible |= {Name(producer, number) for number in range(log.begun)}
    lost_at_most = sum(log in stage.consumers and log.phase == GETTING for log in stage.helpers)
    if stage.produces:
        sure -= set(stage.doubts.taken)
    elif not (stage.heard and not stage.large and _is_in_first_get(stage)):
        # Where the call tells a listener, the handler runs there, and the record comes again.
        # Of large ones, the first is not the first to pass each point.
        lost_at_most += stage.doubts.count
    victim = stage.victim_log
    if struck and stage.strike and stage.mode == "kill":
        point, first = stage.strike.point, stage.strike.passing == 1
        in_hand = set(_in_hand(stage))
        assert not (first and point in COMMITTED) or in_hand & set(came), "committed"
        assert point not in NOT_COMMITTED or stage.call == "put_many" or not in_hand & set(came)
        assert not (first and point in NOT_COMMITTED) or not in_hand & set(came), "never put"
        if not stage.produces and not (point in NOT_TAKEN and (first or stage.call != "get_many")):
            lost_at_most += {GETTING: 1, GETTING_MANY: COUNT}.get(victim.phase, 0)
    assert set(came) <= possible, set(came) - possible
    lost = sure - set(came)
    assert len(lost) <= lost_at_most, f"lost: {lost}, in doubt: {lost_at_most}"


def _is_in_first_get(stage: Stage) -> bool:
    """Return whether the victim was struck in its first get, which looks across for its record."""
    strike = stage.strike
    return bool(strike and strike.passing == 1 and "get_at_once" not in strike.point)


def _in_hand(stage: Stage) -> list[Name]:
    """Return what the victim was putting."""
    if not stage.produces:
        return []
    log, name = stage.victim_log, stage.producers.index(stage.victim_log)
    return [Name(name, number) for number in range(log.count, log.begun)]


def _check_bookkeeping(stage: Stage, struck: bool) -> None:
    """No section is held; each death in one was counted once; few are counted as sleepers."""
    ring, facts = stage.ring, stage.ring.statistics()
    takeovers, sleepers = stage.deaths_inside, 0
    if struck and stage.strike and stage.mode == "kill":
        takeovers += not _is_outside(stage.strike.point)
        takeovers -= stage.strike.point in UNCOUNTED
        sleepers = 1
    for section in (ring._core._producers_section, ring._core._consumers_section):
        answer = sections.trylock(section)
        assert answer == 0
        sections.unlock(section)
    assert facts.recoveries == takeovers, f"takeovers: {facts.recoveries}, deaths: {takeovers}"
    if stage.mode != "stop" and not stage.stops:  # who cannot enter to say so stays counted
        counted = (facts.waiting_producers, facts.waiting_consumers)
        mine, other = counted if stage.produces else counted[::-1]
        assert other == 0
        assert mine <= sleepers


def _is_outside(point: str) -> bool:
    """Return whether no section of a ring is held at a point."""
    function = point.rpartition(" in ")[2].partition(",")[0]
    return point in OUTSIDE or function in OUTSIDE_FUNCTIONS


def _check_blocks(stage: Stage) -> None:
    """The counts are right for whoever comes next; a sweep leaves the ring's own block alone."""
    for block in stage.blocks:
        block.free()
    check_counts(stage.arena)
    stage.arena.sweep()
    check_counts(stage.arena)
    assert stage.arena.statistics().blocks == 1, stage.arena.statistics()
    stage.ring.destroy()
    assert stage.arena.statistics().bytes_in_use == 0


def check_counts(arena: Arena) -> None:
    """The counts of all cells say what their tags say, once the section was entered."""
    arena.allocate(64).free()  # whoever finds a journal makes the counts of its class anew
    inside, facts = arena._open(), arena.statistics()
    words, census = inside.words, inside.allocator.census()
    assert words[JOURNAL] == 0
    assert (words[BYTES_IN_USE], words[WARM_BYTES]) == (facts.bytes_in_use, facts.bytes_kept)
    for size_class, counted in census:
        counts = (words[size_class.used], words[size_class.used_nbytes], words[size_class.warm])
        assert counts == (counted.blocks, counted.nbytes, counted.warm), size_class
    assert facts.damaged == 0
