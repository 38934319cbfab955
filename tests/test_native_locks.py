"""What is the native engine's own about locks and semaphores: its classes, calls and signals."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import operator
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ipcmap
from children import Fork
from ipcmap import Arena, BusyError, CorruptError, Mapping, NotOwned
from ipcmap._core import monitor_layout as at
from ipcmap._core import native
from ipcmap._core import reference_sections as sections
from ipcmap._deadline import Deadline
from ipcmap.guards import Guard
from ipcmap.native_locks import NativeGuard
from monitor_harness import (
    Raised,
    leave_to_reference,
    sleepers,
    stop,
    wait_for_sleepers,
)

MAKERS: dict[str, Callable[[Arena], Any]] = {
    "Lock": lambda arena: ipcmap.Lock(arena=arena),
    "RLock": lambda arena: ipcmap.RLock(arena=arena),
    "Semaphore": lambda arena: ipcmap.Semaphore(1, arena=arena),
    "travels": lambda arena: travelling(ipcmap.Semaphore(0, arena=arena)),
    "BoundedSemaphore": lambda arena: ipcmap.BoundedSemaphore(1, arena=arena),
}
TAKEN = [name for name in MAKERS if name != "RLock"]  # what its own thread cannot take twice

library = ctypes.CDLL(None)


def travelling(semaphore: ipcmap.Semaphore) -> ipcmap.Semaphore:
    """Return one with a token that nobody has."""
    semaphore.release()
    return semaphore


@pytest.fixture
def place() -> Arena:
    """An arena of the native engine."""
    return Arena(1 << 26, backend="native")


@pytest.fixture(params=MAKERS)
def guard(request: pytest.FixtureRequest, place: Arena) -> Any:
    """One of each kind, of which there is one to take."""
    return MAKERS[request.param](place)


@pytest.fixture(params=TAKEN)
def taken(request: pytest.FixtureRequest, place: Arena) -> Any:
    """One of each kind that this thread has, and that it would wait for."""
    guard = MAKERS[request.param](place)
    assert guard.acquire()
    return guard


@pytest.fixture
def handler() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Have SIGALRM do something."""
    previous = signal.getsignal(signal.SIGALRM)

    def handle(act: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda number, frame: act() and None)

    yield handle
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def free_of(guard: Any) -> int:
    """Return how many can be taken."""
    return int(guard._get_value())


# Which class


@pytest.mark.parametrize("kind", MAKERS)
def test_each_arena_has_locks_of_its_engine(kind: str) -> None:
    """Each is of its public class and of its name, and stays what it is in a pickle."""
    for backend in ("native", "reference"):
        arena = Arena(1 << 24, backend=backend)
        guard = MAKERS[kind](arena)
        public = getattr(ipcmap, type(guard).__name__)
        again = pickle.loads(pickle.dumps(guard))

        assert isinstance(guard, public)
        assert isinstance(guard, NativeGuard) == (backend == "native")
        assert type(again) is type(guard)
        assert again.acquire()
        assert free_of(guard) == 0
        guard.release()
        guard.destroy()


def test_a_subclass_has_the_methods_of_the_reference_engine(place: Arena) -> None:
    """On the same words: its own acquire is the one that ``with`` calls."""

    class Counted(ipcmap.Lock):
        calls = 0

        def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
            Counted.calls += 1
            return super().acquire(block, timeout)

    lock = Counted(arena=place)
    with lock:
        assert lock.locked()

    assert Counted.calls == 1
    assert Counted.__enter__ is Guard.__enter__


def test_a_condition_waits_with_a_lock_in_c(place: Arena, fork: Fork) -> None:
    """Made by itself, or given."""
    for lock in (None, ipcmap.Lock(arena=place)):
        condition = ipcmap.Condition(lock, arena=place)
        assert isinstance(condition._lock, NativeGuard)
        with condition:
            child = fork(lambda condition=condition: tell(condition))
            assert condition.wait(30)
        assert child.wait() == 0


def tell(condition: ipcmap.Condition) -> None:
    """Notify one."""
    with condition:
        condition.notify()


# Calls


def test_what_c_does_not_understand_is_told_as_the_reference_engine_tells_it(guard: Any) -> None:
    """Wrong arguments, and errors of objects that are asked for their value."""

    class Unsure:
        def __bool__(self) -> bool:
            raise Raised

    with pytest.raises(TypeError, match="unexpected keyword"):
        guard.acquire(blocking=True)
    with pytest.raises(TypeError, match="positional"):
        guard.acquire(True, None, 3)
    with pytest.raises(TypeError):
        guard.acquire(True, "soon")
    with pytest.raises(ValueError, match="number of seconds"):
        guard.acquire(timeout=float("nan"))
    with pytest.raises(Raised):
        guard.acquire(Unsure())
    with pytest.raises(TypeError):
        guard.release(1)

    assert free_of(guard) == 1
    assert guard.acquire(block=True, timeout=1)
    guard.release()
    assert guard.acquire(1, timeout=-1)


