"""The semaphore: a count that processes share, without a name, on every engine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from types import FrameType

import pytest

import ipcmap
from children import Fork
from ipcmap import Arena, BoundedSemaphore, Mapping, Semaphore, StaleHandle
from monitor_harness import take_and_die

pytestmark = pytest.mark.usefixtures("engine")

SemaphoreType = type[ipcmap.Semaphore]


def test_acquire_takes_what_release_gave(semaphore_type: SemaphoreType) -> None:
    """The count goes down and up by one."""
    semaphore = semaphore_type(2)

    assert semaphore.acquire()
    assert semaphore.acquire()
    assert semaphore.value == 0
    assert not semaphore.acquire(block=False)
    semaphore.release()
    assert semaphore.value == 1


@pytest.mark.parametrize("arguments", [(False,), (True, 0), (True, -1), (False, 60), (True, 0.01)])
def test_acquire_gives_up_when_told(
    semaphore_type: SemaphoreType, arguments: tuple[bool, float]
) -> None:
    """Without a token the answer is False, and nothing was taken."""
    semaphore = semaphore_type(0)

    assert not semaphore.acquire(*arguments)
    assert semaphore.value == 0


def test_acquire_waits_at_least_its_timeout(semaphore_type: SemaphoreType) -> None:
    """A timeout longer than a slice of the wait is kept as a whole."""
    semaphore = semaphore_type(0)
    began = time.monotonic()

    assert not semaphore.acquire(timeout=1.2)
    assert time.monotonic() - began >= 1.2


def test_a_child_wakes_its_parent(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """A token released in a child arrives in the parent."""
    semaphore = semaphore_type(0)
    child = fork(semaphore.release)

    assert semaphore.acquire()
    assert child.wait() == 0


def test_no_update_is_lost_between_two_processes(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """As a lock it makes read, add and write one step."""
    semaphore, shared, rounds = semaphore_type(1), Mapping.anonymous(8), 2000

    def count() -> None:
        for _ in range(rounds):
            with semaphore:
                total = int.from_bytes(shared[:8], "little")
                shared[:8] = (total + 1).to_bytes(8, "little")

    children = [fork(count), fork(count)]
    count()

    assert [child.wait() for child in children] == [0, 0]
    assert 3 * rounds == int.from_bytes(shared[:8], "little")


def test_a_grandchild_shares_it_too(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """Whoever descends from the creator has it."""
    semaphore = semaphore_type(0)

    def child() -> None:
        pid = os.fork()
        if pid == 0:
            semaphore.release()
            os._exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)

    assert fork(child).wait() == 0
    assert semaphore.acquire(block=False)


def test_threads_of_one_process_exclude_each_other(semaphore_type: SemaphoreType) -> None:
    """A wait in one thread lets the others run, and one token lets one in."""
    semaphore = semaphore_type(1)
    inside: list[None] = []
    most: list[int] = []

    def enter() -> None:
        for _ in range(200):
            with semaphore:
                inside.append(None)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 800


def test_it_leaves_no_name(semaphore_type: SemaphoreType) -> None:
    """Nothing is in /dev/shm even while it is there."""
    before = os.listdir("/dev/shm")
    semaphore = semaphore_type(1)

    assert not {*os.listdir("/dev/shm")} - {*before}
    assert semaphore.acquire()


def test_a_signal_handler_runs_during_a_wait_which_goes_on(semaphore_type: SemaphoreType) -> None:
    """An interrupted wait neither ends nor takes a token for it."""
    semaphore, ran = semaphore_type(0), []

    def handle(number: int, frame: FrameType | None) -> None:
        ran.append(number)
        if len(ran) == 3:
            semaphore.release()

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        assert semaphore.acquire()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert len(ran) >= 3
    assert semaphore.value == 0


def test_ctrl_c_ends_a_wait(semaphore_type: SemaphoreType) -> None:
    """KeyboardInterrupt comes out unchanged, and no token is gone."""
    semaphore = semaphore_type(0)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            semaphore.acquire()
    finally:
        signal.signal(signal.SIGALRM, previous)
    semaphore.release()

    assert semaphore.acquire(block=False)


def test_after_destroy_every_call_says_so(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """StaleHandle in every process, and not another object's bytes."""
    semaphore = semaphore_type(1)
    child = fork(semaphore.destroy)
    assert child.wait() == 0
    semaphore_type(1)

    calls = (semaphore.acquire, semaphore.release, semaphore.get_value, semaphore.destroy)
    for call in calls:
        with pytest.raises(StaleHandle):
            call()
    assert "destroyed" in repr(semaphore)


@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_count_out_of_range_is_refused(semaphore_type: SemaphoreType, value: int) -> None:
    """The error names the range and the value."""
    with pytest.raises(ValueError, match=rf"0 to 2147483647: value={value}"):
        semaphore_type(value)


def test_a_release_beyond_the_maximum_is_refused(semaphore_type: SemaphoreType) -> None:
    """The count never wraps."""
    semaphore = semaphore_type(2**31 - 1)

    with pytest.raises(ValueError, match="maximum=2147483647"):
        semaphore.release()
    assert semaphore.value == 2**31 - 1


def test_nan_is_no_timeout(semaphore_type: SemaphoreType) -> None:
    """A timeout that compares with nothing would wait for ever."""
    with pytest.raises(ValueError, match="timeout=nan"):
        semaphore_type(0).acquire(timeout=float("nan"))


def test_it_reaches_a_running_child_by_pickle(semaphore_type: SemaphoreType, fork: Fork) -> None:
    """Made after the fork, and one and the same in both processes."""
    read_end, write_end = os.pipe()

    def child() -> None:
        ready, answer = pickle.loads(os.read(read_end, 10_000))
        with ready:
            answer.release()

    running = fork(child)
    ready, answer = semaphore_type(1), semaphore_type(0)
    os.write(write_end, pickle.dumps((ready, answer)))

    assert answer.acquire()
    assert running.wait() == 0
    assert [ready.value, answer.value] == [1, 0]
    os.close(read_end)
    os.close(write_end)


# Bounded


def test_a_bounded_one_never_has_more_than_it_began_with(arena: Arena, fork: Fork) -> None:
    """Whoever releases, whether or not its tokens travel."""
    bounded = BoundedSemaphore(2, arena=arena)
    refusal = "semaphore or lock released too many times"
    with pytest.raises(ValueError, match=refusal):
        bounded.release()
    assert bounded.acquire()
    assert fork(bounded.release).wait() == 0

    with pytest.raises(ValueError, match=refusal):
        bounded.release()
    assert bounded.value == 2
    with pytest.raises(ValueError, match=refusal):
        BoundedSemaphore(0, arena=arena).release()


def test_the_token_of_a_killed_holder_of_a_bounded_one_comes_back(arena: Arena, fork: Fork) -> None:
    """And a release by hand for the dead one adds none."""
    bounded = BoundedSemaphore(1, arena=arena)
    fork(take_and_die, bounded).wait()

    assert bounded.acquire(timeout=30)
    bounded.release()
    bounded.release()
    assert bounded.value == 1
    with pytest.raises(ValueError, match="too many times"):
        bounded.release()


def test_reprs_are_those_of_multiprocessing(arena: Arena) -> None:
    """Class, value, and the largest value of a bounded one."""
    peers = multiprocessing.get_context("fork")

    assert repr(Semaphore(3, arena=arena)) == repr(peers.Semaphore(3))
    assert repr(BoundedSemaphore(3, arena=arena)) == repr(peers.BoundedSemaphore(3))
