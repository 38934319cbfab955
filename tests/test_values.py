"""ctypes in shared memory, with and without a lock, and the counter."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ipcmap
from children import Fork
from ipcmap import Arena, Array, Counter, RawArray, RawValue, StaleHandle, Value
from ipcmap.values import (
    Synchronized,
    SynchronizedArray,
    SynchronizedString,
    copy,
    synchronized,
)

LETTERS = {"b": -5, "B": 5, "h": -300, "H": 300, "i": -7, "I": 7, "l": -8, "L": 8, "q": -9, "Q": 9}


class Point(ctypes.Structure):
    """What has fields."""

    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class Point3(Point):
    """What has more of them."""

    _fields_ = [("z", ctypes.c_short)]


@pytest.fixture(autouse=True)
def _all_is_freed(arena: Arena) -> Iterator[None]:
    """What was not shared is freed with its handle."""
    yield
    gc.collect()


@pytest.mark.parametrize("letter", LETTERS)
def test_a_letter_names_a_number(letter: str, arena: Arena, engine: str) -> None:
    """As in the module array; what is not given is zero."""
    assert RawValue(letter, arena=arena).value == 0
    assert RawValue(letter, LETTERS[letter], arena=arena).value == LETTERS[letter]
    assert Value(letter, LETTERS[letter], arena=arena).value == LETTERS[letter]


@pytest.mark.parametrize(("letter", "content"), [("f", 0.5), ("d", 1e300), ("c", b"x"), ("u", "é")])
def test_a_letter_names_another_thing(letter: str, content: object, arena: Arena) -> None:
    """Floats and characters."""
    assert Value(letter, content, arena=arena).value == content


@pytest.mark.parametrize("letter", ["x", "", "ii"])
def test_a_letter_that_names_nothing_is_refused(letter: str) -> None:
    """With those that do."""
    with pytest.raises(TypeError, match="it must be one of c, u, b"):
        Value(letter)
    with pytest.raises(TypeError, match="it must be one of c, u, b"):
        Array(letter, 3)


def test_an_array_is_made_of_a_length_or_of_items(arena: Arena) -> None:
    """Zeros, or a copy; also where the memory had been another's."""
    for _ in range(3):
        numbers = RawArray("i", 100, arena=arena)
        assert list(numbers) == [0] * 100
        numbers[:] = range(100)
        del numbers
    assert RawArray("d", [1, 2.5], arena=arena)[:] == [1.0, 2.5]
    assert len(RawArray("i", 0, arena=arena)) == 0
    assert Array("i", (3, 4), arena=arena)[:] == [3, 4]


def test_an_array_has_slices_under_its_lock(arena: Arena) -> None:
    """Read and written, and the length."""
    numbers = Array("i", range(6), arena=arena)
    numbers[1:3] = [7, 8]
    numbers[0] += 1
    assert (numbers[:], len(numbers), numbers[-1]) == ([1, 7, 8, 3, 4, 5], 6, 5)
    assert isinstance(numbers, SynchronizedArray)
    assert "SynchronizedArray wrapper for" in repr(numbers)


def test_characters_have_a_value_and_raw_bytes(arena: Arena) -> None:
    """Up to the first zero, and all."""
    text = Array("c", 8, arena=arena)
    text.value = b"abc"
    assert (text.value, text.raw) == (b"abc", b"abc" + bytes(5))
    text.raw = b"12345678"
    assert (text[2:4], text.value) == (b"34", b"12345678")
    assert isinstance(text, SynchronizedString)


def test_fields_are_read_and_written_under_the_lock(arena: Arena) -> None:
    """Inherited ones as well; others are no attributes."""
    point = Value(Point3, 1, 2.5, 3, arena=arena)
    point.x, point.z = 4, 5
    assert (point.x, point.y, point.z) == (4, 2.5, 5)
    assert point.get_obj().x == 4
    assert type(point) is type(Value(Point3, arena=arena))
    assert repr(point).startswith("<SynchronizedPoint3 wrapper for")
    with pytest.raises(AttributeError):
        _ = point.w


def test_the_lock_is_ones_own_or_a_given_one_or_none(arena: Arena) -> None:
    """As multiprocessing has it."""
    lock = ipcmap.Lock(arena=arena)
    assert isinstance(Value("i", arena=arena).get_lock(), ipcmap.RLock)
    assert Value("i", lock=lock, arena=arena).get_lock() is lock
    assert Array("i", 2, lock=lock, arena=arena).get_lock() is lock
    assert not hasattr(Value("i", lock=False, arena=arena), "get_lock")
    with pytest.raises(AttributeError, match="lock must have a method 'acquire': lock='none'"):
        Value("i", lock="none", arena=arena)


def test_an_access_waits_for_the_lock(arena: Arena, fork: Fork) -> None:
    """Each of them, from another process."""
    number, numbers = Value("i", 5, arena=arena), Array("i", 2, arena=arena)
    tried = ipcmap.Semaphore(0)

    def read() -> None:
        tried.release()
        assert number.value == 6
        assert numbers[:] == [1, 0]

    with number, numbers:
        child = fork(read)
        tried.acquire()
        number.value += 1
        numbers[0] = 1
    assert child.wait() == 0