def test_the_methods_are_for_these_classes_alone() -> None:
    """Another heir of the base has no lock: it is for the reference engine to say so."""

    class Other(native.GuardMethods):
        pass

    with pytest.raises(AttributeError):
        Other().acquire()
    with pytest.raises(AttributeError):
        Other().release()


def test_a_core_is_checked_against_its_memory(place: Arena) -> None:
    """No word is read or written beyond the block."""
    lock = ipcmap.Lock(arena=place)
    family = place._open().family
    own = family.own_page()
    assert own is not None
    good = (lock._memory, lock._words, lock._tag_at, lock._tag, own, family)

    native.Guard("lock", *good)
    for wrong in (
        ("door", *good),
        ("lock", lock._memory[:160], *good[1:]),
        ("lock", lock._memory[8:], *good[1:]),
        ("lock", *good[:2], len(lock._words), *good[3:]),
        ("lock", *good[:4], own[:2], family),
        ("semaphore", *good, 0, 2**40, 1),
        ("semaphore", *good, 2, 0, 1),
        ("semaphore", *good, 0, 0, 2**31),
    ):
        with pytest.raises(ValueError, match="no lock has such figures"):
            native.Guard(*wrong)


def test_both_engines_use_one_lock_at_a_time(guard: Any, fork: Fork) -> None:
    """Some by C, some by Python, on the same words: the rare paths are such."""
    rounds, shared = 400, Mapping.anonymous(8)
    total = shared.view().cast("Q")

    def count(by_reference: bool) -> None:
        if by_reference:
            leave_to_reference(guard)
        for _ in range(rounds):
            with guard:
                seen = total[0]
                os.sched_yield()
                total[0] = seen + 1

    children = [fork(count, by_reference) for by_reference in (False, True, False, True)]

    assert [child.wait() for child in children] == [0] * 4
    assert total[0] == 4 * rounds
    assert sleepers(guard) == 0
    assert free_of(guard) == 1


def test_an_rlock_is_one_threads_in_c(place: Arena, fork: Fork) -> None:
    """Another thread waits, or is refused; a child is somebody else, whatever its thread."""
    lock, told = ipcmap.RLock(arena=place), list[object]()
    lock.acquire()
    lock.acquire()

    def other() -> None:
        told.append(lock.acquire(timeout=0.01))
        with pytest.raises(NotOwned):
            lock.release()
        told.append("refused")

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    child = fork(other)

    assert told == [False, "refused"]
    assert child.wait() == 0
    assert lock._count() == 2
    lock.release()
    lock.release()
    assert not lock.locked()


def test_any_kind_of_fork_makes_another_thread_of_it(place: Arena) -> None:
    """The C library's own fork, of which Python is not told: who was known is not the child."""
    lock, other = (ipcmap.RLock(arena=place) for _ in range(2))
    with lock, other:
        pass
    lock.acquire()
    pid = library.fork()
    if pid == 0:
        mine = other.acquire(block=False) and other._core.holder() != lock._core.holder()
        known = other._core.levels() == 1  # by Python's own knowledge of the thread
        os._exit(not (mine and known and not lock.acquire(block=False)))

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert lock._count() == 1


def test_two_arenas_do_not_take_each_others_threads(fork: Fork) -> None:
    """A child that has the same slot in a new arena as its parent had in another."""
    first = Arena(1 << 24, backend="native")
    lock = ipcmap.RLock(arena=first)
    with lock:
        pass

    def again() -> None:
        arena = Arena(1 << 24, backend="native")
        for _ in range(2):
            mine = ipcmap.RLock(arena=arena)
            assert mine.acquire()
            assert mine.acquire()
            assert mine._core.holder() == (1, os.getpid())
            mine.release()
            mine.release()

    assert fork(again).wait() == 0


# Signals


@pytest.mark.parametrize("kind", MAKERS)
def test_with_gives_back_whatever_a_handler_raises(
    kind: str,
    place: Arena,
    chance: random.Random,
    fork: Fork,
    handler: Callable[[Callable[[], object]], None],
    known_quota: None,
) -> None:
    """No moment lies between what is taken in C and the block that gives it back."""
    guard, armed, raised = MAKERS[kind](place), list[bool](), 0

    def interrupt() -> None:
        if armed:
            armed.clear()
            raise Raised

    def compete() -> None:
        while True:
            with guard:
                pass

    def take_and_give() -> None:  # a function: test_interruptible.py says why
        while armed:
            with guard:
                pass

    handler(interrupt)
    rival = fork(compete)
    for _ in range(2000):
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4))
            take_and_give()
        except Raised:
            raised += 1
            holders = [holding.holder for holding in guard._core.holdings()]
            assert guard._core._family.holder() not in holders
    signal.setitimer(signal.ITIMER_REAL, 0)
    if kind == "travels":  # whose tokens of the killed do not come back
        assert guard.acquire()
        rival.kill()
        guard.release()
    else:
        rival.kill()
        rival.wait()

    assert raised > 1000
    assert guard.acquire(timeout=30)


