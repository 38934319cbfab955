"""The reference engine's ring when processes die, stop, or are interrupted."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TypeVar

import pytest

from children import Fork, die
from ipcmap import Mapping
from ipcmap._core import reference_parking as parking
from ipcmap._core import reference_ring_waiting
from ipcmap._core import reference_sections as sections
from ipcmap._core import ring_layout as at
from ipcmap._core.reference_ring_waiting import CLOSED
from ipcmap._core.reference_sections import Stalled
from ipcmap._deadline import Deadline
from ring_harness import Closed, Ring, set_trap

Result = TypeVar("Result")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("wrap", "store"), [(True, store) for store in range(1, 10)] + [(False, n) for n in range(1, 4)]
)
def test_a_producer_killed_at_any_store_of_put(
    store: int, before: bool, wrap: bool, fork: Fork
) -> None:
    """From the store of write_pos on the record is delivered; before it, it never existed."""
    ring = Ring()
    for _ in range(27 if wrap else 2):  # 27 * 8: the next needs a look across, and padding
        ring.push(b"", 0)
        ring.pull(0)
    ring.push(b"old", 0)
    ring.wait(ring.producers, 0, Deadline(0))  # the look at read_pos is not of the put

    def put() -> None:
        set_trap(ring, store, before, die)
        ring.push(b"n" * 40, 0)

    assert fork(put).wait() == -signal.SIGKILL

    committed = store == (9 if wrap else 3) and not before
    ring.push(b"later", 0)
    expected = [b"old", *([b"n" * 40] if committed else []), b"later"]
    assert ring.backlog() == len(expected)
    assert ring.drain() == expected
    assert ring.backlog() == 0


@pytest.mark.parametrize("before", [True, False])
def test_a_consumer_killed_at_the_store_of_get(before: bool, fork: Fork) -> None:
    """From the store of read_pos on its one record is in doubt; before it, the next one has it."""
    ring = Ring()
    for record in (b"first", b"second", b"third"):
        ring.push(record, 0)
    ring.wait(ring.consumers, 0, Deadline(0))  # the look at write_pos is not of the get

    def get() -> None:
        set_trap(ring, 1, before, die)
        ring.pull(0)

    assert fork(get).wait() == -signal.SIGKILL

    expected = [b"first", b"second", b"third"] if before else [b"second", b"third"]
    assert ring.backlog() == len(expected)
    assert ring.drain() == expected
    assert ring.push(b"on", 0)
    assert ring.drain() == [b"on"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("side", ["consumers", "producers"])
def test_a_waiter_killed_while_it_announces_or_sleeps_harms_nobody(
    side: str, before: bool, fork: Fork
) -> None:
    """The sleepers it leaves counted cost a look, and no record."""
    ring = Ring(64)
    if side == "producers":
        while ring.push(b"full", 0):
            pass

    def wait() -> None:
        set_trap(ring, 1, before, die)
        if side == "consumers":
            ring.pull()
        else:
            ring.push(b"never")

    assert fork(wait).wait() == -signal.SIGKILL
    filled = ring.drain()
    assert set(filled) <= {b"full"}

    for number in range(50):
        assert ring.push(b"%d" % number, 0)
        assert ring.pull(0) == b"%d" % number


def test_a_record_reaches_a_live_sleeper_when_the_one_woken_is_killed(fork: Fork) -> None:
    """The token died with it; the other wakes at the end of its slice and takes the record."""
    ring, results = Ring(), Ring()

    def asleep(count: int) -> None:
        while ring._words[at.CONSUMERS_SLEEPING] < count:
            os.sched_yield()

    victim = fork(ring.pull)
    asleep(1)
    os.kill(victim.pid, signal.SIGSTOP)
    os.waitpid(victim.pid, os.WUNTRACED)
    other = fork(lambda: results.push(ring.pull() or b""))
    asleep(2)
    ring.push(b"kept")
    victim.kill()

    assert results.pull(30) == b"kept"
    assert other.wait() == 0


def test_a_record_whose_producer_was_killed_before_its_post_is_late_and_not_lost(
    fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was committed; the sleeper finds it at the end of its slice."""
    ring, results = Ring(), Ring()

    def put() -> None:
        monkeypatch.setattr(parking, "wake", lambda place: die())
        ring.push(b"kept")

    consumer = fork(lambda: results.push(ring.pull() or b""))
    while not ring._words[at.CONSUMERS_SLEEPING]:
        os.sched_yield()
    assert fork(put).wait() == -signal.SIGKILL

    assert results.pull(30) == b"kept"
    assert consumer.wait() == 0


