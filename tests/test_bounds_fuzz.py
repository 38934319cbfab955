"""Any word of the bookkeeping scribbled over, on both engines: an error that is named, or an answer.

Never a signal, another exception, or a call that outlives its timeout. What is spared are
mutexes and semaphores, which are the C library's. A round is named by the seed and its
number; both are in the message, and IPCMAP_FUZZ_SEED and IPCMAP_FUZZ_FIRST repeat it. The
stress test plays IPCMAP_FUZZ_ROUNDS of them. Processes play by the batch, so that a signal
or a hang costs one of them; one that hangs prints its stack.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import random
import traceback
from collections import Counter

import pytest

from children import Fork
from ipcmap import Mapping, errors
from scribble import World

LEGAL = (errors.IpcmapError, queue.Full, queue.Empty)
SEED = int(os.environ.get("IPCMAP_FUZZ_SEED", "20"))
FIRST = int(os.environ.get("IPCMAP_FUZZ_FIRST", "0"))
ROUNDS = int(os.environ.get("IPCMAP_FUZZ_ROUNDS", "10000"))
BATCH = 50  # rounds of one process
PATIENCE = 40  # seconds for a batch, which takes half a second


def is_legal(error: Exception) -> bool:
    """Return whether an error is one that the methods name."""
    if isinstance(error, errors.NotInherited):
        return False
    if isinstance(error, LEGAL):
        return True
    # A release too many, and an arena whose header names the other engine.
    text = str(error)
    return isinstance(error, ValueError) and (
        "released too many times" in text or "arena belongs to another engine" in text
    )


def play(engine: str, number: int, outcomes: Counter[str]) -> None:
    """Play one round."""
    chance = random.Random(f"{SEED}:{number}")
    world = World(engine, chance)
    if chance.random() < 0.15:
        world.beside(world.leave_things_behind)
    done = world.scribble()
    if chance.random() < 0.1:
        world.beside(lambda: use(world, done, Counter()))
    use(world, done, outcomes)


def use(world: World, done: list[str], outcomes: Counter[str]) -> None:
    """Call everything there is."""
    for call in world.calls():
        try:
            call()
            outcomes["answer"] += 1
        except Exception as error:
            if not is_legal(error):
                os.write(2, f"{call}\n{traceback.format_exc()}{done}\n".encode())
                os.kill(os.getpid(), 9)
            outcomes[type(error).__name__] += 1


def play_batch(engine: str, numbers: range, at_work: memoryview, total: memoryview) -> None:
    """Play rounds, whose number is seen from outside."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    outcomes: Counter[str] = Counter()
    for number in numbers:
        at_work[0] = number
        play(engine, number, outcomes)
    total[0] += outcomes["answer"]
    total[1] += outcomes["CorruptError"]


@pytest.mark.parametrize(
    "rounds", [200, pytest.param(ROUNDS, marks=[pytest.mark.stress, pytest.mark.timeout(3600)])]
)
def test_no_scribbled_word_is_more_than_an_error(rounds: int, engine: str, fork: Fork) -> None:
    """Of ring, lock, semaphore, allocator, blocks, slots and headers, by every public operation."""
    seen = Mapping.anonymous(4096).view().cast("Q")
    for begin in range(FIRST, FIRST + rounds, BATCH):
        numbers = range(begin, min(begin + BATCH, FIRST + rounds))
        code = fork(play_batch, engine, numbers, seen[:1], seen[1:3]).wait()
        assert code == 0, f"round {seen[0]} of seed {SEED}: IPCMAP_FUZZ_FIRST={seen[0]} repeats it"

    answers, damaged = seen[1:3].tolist()
    assert answers > 10 * rounds
    assert damaged > rounds
