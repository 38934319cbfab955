"""The lock: one thread of one process at a time, on every engine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from types import FrameType

import pytest

from children import Fork
from ipcmap import Arena, BusyError, Mapping, NotInherited, StaleHandle
from monitor_harness import LockType, Raised, set_trap, sleepers, wait_for_sleepers


def test_one_has_it_at_a_time(lock_type: LockType) -> None:
    """What is taken is not to be had, until it is released."""
    lock = lock_type()

    assert not lock.locked()
    assert lock.acquire()
    assert lock.locked()
    assert not lock.acquire(block=False)
    lock.release()
    assert lock.acquire(block=False)
    lock.release()
    assert not lock.locked()


def test_it_is_a_context_manager(lock_type: LockType) -> None:
    """Taken inside, free behind it, also after an exception."""
    lock = lock_type()

    with lock:
        assert lock.locked()
    with pytest.raises(Raised), lock:
        raise Raised
    assert not lock.locked()


@pytest.mark.parametrize("arguments", [(False,), (True, 0), (True, -1), (False, 60), (True, 0.01)])
def test_acquire_gives_up_when_told(
    lock_type: LockType, arguments: tuple[bool, float | None]
) -> None:
    """The answers are those of multiprocessing's lock."""
    lock, peer = lock_type(), multiprocessing.get_context("fork").Lock()
    lock.acquire()
    peer.acquire()

    assert lock.acquire(*arguments) is peer.acquire(*arguments) is False
    assert sleepers(lock) == 0


def test_acquire_waits_at_least_its_timeout(lock_type: LockType) -> None:
    """A timeout longer than the first slices of the wait is kept as a whole."""
    lock = lock_type()
    lock.acquire()
    began = time.monotonic()

    assert not lock.acquire(timeout=0.3)
    assert time.monotonic() - began >= 0.3


def test_nan_is_no_timeout(lock_type: LockType) -> None:
    """A timeout that compares with nothing would wait for ever."""
    with pytest.raises(ValueError, match="timeout=nan"):
        lock_type().acquire(timeout=float("nan"))


def test_a_release_too_many_is_an_error(lock_type: LockType) -> None:
    """As in multiprocessing; the lock is as it was."""
    lock = lock_type()

    with pytest.raises(ValueError, match="released too many times"):
        lock.release()
    assert lock.acquire(block=False)


def test_anyone_may_release_it(lock_type: LockType, fork: Fork) -> None:
    """A child, for its parent; and a thread, for another."""
    lock = lock_type()
    lock.acquire()

    assert fork(lock.release).wait() == 0
    assert lock.acquire(block=False)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert not lock.locked()


