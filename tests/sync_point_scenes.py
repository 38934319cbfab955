"""What goes on around the victim, so that every sync point is passed by some call.

Each scene prepares a ring, strikes the victim down at work, and has its partners do what
it needs. No scene rests on how long something takes: whoever is to sleep is seen asleep,
whoever is to hold a section is stopped or killed in it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from select import select

from sync_point_stage import Stage, code_of, is_over, is_waiting, until

WAITING = "X1 enter in section_wait, before"
SETTLING = "X1 enter in section_settle, before"


def room(stage: Stage) -> None:
    """Two of the other side sleep, and the victim need not."""
    if stage.produces:
        stage.consume()
        stage.consume()
        stage.asleep(0, 2)
    else:
        stage.fill(stage.filled)
        stage.produce(1)
        stage.produce(1)
        stage.asleep(2, 0)
    stage.strike_down()


def heard(stage: Stage) -> None:
    """Somebody listens for what the victim does."""
    stage.heard = True
    if not stage.produces:
        stage.fill(stage.filled)
    with stage.ring.listen() if stage.produces else stage.ring._listen_for_room() as listener:
        if not stage.produces:
            listener._arm(stage.ring._core.consumed())
        stage.strike_down()
        until(lambda: is_over(stage.victim) or select([listener], [], [], 0)[0])


def edge(stage: Stage) -> None:
    """The next record does not fit before the end of the ring."""
    stage.advance(stage.filled)
    if stage.produces:
        stage.consume()
    else:
        stage.fill(2)
        stage.produce(2)
    stage.strike_down()


def padding_alone(stage: Stage) -> None:
    """A producer died between its padding record and the record."""
    stage.advance(stage.filled)
    stage.helper("put", "note room_end in note_room, before", signal.SIGKILL)
    if stage.produces:
        stage.consume()
    stage.strike_down()
    if not stage.produces:
        stage.asleep(0, 1)
        stage.produce(3)


def wait(stage: Stage) -> None:
    """The victim sleeps, beside another."""
    _wait_together(stage)
    if stage.produces:
        stage.consume()
    else:
        stage.produce(4)


def end(stage: Stage) -> None:
    """The ring is closed while the victim sleeps, beside another."""
    _wait_together(stage)
    stage.close()


def timeout(stage: Stage) -> None:
    """Nothing comes in time."""
    if stage.produces:
        stage.fill(stage.filled)
    stage.strike_down(0.05)
    until(lambda: is_over(stage.victim))


def heir(stage: Stage) -> None:
    """The last one in the victim's own section died there."""
    _prepare(stage)
    stage.helper(_own(stage), _inside(stage, _own(stage)), signal.SIGKILL)
    stage.strike_down()


def heir_across(stage: Stage) -> None:
    """The last one in the other side's section died there, and the victim has to wait."""
    if stage.produces:
        stage.fill(stage.filled)
        stage.helper("get", _inside(stage, "get"), signal.SIGKILL)
    else:
        stage.helper("put", _inside(stage, "put"), signal.SIGKILL)
    stage.strike_down()
    stage.asleep(stage.produces, not stage.produces)
    if stage.produces:
        stage.consume()
    else:
        stage.produce(3)


def busy(stage: Stage) -> None:
    """Somebody is in the section, and goes on."""
    _meet(stage, signal.SIGCONT)


def busy_heir(stage: Stage) -> None:
    """Somebody is in the section, and dies there."""
    _meet(stage, signal.SIGKILL)


def busy_for_a_moment(stage: Stage) -> None:
    """Somebody is in the section, and has left it at the next try."""
    _miss(stage, SETTLING)


def busy_until_it_waits(stage: Stage) -> None:
    """Somebody is in the section, and has left it when the victim begins to wait for it."""
    _miss(stage, WAITING)


def scattered(stage: Stage) -> None:
    """The only free cell is behind the allocator's cursor; the one before it is used."""
    first, second, third = [stage.arena.allocate(500) for _ in range(3)]
    first.free()
    second.free()
    stage.blocks += [third, stage.arena.allocate(500)]
    if not stage.produces:
        stage.fill(3)
    stage.strike_down()


SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene
    for scene in (
        room,
        heard,
        edge,
        padding_alone,
        wait,
        end,
        timeout,
        heir,
        heir_across,
        busy,
        busy_heir,
        busy_for_a_moment,
        busy_until_it_waits,
        scattered,
    )
}

# Where records are written past the caches: over the end of the ring, alone or behind padding
# that a dead producer has left, and over the bytes of a record that one has not published.
STREAMED_SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene for scene in (edge, padding_alone, heir)
}


def _own(stage: Stage) -> str:
    return "put" if stage.produces else "get"


def _inside(stage: Stage, call: str) -> str:
    """Return the last point in its section at which a call has changed nothing yet."""
    step = "R1 publish" if call == "put" else "R2 consume"
    if stage.large:
        return f"{step} in ring_{call}_block, before"
    return f"{step} in {'ring_append' if call == 'put' else 'ring_consume'}, before"


def _prepare(stage: Stage) -> None:
    """See to it that the victim need not wait for long."""
    if stage.produces:
        stage.consume()
        stage.asleep(0, 1)
    else:
        stage.fill(stage.filled)
        stage.produce(3)
        stage.asleep(1, 0)


def _wait_together(stage: Stage) -> None:
    if stage.produces:
        stage.fill(stage.filled)
        stage.produce(2)
        stage.asleep(1, 0)
        stage.strike_down()
        stage.asleep(2, 0)
    else:
        stage.consume()
        stage.asleep(0, 1)
        stage.strike_down()
        stage.asleep(0, 2)


def _meet(stage: Stage, number: int) -> None:
    """Let the victim come to a section that is held, and its holder then go on, or die."""
    _prepare(stage)
    holder = stage.helper(_own(stage), _inside(stage, _own(stage)), signal.SIGSTOP)
    stage.strike_down()
    until(lambda: is_over(stage.victim) or is_waiting(stage.victim))
    os.kill(holder, number)
    if number == signal.SIGKILL:
        stage.deaths_inside += 1
        assert code_of(holder) == -number
    else:
        stage.late.append(holder)


def _miss(stage: Stage, point: str) -> None:
    """Stop the victim where it has found the section held, and let the holder leave."""
    _prepare(stage)
    holder = stage.helper(_own(stage), _inside(stage, _own(stage)), signal.SIGSTOP)
    is_struck_there = stage.strike == (point, 1, "stop")
    if not is_struck_there:
        stage.also.append((point, 1, signal.SIGSTOP))
    stage.strike_down()
    until(lambda: is_over(stage.victim))
    os.kill(holder, signal.SIGCONT)
    until(lambda: is_over(holder) or (stage.mode == "stop" and is_waiting(holder)))
    stage.late.append(holder)
    if not is_struck_there:
        os.kill(stage.victim, signal.SIGCONT)