@pytest.mark.parametrize("by_reference", [False, True])
def test_a_handler_that_forks_in_a_wait_makes_two_callers_of_it(
    by_reference: bool,
    guard: Any,
    handler: Callable[[Callable[[], object]], None],
    endless_slices: None,
) -> None:
    """Each is itself: both wait, and each gets it once; in C, and where C left it to Python."""
    children, main = list[int](), os.getpid()
    assert guard.acquire()

    def double() -> None:
        if not children:
            children.append(os.fork())

    handler(double)
    waiter = os.fork()
    if waiter == 0:
        try:
            family = guard._core._family
            family.holder()  # with a slot of its own it waits in C
            if by_reference:
                leave_to_reference(guard)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert guard.acquire()
            holders = [holding.holder for holding in guard._core.holdings()]
            assert holders in ([], [family.holder()])  # nobody is known where tokens travel
            guard.release()
            code = 0
            if children[0]:
                code = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
            os._exit(code)
        except BaseException:
            os._exit(1)
    assert os.getpid() == main
    wait_for_sleepers(guard, 2)
    guard.release()

    assert os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]) == 0
    assert free_of(guard) == 1
    assert sleepers(guard) == 0


def test_a_handler_that_uses_what_it_interrupts_by_python_gets_an_error(
    guard: Any, handler: Callable[[Callable[[], object]], None]
) -> None:
    """The section is held by this thread, in code of the reference engine: C does not wait."""
    refused = list[bool]()

    def use() -> None:
        for call in (guard.acquire, guard.release):
            with pytest.raises(BusyError, match="return from the handler first"):
                call()
            refused.append(True)

    handler(use)
    sections.inside(
        guard._core._section, ipcmap.guards._FOREVER, signal.raise_signal, signal.SIGALRM
    )

    assert refused == [True, True]
    assert free_of(guard) == 1


def call_with_a_signal_pending(call: Callable[[], object]) -> None:
    """Send SIGALRM, and call; its handler does not run in between."""
    send = functools.partial(ctypes.PyDLL(None)["raise"], signal.SIGALRM)
    calls: list[Callable[[], object]] = [send, call]
    collections.deque(map(operator.call, calls), maxlen=0)


@pytest.mark.parametrize("method", ["release", "__exit__"])
def test_a_release_that_has_to_wait_is_done_before_an_exception_comes_out(
    method: str, guard: Any, fork: Fork, handler: Callable[[Callable[[], object]], None]
) -> None:
    """A signal that came while it waited for the section is the first thing that runs then."""
    assert guard.acquire()
    child = fork(stop_in_section, guard)
    os.waitpid(child.pid, os.WUNTRACED)

    def interrupt() -> None:
        os.kill(child.pid, signal.SIGCONT)
        child.wait()
        raise Raised

    handler(interrupt)
    with pytest.raises(Raised):
        call_with_a_signal_pending(getattr(guard, method))

    assert child.wait() == 0
    assert free_of(guard) == 1


def test_a_release_that_finds_a_journal_is_done_before_an_exception_comes_out(
    place: Arena, handler: Callable[[Callable[[], object]], None]
) -> None:
    """Somebody was killed with it half changed, which the reference engine repairs."""
    semaphore = ipcmap.Semaphore(1, arena=place)
    assert semaphore.acquire()
    semaphore._core._words[at.JOURNAL] = 1

    def interrupt() -> None:
        raise Raised

    handler(interrupt)
    with pytest.raises(Raised):
        call_with_a_signal_pending(semaphore.release)

    assert free_of(semaphore) == 1


# Others


def test_a_fork_while_another_thread_is_in_a_call_leaves_the_call_to_the_parent(
    guard: Any, fork: Fork
) -> None:
    """Threads take it and give it back; each child finds a lock that is sound."""
    over = list[bool]()

    def use() -> None:
        while not over:
            with guard:
                pass

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()

    def child() -> None:
        for _ in range(50):
            assert guard.acquire(timeout=30)
            guard.release()

    codes = [fork(child).wait() for _ in range(20)]
    over.append(True)
    for thread in threads:
        thread.join()

    assert codes == [0] * 20
    assert free_of(guard) == 1