def test_no_update_is_lost_between_processes_and_threads(
    lock_type: LockType, fork: Fork, endless_slices: None
) -> None:
    """Read, add and write are one step under it, and no wake-up is lost either."""
    lock, shared, rounds = lock_type(), Mapping.anonymous(8), 500
    total = shared.view().cast("Q")

    def count() -> None:
        for _ in range(rounds):
            with lock:
                seen = total[0]
                os.sched_yield()
                total[0] = seen + 1

    def count_in_two_threads() -> None:
        threads = [threading.Thread(target=count) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [fork(count_in_two_threads), fork(count_in_two_threads)]
    count_in_two_threads()

    assert [child.wait() for child in children] == [0, 0]
    assert total[0] == 6 * rounds
    assert sleepers(lock) == 0


def test_each_of_many_sleepers_gets_it(
    lock_type: LockType, fork: Fork, endless_slices: None
) -> None:
    """One release is enough: who has it wakes the next."""
    lock = lock_type()
    lock.acquire()

    def take() -> None:
        with lock:
            pass

    children = [fork(take) for _ in range(8)]
    wait_for_sleepers(lock, 8)
    lock.release()

    assert [child.wait() for child in children] == [0] * 8
    assert sleepers(lock) == 0


def test_a_child_of_its_holder_is_not_its_holder(lock_type: LockType, fork: Fork) -> None:
    """A fork takes nothing along: the child waits, and dies without giving anything back."""
    lock = lock_type()
    with lock:
        child = fork(lambda: os._exit(lock.acquire(block=False)))
        assert child.wait() == 0
        assert lock.locked()


def test_a_fork_while_a_thread_waits_leaves_the_wait_to_the_parent(
    lock_type: LockType, fork: Fork
) -> None:
    """The child has no such thread; its release wakes the parent's."""
    lock = lock_type()
    lock.acquire()
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    wait_for_sleepers(lock, 1)

    assert fork(lock.release).wait() == 0
    thread.join()
    assert lock.locked()
    assert sleepers(lock) == 0


def test_it_reaches_a_running_child_by_pickle(lock_type: LockType, fork: Fork) -> None:
    """Made after the fork, and one and the same in both processes."""
    read_end, write_end = os.pipe()
    child = fork(lambda: pickle.loads(os.read(read_end, 10_000)).release())
    lock = lock_type()
    lock.acquire()
    os.write(write_end, pickle.dumps(lock))

    assert lock.acquire()
    assert child.wait() == 0
    os.close(read_end)
    os.close(write_end)


def test_a_pickle_says_what_it_lacks(lock_type: LockType, fork: Fork) -> None:
    """The arena, or the lock itself."""
    read_end, write_end = os.pipe()

    def child() -> None:
        with pytest.raises(NotInherited):
            pickle.loads(os.read(read_end, 10_000))

    early = fork(child)
    arena = Arena(1 << 20)
    lock = lock_type(arena=arena)
    sent = pickle.dumps(lock)
    os.write(write_end, sent)
    assert early.wait() == 0
    os.close(read_end)
    os.close(write_end)

    lock.destroy()
    with pytest.raises(StaleHandle):
        pickle.loads(sent)


def test_after_destroy_every_call_says_so(lock_type: LockType, fork: Fork) -> None:
    """StaleHandle in every process, and not another object's bytes."""
    lock = lock_type()
    assert fork(lock.destroy).wait() == 0
    lock_type()

    for call in (lock.acquire, lock.release, lock.locked, lock.destroy):
        with pytest.raises(StaleHandle):
            call()
    assert "destroyed" in repr(lock)


def test_its_repr_is_that_of_multiprocessing(lock_type: LockType, fork: Fork) -> None:
    """Whoever has it: nobody, this thread, another thread, another process."""
    lock, peer = lock_type(), multiprocessing.get_context("fork").Lock()

    def both() -> str:
        assert repr(lock) == repr(peer)
        return repr(lock)

    assert both() == "<Lock(owner=None)>"
    lock.acquire()
    peer.acquire()
    assert both() == "<Lock(owner=MainProcess)>"
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(both()))
    thread.start()
    thread.join()
    assert seen == ["<Lock(owner=SomeOtherThread)>"]
    assert fork(lambda: os._exit(repr(lock) != "<Lock(owner=SomeOtherProcess)>")).wait() == 0


# Signals


def test_what_a_handler_raises_comes_out_of_a_wait_unchanged(lock_type: LockType) -> None:
    """Nothing is taken by it, and nobody is counted as asleep."""
    lock = lock_type()
    lock.acquire()

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyError("mine")

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyError, match="mine"):
            lock.acquire()
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert sleepers(lock) == 0
    lock.release()
    assert not lock.locked()


def test_a_handler_that_uses_the_lock_it_interrupts_gets_an_error(lock_type: LockType) -> None:
    """Not a deadlock; the call that it broke into goes on."""
    lock, refused = lock_type(), []

    def reenter() -> None:
        for call in (lock.acquire, lock.release, lock.locked):
            with pytest.raises(BusyError, match="return from the handler first"):
                call()
        refused.append(True)

    trap = set_trap(lock, 1, True, reenter)
    assert lock.acquire()
    lock._core._words = trap.memory

    assert refused == [True]
    assert lock.locked()


def test_handlers_that_raise_at_any_moment_leave_it_sound(
    engine: str, lock_type: LockType, chance: random.Random, fork: Fork, known_quota: None
) -> None:
    """An acquire that raised has taken nothing; a release that raised may have to be repeated.

    The interpreter lets a handler in right after a method in C, before the caller can know
    that it has returned: what that raises finds it taken. (See the test of ``with``.)
    """
    lock, armed = lock_type(), list[bool]()
    raised = {"acquire": 0, "release": 0}

    def handle(number: int, frame: FrameType | None) -> None:
        if armed:
            armed.clear()
            raise Raised

    def compete() -> None:
        while True:
            with lock:
                pass

    rival = fork(compete)
    call = "acquire"

    def contend() -> None:
        # A function: in 3.13 a handler may come at the jump of a loop, where no try around it counts.
        nonlocal call
        while armed:
            call = "acquire"
            lock.acquire()
            call = "release"
            lock.release()

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(4000):
            call = "acquire"
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 6e-5))
                contend()
            except Raised:
                raised[call] += 1
                held = lock._core.holder() == (
                    lock._core._family.holder(),
                    threading.get_native_id(),
                )
                assert not (held and call == "acquire") or engine == "native"
                if held:
                    lock.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    rival.kill()

    assert raised["acquire"] > 100
    assert raised["release"] > 20
    assert lock.acquire(timeout=30)