def test_the_lock_of_the_dead_is_taken_over(arena: Arena, fork: Fork) -> None:
    """And says so."""
    number = Value("i", arena=arena)

    def die() -> None:
        number.acquire()
        number.get_obj().value = 7
        os.kill(os.getpid(), signal.SIGKILL)

    fork(die).wait()
    with number.get_lock():
        assert number.get_lock().recovered
        assert number.value == 7


def test_an_object_travels_by_pickle_as_a_handle(arena: Arena) -> None:
    """Of the same memory; the lock likewise."""
    made = [
        Value("i", 5, arena=arena),
        Value(Point, 5, arena=arena),
        Array("c", b"5", arena=arena),
        RawValue("i", 5, arena=arena),
        RawArray(ctypes.c_int * 3, 2, arena=arena),
        RawArray(Point, 2, arena=arena),
    ]
    number, point, text, raw, rows, points = pickle.loads(pickle.dumps(made))
    number.value, point.x, text.value, raw.value = 6, 6, b"6", 6
    rows[1][2], points[1].y = 6, 6.5
    assert (made[0].value, made[1].x, made[2].value, made[3].value) == (6, 6, b"6", 6)
    assert (made[4][1][2], made[5][1].y) == (6, 6.5)
    with number:
        assert made[0].get_lock()._is_mine()
    again = pickle.loads(pickle.dumps(rows))
    assert type(again) is type(rows) is type(made[4])


def test_an_object_reaches_a_child_that_runs_already() -> None:
    """What is made after the fork, in the default arena."""
    inbox: ipcmap.Queue[Any] = ipcmap.Queue()

    def work() -> None:
        number, numbers, counter = inbox.get()
        number.value, numbers[1] = 1, 2.5
        counter.add(3)

    child = ipcmap.Process(target=work)
    child.start()
    one, two, counted = Value("i"), Array("d", 2), Counter()
    inbox.put((one, two, counted))
    child.join()
    assert (one.value, two[:], counted.value, child.exitcode) == (1, [0, 2.5], 3, 0)
    child.close()


def test_a_copy_is_shared_and_apart(arena: Arena) -> None:
    """Of an object of either kind."""
    for point in (Point(1, 2.5), RawValue(Point, 1, 2.5, arena=arena)):
        twin = copy(point)
        twin.x = 7
        assert (point.x, twin.x, twin.y) == (1, 7, 2.5)
        assert pickle.loads(pickle.dumps(twin)).x == 7
    assert copy(RawArray("i", [1, 2], arena=arena))[:] == [1, 2]


def test_a_second_lock_is_refused(arena: Arena) -> None:
    """It would not be around what the first is."""
    number = Value("i", arena=arena)
    assert isinstance(synchronized(number.get_obj()), Synchronized)
    with pytest.raises(TypeError, match="has a lock already"):
        synchronized(number)


def test_an_array_over_it_keeps_the_memory(arena: Arena) -> None:
    """Also when the object is gone; then it is given back."""
    before = arena.statistics().blocks
    numbers = np.frombuffer(Array("d", 1000, arena=arena).get_obj())
    numbers[:] = 1.5
    gc.collect()
    others = [RawArray("d", 1000, arena=arena) for _ in range(5)]
    assert numbers.sum() == 1500
    del numbers, others
    gc.collect()
    assert arena.statistics().blocks == before


def test_an_object_says_what_it_is(arena: Arena) -> None:
    """As one that is not shared does."""
    assert repr(RawValue("i", 5, arena=arena)) == "c_int(5)"
    assert repr(Value("i", 5, arena=arena)) == "<Synchronized wrapper for c_int(5)>"
    assert type(RawArray("i", 2, arena=arena)).__name__ == "c_int_Array_2"


# Counter


def test_a_counter_is_added_to_read_stored_and_exchanged(arena: Arena) -> None:
    """Signed, and around at 64 bits."""
    counter = Counter(40, arena=arena)
    assert counter.add(2) == counter.value == 42
    assert counter.add() == 43
    assert counter.add(-44) == -1
    counter.value = 2**63 - 1
    assert counter.add() == -(2**63)
    assert not counter.exchange(5, 6)
    assert counter.exchange(-(2**63), 6)
    assert repr(counter) == "<Counter(6)>"
    with pytest.raises(OverflowError):
        Counter(2**64, arena=arena)


def test_no_addition_is_lost_among_processes(arena: Arena, fork: Fork) -> None:
    """However many add at a time."""
    counter = Counter(arena=arena)

    def add() -> None:
        for _ in range(2000):
            counter.add(3)

    children = [fork(add) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert counter.value == 24_000


def test_a_counter_goes_on_when_one_who_adds_is_killed(arena: Arena, fork: Fork) -> None:
    """Wherever that was."""
    counter, begun = Counter(arena=arena), ipcmap.Semaphore(0)

    def add() -> None:
        begun.release()
        while True:
            counter.add()

    for _ in range(10):
        child = fork(add)
        begun.acquire()
        child.kill()
        seen = counter.value
        assert counter.add() == seen + 1


def test_a_counter_that_was_destroyed_is_stale(arena: Arena) -> None:
    """Every call, and its repr says so."""
    counter = Counter(arena=arena)
    twin = pickle.loads(pickle.dumps(counter))
    counter.destroy()
    for call in (twin.add, lambda: twin.value, lambda: twin.exchange(0, 1)):
        with pytest.raises(StaleHandle):
            call()
    assert repr(twin) == "<Counter(destroyed)>"
