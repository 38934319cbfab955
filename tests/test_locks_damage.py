"""Locks and semaphores with scribbled bytes: an error or an answer, never a crash."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from ipcmap import CorruptError
from ipcmap._core import monitor_layout as at
from ipcmap._core.reference_monitor import Damaged
from ipcmap._core.slot_layout import HOLDER_BITS
from monitor_harness import LockType, SemaphoreType

VALUES = [0, 1, 2, 3, 2**22 + 1, 2**31, 2**63, 2**63 + 1, 2**64 - 1]


@pytest.mark.parametrize("holder", [2**22 - 1, 1 << HOLDER_BITS, (2**40 << HOLDER_BITS) + 1])
def test_a_holder_that_cannot_be_is_an_error_and_no_endless_wait(
    holder: int, lock_type: LockType
) -> None:
    """Without a timeout too."""
    lock = lock_type()
    lock._core._words[at.HOLDER] = holder

    calls: list[Callable[[], object]] = [lock.acquire, partial(lock.acquire, False), lock.locked]
    for call in calls:
        with pytest.raises(CorruptError, match="of a holder="):
            call()


def test_a_ledger_that_does_not_add_up_is_an_error(semaphore_type: SemaphoreType) -> None:
    """Rather than a token too many."""
    for word in (at.LEFT, at.FIRST_ENTRY + 1):
        semaphore = semaphore_type(2)
        semaphore._core._words[word] = 5
        with pytest.raises(CorruptError, match="Semaphore was overwritten: first value=2, taken="):
            _ = semaphore.value


def test_a_damaged_size_is_refused_when_a_handle_arrives(semaphore_type: SemaphoreType) -> None:
    """The ledger would end behind the block."""
    semaphore = semaphore_type(2)
    sent = pickle.dumps(semaphore)
    for word, value in ((at.INITIAL, 2**31), (at.ENTRIES, 1000), (at.ENTRIES, 2**64 - 1)):
        before = semaphore._core._words[word]
        semaphore._core._words[word] = value
        with pytest.raises(CorruptError, match="Semaphore was overwritten: first value"):
            pickle.loads(sent)
        semaphore._core._words[word] = before


@pytest.mark.parametrize("nbytes", [0, 8, 136, 145])
def test_a_damaged_length_is_refused_when_a_handle_arrives(
    nbytes: int, lock_type: LockType, semaphore_type: SemaphoreType
) -> None:
    """Its words would end before those of a lock, or in the middle of one."""
    for guard in (lock_type(), semaphore_type(2)):
        sent = pickle.dumps(guard)
        found = guard._allocator.layout.locate(guard._cell.offset)
        assert found
        length = found[0].lengths + found[1]
        before = guard._words[length]
        guard._words[length] = nbytes
        with pytest.raises(CorruptError, match=f"was overwritten: nbytes={nbytes}"):
            pickle.loads(sent)
        guard._words[length] = before


@pytest.mark.parametrize("word", [at.LEFT, at.FIRST_ENTRY + 1])
def test_a_ledger_scribbled_over_between_look_and_settling_is_an_error(
    word: int, semaphore_type: SemaphoreType
) -> None:
    """Whoever settles looks first and then enters again: the sum may fit no word by then."""
    semaphore = semaphore_type(2)
    semaphore.acquire()
    core = semaphore._core
    (holder,) = core._holders()
    core._words[word] = 2**64 - 1

    for keep in (False, True):
        with pytest.raises(Damaged, match="first value=2, taken="):
            core._settle(holder, keep)


def outcome_of(call: Callable[[], object]) -> str:
    """Return what a call came to; any other error is one of the test."""
    try:
        call()
    except CorruptError:
        return "damaged"
    except ValueError as error:
        if "released too many times" not in str(error):
            raise
        return "refused"
    return "answer"


def test_scribbled_bookkeeping_is_an_error_or_an_answer_and_never_a_crash(
    chance: random.Random, lock_type: LockType, semaphore_type: SemaphoreType
) -> None:
    """Any value in any word but the mutexes and the semaphores."""
    outcomes: Counter[str] = Counter()
    lock_words = [at.SLEEPERS, at.HOLDER, at.THREAD]
    semaphore_words = [at.SLEEPERS, *range(at.INITIAL, at.NEXT_LEFT + 1)]
    semaphore_words += range(at.FIRST_ENTRY, at.FIRST_ENTRY + 3 * at.ENTRY)
    for _ in range(1500):
        lock, semaphore = lock_type(), semaphore_type(3)
        semaphore.acquire()
        for _ in range(chance.randrange(1, 4)):
            value = chance.choice([*VALUES, chance.randrange(2**64)])
            lock._core._words[chance.choice(lock_words)] = value
            semaphore._core._words[chance.choice(semaphore_words)] = value
        for guard in (lock, semaphore):
            read = lock.locked if guard is lock else semaphore.get_value
            for call in (
                lambda: guard.acquire(block=False),  # noqa: B023
                read,
                guard.release,
                lambda: guard.acquire(timeout=0.0001),  # noqa: B023
            ):
                outcomes[outcome_of(call)] += 1

    assert outcomes.total() == 1500 * 8
    assert outcomes["damaged"] > 500
    assert outcomes["answer"] > 500
