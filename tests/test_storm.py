"""The promise under fire: random kills and stops, and everything is accounted for.

    tox -e storm                                    2,000 kills on each engine
    IPCMAP_STORM_KILLS=20000 tox -e storm           more of them
    IPCMAP_STORM_SEED=4711 tox -e storm             with the choices of an earlier run

A seed gives the same crew, ring and choices; what the kernel makes of them differs.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from children import Fork
from ipcmap import Arena, Ring
from storm_conductor import Conductor
from storm_crew import LEFT, TAKEOVERS, TOKENS, Stage
from storm_report import report

KILLS = int(os.environ.get("IPCMAP_STORM_KILLS", "2000"))
SEED = os.environ.get("IPCMAP_STORM_SEED")
LOGGED = 1024  # deaths that an arena remembers


@pytest.mark.storm
@pytest.mark.timeout(max(3600, 2 * KILLS))  # for what hangs in the conductor itself
def test_nothing_hangs_and_nothing_is_lost_in_a_storm_of_kills_and_stops(
    engine: str, ring_type: type[Ring], fork: Fork, pytestconfig: pytest.Config
) -> None:
    """Records come once, in order and whole; locks, tokens, blocks and slots come back."""
    seed = int(SEED) if SEED else random.randrange(2**32)
    chance = random.Random(seed)
    capacity = chance.choice([1 << 12, 1 << 14, 1 << 16, 1 << 20])
    limit = chance.choice([4 << 20, 256 << 20])  # the smaller one is full most of the time
    crew = ["produce"] * 4 + ["consume"] * 4 + ["count"] * 4 + ["fill"] * 2
    name = f"{engine}, seed {seed}, ring of {capacity >> 10} KiB, arena of {limit >> 20} MiB"
    print(f"\nstorm, {name}: begins", flush=True)
    arena = Arena(limit, backend=engine)
    stage = Stage(arena, ring_type(capacity, arena=arena), len(crew), chance)
    before = arena.statistics()
    conductor = Conductor(stage, crew, fork, chance, name)
    hang = conductor.run(KILLS)
    if hang:
        things = [stage.ring, *stage.guards()]
        watchdog = pytestconfig.pluginmanager.getplugin("the watchdog of this run")
        text = report(conductor.names(), watchdog.dumps, arena, things)
        pytest.fail(f"{hang}\n{text}", pytrace=False)
    conductor.say(force=True)

    statistics = stage.ring.statistics()
    gone = conductor.account.check(statistics.puts)
    takeovers = [pair.words[TAKEOVERS] for pair in stage.pairs]
    print(
        f"storm, {name}: {gone} records were in doubt and are gone; {conductor.caught} were killed "
        f"inside a section; taken over: {statistics.recoveries} of the ring's, {takeovers} locks",
        flush=True,
    )
    assert (statistics.gets, statistics.backlog_bytes, len(stage.ring)) == (statistics.puts, 0, 0)
    for pair, (surely, perhaps) in zip(stage.pairs, conductor.counted, strict=True):
        assert surely <= pair.words[LEFT] <= perhaps
    check_guards(stage)
    check_deaths(conductor)
    after = arena.statistics()
    assert (after.blocks, after.bytes_in_use) == (before.blocks, before.bytes_in_use)
    assert after.damaged == 0
    assert [member.pid for member in arena._open().family.members()] == [os.getpid()]


def check_guards(stage: Stage) -> None:
    """Nobody holds anything any more, and everything can be held."""
    for guard, tokens in zip(stage.guards(), (1, 1, TOKENS), strict=True):
        assert [guard.acquire(timeout=10) for _ in range(tokens)] == [True] * tokens
        assert not guard.acquire(block=False)
        for _ in range(tokens):
            guard.release()


def check_deaths(conductor: Conductor) -> None:
    """Each death once, of those who used the arena, with the true cause where there is one."""
    deaths = conductor.stage.arena.deaths()
    assert min(LOGGED, conductor.members) <= len(deaths)
    assert len(deaths) <= min(LOGGED, conductor.spawned.total())
    for death in deaths:
        conductor.spawned[death.pid] -= 1
        assert conductor.spawned[death.pid] >= 0, f"not of the crew, or twice: {death}"
        if death.cause == "killed":
            assert death.signal == signal.SIGKILL
            assert death.pid in conductor.killed
        elif death.cause == "exited":
            assert death.exitcode == 0
        else:
            assert death.cause == "unknown"
