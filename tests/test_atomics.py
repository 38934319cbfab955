"""Atomic cells: each call is one step, whoever makes it and whoever dies."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable

import pytest

from children import Fork
from ipcmap import BusyError
from ipcmap._core.atomics import NBYTES, AtomicWords, atomic_words, initialise
from ipcmap._core.reference_atomics import Words as ReferenceWords
from ipcmap.pages import reserve_pages

Made = Callable[..., AtomicWords]


@pytest.fixture
def make(engine: str) -> Made:
    """Makes the words of one region, shared with children forked from here on."""
    pages = reserve_pages(4096, 4096)
    initialise(pages.address)
    memory = pages.window()[NBYTES : NBYTES + 64]

    def words(*, signed: bool = False) -> AtomicWords:
        return atomic_words(engine, memory, pages.address, signed=signed)

    return words


def test_a_word_is_stored_loaded_and_added_to(make: Made) -> None:
    """Each word on its own; the sum is returned."""
    words = make()
    words.store(3, 40)

    assert words.add(3, 2) == words.load(3) == 42
    assert words.add(3, -43) == 2**64 - 1
    assert [words.load(index) for index in (0, 1, 2, 4, 5, 6, 7)] == [0] * 7


def test_numbers_wrap_around_at_64_bits(make: Made) -> None:
    """Signed or not, it is the same word."""
    plain, signed = make(), make(signed=True)
    plain.store(0, 2**64 - 1)

    assert signed.load(0) == -1
    assert plain.add(0, 1) == signed.load(0) == 0
    assert signed.add(0, -1) == -1
    signed.store(0, 2**63 - 1)
    assert signed.add(0, 1) == -(2**63)
    assert plain.load(0) == 2**63
    assert plain.add(0, 2**64 - 1) == 2**63 - 1
    signed.store(0, 2**64 - 5)
    assert signed.load(0) == -5


def test_an_exchange_takes_place_where_the_expected_is_there(make: Made) -> None:
    """And only there; a negative number and its unsigned twin are the same."""
    words = make(signed=True)

    assert words.compare_exchange(1, 0, -7)
    assert not words.compare_exchange(1, 0, 5)
    assert words.load(1) == -7
    assert words.compare_exchange(1, 2**64 - 7, 2**63)
    assert words.load(1) == -(2**63)


@pytest.mark.parametrize("index", [-1, 8, 2**40, 2**80])
def test_an_index_out_of_range_is_refused(make: Made, index: int) -> None:
    """By every method, with the figures where a word can hold them."""
    words = make()
    calls: list[Callable[[], object]] = [
        lambda: words.load(index),
        lambda: words.store(index, 1),
        lambda: words.add(index, 1),
        lambda: words.compare_exchange(index, 0, 1),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()
    assert [words.load(at) for at in range(8)] == [0] * 8


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_a_number_of_more_than_64_bits_is_refused(make: Made, number: int) -> None:
    """Nothing is cut off silently, and nothing is stored."""
    words = make()
    for call in (words.store, words.add):
        with pytest.raises(OverflowError, match=f"number={number}"):
            call(0, number)
    with pytest.raises(OverflowError):
        words.compare_exchange(0, 0, number)
    with pytest.raises(TypeError):
        words.add(0, "1")  # type: ignore[arg-type]
    assert words.load(0) == 0


def test_memory_that_is_no_words_is_refused(engine: str) -> None:
    """Whole words alone."""
    pages = reserve_pages(4096, 4096)
    with pytest.raises(ValueError, match="nbytes=63"):
        atomic_words(engine, pages.window()[:63], pages.address)


def test_of_threads_and_processes_that_add_none_is_lost(make: Made, fork: Fork) -> None:
    """And of those who exchange, one wins each number."""
    words, rounds = make(), 2000

    def add(mark: int) -> None:
        won = 0
        for _ in range(rounds):
            words.add(0, 3)
            seen = words.load(1)
            won += words.compare_exchange(1, seen, seen + 1)
        words.store(2 + mark, won)

    children = [fork(add, mark) for mark in (0, 1)]
    threads = [threading.Thread(target=add, args=(mark,)) for mark in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [child.wait() for child in children] == [0, 0]
    assert words.load(0) == 4 * rounds * 3
    assert words.load(1) == sum(words.load(2 + mark) for mark in range(4)) > 0


def test_who_is_killed_has_changed_a_word_or_has_not(make: Made, chance: random.Random) -> None:
    """Of two words that one process counts in turn, the first is at most one ahead."""
    words = make()
    for _ in range(20):
        begin = words.load(0)
        more = chance.randrange(1, 400)
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    words.add(0, 1)
                    words.add(1, 1)
            finally:
                os._exit(1)
        while words.load(0) < begin + more:
            os.sched_yield()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

        ahead = words.load(0) - words.load(1)
        assert ahead in (0, 1)
        assert words.compare_exchange(1, words.load(1), words.load(0))


def test_a_handler_inside_a_change_of_the_reference_engine_is_refused() -> None:
    """It gets an error instead of a deadlock; the change goes on."""
    pages = reserve_pages(4096, 4096)
    initialise(pages.address)
    words = ReferenceWords(pages.window()[NBYTES : NBYTES + 64], pages.address)

    def handled() -> int:
        with pytest.raises(BusyError, match="signal handler"):
            words.add(0, 1)
        return 5

    assert words._inside(handled) == 5
    assert words.add(0, 1) == 1
