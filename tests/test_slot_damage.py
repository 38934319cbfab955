"""The table of process slots among strangers and scribblers: errors, and never a crash."""

from __future__ import annotations

import ctypes
import os
import random
import signal

import pytest

from children import Fork
from families import Place
from ipcmap import Arena, CorruptError, FamilyFull, ForeignNamespace, Lock
from ipcmap._core import libc
from ipcmap._core import slot_layout as at

_CLONE_NEWPID = 0x20000000


def test_a_process_of_another_pid_namespace_is_refused(fork: Fork) -> None:
    """Its pids mean other processes."""
    place = Place()

    def child() -> None:
        try:
            libc._declare("unshare", ctypes.c_int, ctypes.c_int)(_CLONE_NEWPID)
        except PermissionError:
            os._exit(77)
        pid = os.fork()
        if not pid:
            try:
                place.table.slot()
            except ForeignNamespace:
                os._exit(0)
            os._exit(1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    code = fork(child).wait()
    if code == 77:
        pytest.skip("a new pid namespace is not permitted here")

    assert code == 0
    assert place.pids() == []


@pytest.mark.parametrize("field", [at.H_PID_NAMESPACE, at.H_TIME_NAMESPACE])
def test_a_process_of_another_namespace_neither_claims_nor_sweeps(field: int) -> None:
    """The error names both namespaces."""
    place = Place()
    place.words[field] = 1

    with pytest.raises(ForeignNamespace, match="family's=1, pid"):
        place.table.slot()
    with pytest.raises(ForeignNamespace):
        place.table.sweep()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (at.H_IDENTITY, 0),
        (at.H_MAX_PROCESSES, 2**64 - 1),
        (at.H_FIRST_FREE, 66),
        (at.H_USED, 65),
        (at.H_DEATHS, 2**64 - 1),
        (at.H_JOURNAL_SLOT, 65),
        (at.H_JOURNAL_SLOT, 1),
        (at.SLOT + at.LIFE, 3),
        (at.SLOT + at.LIFE, 2**64 - 2),
        (at.SLOT + at.LIFE, at.MAX_LIFE | at.LIVE),
        (at.SLOT + at.PID, 0),
        (at.SLOT + at.PID, 2**31),
        (at.log_begin(64) + at.R_NUMBER, 2),
        (at.log_begin(64) + at.R_CAUSE, 5),
        (at.log_begin(64) + at.R_PID, 0),
        (at.log_begin(64) + at.R_SLOT, 65),
    ],
)
def test_a_damaged_word_is_an_error_and_no_crash(word: int, value: int, fork: Fork) -> None:
    """Each is noticed by one who uses it."""
    place = Place()
    fork(place.table.slot).wait()
    place.table.sweep()

    def member() -> None:
        place.table.slot()
        place.shared[0] = 1
        signal.pause()

    fork(member)
    place.wait_for(0)
    place.words[word] = value

    def use() -> None:
        place.table.slot()
        place.table.sweep()
        place.table.members()
        place.table.deaths()

    with pytest.raises(CorruptError, match="the table of processes was overwritten"):
        use()


def test_a_generation_that_makes_no_holder_is_an_error(fork: Fork) -> None:
    """Generation and slot of who takes a lock share a word with a bit of the lock's own."""
    arena = Arena(1 << 20, reserve=64 << 20, max_processes=4)
    lock = Lock(arena=arena)
    words = arena._open().family._table._words
    words[at.SLOT + at.LIFE] = words[2 * at.SLOT + at.LIFE] = at.MAX_LIFE

    def take() -> None:
        with pytest.raises(CorruptError, match="generation of slot"):
            lock.acquire()

    assert fork(take).wait() == 0


def test_random_damage_is_never_more_than_an_error() -> None:
    """Whatever is written over the table, its users get an answer."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed={seed}")
    refused = 0
    for _ in range(300):
        place = Place(4)
        place.table.slot()
        for _ in range(chance.choice((1, 3, 30))):
            word = chance.randrange(3 * at.SLOT)
            place.words[word] = chance.choice((0, 1, 3, 2**63, chance.randrange(2**64)))
        place.table._own[0] = 0
        for use in (
            place.table.slot,
            place.table.sweep,
            place.table.members,
            place.table.deaths,
        ):
            try:
                use()
            except (CorruptError, ForeignNamespace, FamilyFull):
                refused += 1

    assert refused