@pytest.mark.parametrize("side", ["consumers", "producers"])
def test_whoever_hears_of_the_end_tells_the_next(
    side: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token of the end may have gone to one that found something else first."""
    ring = Ring(64)
    call: Callable[[], object] = ring.pull
    if side == "producers":
        call = partial(ring.push, b"never")
        while ring.push(b"full", 0):
            pass
    monkeypatch.setattr(reference_ring_waiting, "_SLICE", 1000.0)

    def wait() -> None:
        with pytest.raises(Closed):
            call()

    sleeper = fork(wait)
    ours = ring.consumers if side == "consumers" else ring.producers
    while not ring._words[ours.sleepers]:
        os.sched_yield()
    for word, value in ((at.ROOM_END, 0), (at.CLOSED, 1), (at.ENDED, 1)):  # without a post
        ring._words[word] = value
    assert ring.wait(ours, ring._words[ours.other_pos], Deadline(0)) == CLOSED

    assert sleeper.wait() == 0


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("store", [1, 2, 3])
def test_a_closer_killed_at_any_store_leaves_a_ring_that_can_be_closed(
    store: int, before: bool, fork: Fork
) -> None:
    """Open, or closed for producers and drained by consumers; another close completes it."""
    ring = Ring()
    ring.push(b"kept")

    def close() -> None:
        set_trap(ring, store, before, die)
        ring.end()

    assert fork(close).wait() == -signal.SIGKILL
    if store == 1 or (store == 2 and before):
        assert ring.push(b"still open", 0)
        assert ring.drain() == [b"kept", b"still open"]
        assert ring.pull(0) is None
    else:
        with pytest.raises(Closed):
            ring.push(b"refused", 0)
        assert ring.pull(0) == b"kept"
    ring.end()
    with pytest.raises(Closed):
        ring.pull()
    with pytest.raises(Closed):
        ring.push(b"refused")


def test_others_go_on_while_a_consumer_is_stopped(fork: Fork) -> None:
    """A reader that is stopped outside of a section holds up nobody, and wakes to the rest."""
    ring, count = Ring(), 100

    stopped = fork(ring.pull)
    while not ring._words[at.CONSUMERS_SLEEPING]:
        os.sched_yield()
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitpid(stopped.pid, os.WUNTRACED)
    for number in range(count):
        assert ring.push(b"%d" % number, 30)
        assert ring.pull(30) == b"%d" % number

    os.kill(stopped.pid, signal.SIGCONT)
    ring.push(b"for you")
    assert stopped.wait() == 0
    assert ring.drain() == []


def test_a_timeout_ends_a_call_while_a_section_is_held_by_one_who_is_stopped(fork: Fork) -> None:
    """Nothing is taken from the living, and nobody waits for ever for them."""
    ring = Ring()

    def put() -> None:
        set_trap(ring, 1, True, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        ring.push(b"slow", 0)

    child = fork(put)
    os.waitpid(child.pid, os.WUNTRACED)

    with pytest.raises(Stalled):
        ring.push(b"mine", 0.3)
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0
    assert ring.push(b"mine", 30)
    assert ring.drain() == [b"slow", b"mine"]


@pytest.mark.parametrize(
    "rounds", [60, pytest.param(2000, marks=[pytest.mark.stress, pytest.mark.timeout(1200)])]
)
def test_a_storm_of_kills_loses_no_committed_record(
    rounds: int, chance: random.Random, fork: Fork
) -> None:
    """Producers and consumers killed at random: every record is accounted for.

    What a producer noted as put is delivered once, unless it was in the hands of a
    consumer that was killed; nothing is delivered twice, and nothing out of order.
    """
    ring = Ring(1024)
    notes = Mapping.anonymous(8 * rounds)
    noted = notes.view().cast("Q")
    seen = Mapping.anonymous(8 * 2)
    taken = seen.view().cast("Q")
    log = Ring(1 << 27)  # all that is ever taken
    lost_at_most = 0

    def produce(name: int) -> None:
        for number in range(1 << 20):
            ring.push(b"%d %d" % (name, number))
            noted[name] = number + 1

    def consume() -> None:
        while True:
            record = ring.pull()
            taken[0] += 1
            log.push(record or b"")

    for name in range(rounds):
        children = [fork(produce, name), fork(consume)]
        until = taken[0] + chance.randrange(1, 60)
        while taken[0] < until:
            os.sched_yield()
        chance.shuffle(children)
        for child in children:
            child.kill()
        lost_at_most += 1

    received = [tuple(map(int, record.split())) for record in log.drain()]
    received += [tuple(map(int, record.split())) for record in ring.drain()]
    lost = 0
    for name in range(rounds):
        numbers = [number for giver, number in received if giver == name]
        assert numbers == sorted(set(numbers)), "each once, in order"
        assert len(numbers) <= noted[name] + 1, "at most the one put that did not return"
        lost += noted[name] - len([number for number in numbers if number < noted[name]])
    assert 0 <= lost <= lost_at_most
    assert ring.backlog() == 0


def test_handlers_that_raise_in_put_and_get_break_nothing(chance: random.Random) -> None:
    """What returned is in the ring; a call that raised may have put its record, or taken one."""

    class Raised(Exception):
        pass

    armed: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if armed:
            armed.clear()
            raise Raised

    def attempt(call: Callable[[], Result]) -> Result | None:
        """Call, and have the handler raise once at some moment in it; None = it did."""
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 5e-5))
            result = call()
            armed.clear()
        except Raised:
            return None
        return result

    ring, put, received = Ring(4096), set[bytes](), list[bytes]()
    doubtful_puts, doubtful_gets = set[bytes](), 0
    gc.disable()  # what a handler raises in a callback of the collector comes to nobody
    previous = signal.signal(signal.SIGALRM, handle)
    try:
        for number in range(3000):
            record = b"%d" % number
            sure = attempt(partial(ring.push, record, 0))
            (put if sure else doubtful_puts).add(record)
            taken = attempt(lambda: [ring.pull(0)])
            if taken is None:
                doubtful_gets += 1
            elif taken[0] is not None:
                received.append(taken[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.enable()

    received += ring.drain()
    assert len(doubtful_puts) > 100
    assert doubtful_gets > 100
    assert len(set(received)) == len(received)
    assert received == sorted(received, key=int)
    assert set(received) <= put | doubtful_puts
    assert len(put - set(received)) <= doubtful_gets
    assert ring.backlog() == 0
    assert [sections.unlock(s) for s in (ring._producers_section, ring._consumers_section)] == [
        1,
        1,
    ]


def test_a_wait_ends_in_time_though_the_other_side_is_stopped_inside(fork: Fork) -> None:
    """Not even to be no sleeper any more does it wait for the one who is stopped."""
    ring, steps = Ring(), Mapping.anonymous(8)

    def stop_inside() -> None:
        while not ring._words[at.CONSUMERS_SLEEPING]:
            os.sched_yield()
        set_trap(ring, 1, True, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        ring.push(b"late", 0)

    def wait() -> None:
        assert ring.pull(0.5) is None
        steps[0] = 1

    waiter, stopped = fork(wait), fork(stop_inside)
    os.waitpid(stopped.pid, os.WUNTRACED)
    assert waiter.wait() == 0
    assert steps[0] == 1

    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.wait() == 0
    assert ring.drain() == [b"late"]


def test_an_error_that_a_handler_lets_out_of_a_nested_call_leaves_no_section_held(
    fork: Fork,
) -> None:
    """The outer call ends with it, before its commit, and others go on."""
    ring = Ring()

    remove = set_trap(ring, 3, True, lambda: ring.push(b"inner", 0))
    with pytest.raises(sections.Reentered):
        ring.push(b"outer", 0)
    remove()

    assert fork(ring.push, b"other", 0).wait() == 0
    assert ring.drain() == [b"other"]


def test_a_handler_that_uses_the_ring_it_interrupts_gets_an_error() -> None:
    """The change it broke into goes on to its end, undisturbed."""
    ring = Ring()
    refused = []

    def reenter() -> None:
        with pytest.raises(sections.Reentered):
            ring.push(b"inner", 0)
        refused.append(True)

    remove = set_trap(ring, 3, True, reenter)
    assert ring.push(b"outer", 0)
    remove()

    assert refused == [True]
    assert ring.drain() == [b"outer"]