def test_a_sleeper_gets_it_though_the_one_that_was_woken_is_killed(taken: Any, fork: Fork) -> None:
    """The token of the parking place died with it: the other looks by itself, a slice late."""
    victim = fork(taken.acquire)
    wait_for_sleepers(taken, 1)
    stop(victim, signal.SIGSTOP)
    other = fork(lambda: os._exit(not taken.acquire()))
    wait_for_sleepers(taken, 2)
    taken.release()
    victim.kill()

    assert other.wait() == 0


def test_a_token_of_the_parking_place_is_passed_on_by_who_cannot_look(
    place: Arena, fork: Fork, endless_slices: None
) -> None:
    """Two are asleep, one token lies there for both, and who takes it does not get into the section."""
    semaphore, gave_up = ipcmap.Semaphore(2, arena=place), Mapping.anonymous(1)
    assert semaphore.acquire()
    assert semaphore.acquire()

    def wait() -> None:
        usual = semaphore._core.acquire

        def acquire(deadline: Deadline) -> bool:
            gave_up[0] = 1
            return usual(deadline)

        semaphore._core._family.holder()
        semaphore._core.acquire = acquire  # type: ignore[method-assign]
        assert semaphore.acquire()

    children = [fork(wait) for _ in range(2)]
    wait_for_sleepers(semaphore, 2)
    for child in children:
        stop(child, signal.SIGSTOP)
    semaphore.release()
    semaphore.release()
    in_the_way = fork(stop_in_section, semaphore)
    os.waitpid(in_the_way.pid, os.WUNTRACED)
    os.kill(children[0].pid, signal.SIGCONT)
    while not gave_up[0]:
        os.sched_yield()
    os.kill(in_the_way.pid, signal.SIGCONT)
    assert children[0].wait() == 0

    value = ctypes.c_int()
    library.sem_getvalue(ctypes.c_void_p(semaphore._address + at.PARKING), ctypes.byref(value))
    assert value.value == 1
    os.kill(children[1].pid, signal.SIGCONT)
    assert children[1].wait() == 0


def stop_in_section(guard: Any) -> None:
    """Be stopped in it."""
    stops = (os.kill, os.getpid(), signal.SIGSTOP)
    sections.inside(guard._core._section, ipcmap.guards._FOREVER, *stops)


def test_who_is_stopped_in_the_section_keeps_a_timeout_from_nobody(guard: Any, fork: Fork) -> None:
    """Each call ends in time, with nothing taken; the release waits."""
    child = fork(stop_in_section, guard)
    os.waitpid(child.pid, os.WUNTRACED)

    assert guard.acquire(timeout=0.1) is False
    assert guard.acquire(block=False) is False
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 0
    assert guard.acquire(timeout=30)


def test_whoever_waits_for_a_stopped_section_leaves_the_interpreter_to_others(
    guard: Any, fork: Fork
) -> None:
    """What it guards looks free meanwhile: to look once more, and again, would hold the GIL."""
    child = fork(stop_in_section, guard)
    os.waitpid(child.pid, os.WUNTRACED)
    taken = list[bool]()
    thread = threading.Thread(target=lambda: taken.append(guard.acquire()))
    thread.start()
    thread.join(0.1)  # for it to come to the section
    os.kill(child.pid, signal.SIGCONT)
    thread.join()

    assert child.wait() == 0
    assert taken == [True]


@pytest.mark.parametrize("word", [at.JOURNAL, at.VALUE, at.FIRST_ENTRY + 1, at.FIRST_ENTRY])
@pytest.mark.parametrize("scribble", [2, 2**31, 2**64 - 1])
def test_a_scribbled_semaphore_is_an_error_or_goes_on(
    word: int, scribble: int, place: Arena
) -> None:
    """Never a signal, never a hang; no word beyond its own is touched."""
    semaphore = ipcmap.Semaphore(1, arena=place)
    with semaphore:
        pass
    semaphore._core._words[word] = scribble
    for call in (
        lambda: semaphore.acquire(timeout=0.01),
        semaphore.release,
        lambda: semaphore.acquire(block=False),
    ):
        with contextlib.suppress(CorruptError, ValueError):
            call()

    assert place.statistics().damaged == 0


@pytest.mark.parametrize("holder", [1, 2**22 - 1, 2**63 | 5, 2**64 - 1])
def test_a_scribbled_holder_is_an_error_or_keeps_it(holder: int, place: Arena) -> None:
    """Somebody who cannot be is no dead process, and nothing is taken over from it."""
    lock = ipcmap.Lock(arena=place)
    lock._core._words[at.HOLDER] = holder
    with contextlib.suppress(CorruptError):
        assert not lock.acquire(timeout=0.01)
    lock.release()
    assert lock.acquire(block=False)
