"""Listeners across processes: who may call them, to whom they belong, and how they end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading

import pytest

from children import Fork
from ipcmap import Arena, ClosedError, Process, Ring
from ipcmap._core import reference_listeners as listeners
from ipcmap._core import ring_layout as at
from listening import PATIENCE, is_readable, receive
from rings import blocks, drained, taken

pytestmark = pytest.mark.usefixtures("collected")

RingType = type[Ring]


def test_a_worker_that_got_the_ring_by_pickle_calls_a_later_listener(
    engine: str, endless_timers: None, fork: Fork
) -> None:
    """It was forked before there was a ring, and opens the pipe by its name in /proc."""
    arena = Arena(1 << 24, backend=engine)
    mail, answers = Ring(arena=arena), Ring(arena=arena)

    def work() -> None:
        while ring := pickle.loads(mail.get()):
            ring.put(b"from a worker")
            answers.put(b"done")

    worker = fork(work)
    ring = Ring(arena=arena)
    with ring.listen() as listener:
        for _ in range(2):
            assert not is_readable(listener)
            mail.put(pickle.dumps(ring))
            assert answers.get(PATIENCE) == b"done"
            assert is_readable(listener)
            assert drained(ring) == [b"from a worker"]
    mail.put(pickle.dumps(None))
    assert worker.wait() == 0


def test_a_worker_that_got_the_ring_by_pickle_listens(engine: str, fork: Fork) -> None:
    """And is called by the parent."""
    arena = Arena(1 << 24, backend=engine)
    mail, answers = Ring(arena=arena), Ring(arena=arena)

    def work() -> None:
        ring = pickle.loads(mail.get())
        with ring.listen() as listener:
            answers.put(b"listening")
            answers.put(b"".join(receive(ring, listener, 3)))

    worker = fork(work)
    ring = Ring(arena=arena)
    mail.put(pickle.dumps(ring))
    assert answers.get(PATIENCE) == b"listening"
    for _ in range(3):
        ring.put(b"x")
    assert answers.get(PATIENCE) == b"xxx"
    assert worker.wait() == 0


def test_a_listener_belongs_to_the_process_that_made_it(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """In a child it is closed, and its end there means nothing to the parent."""
    ring = ring_type()
    listener = ring.listen()
    descriptors = len(os.listdir("/proc/self/fd"))

    def leave() -> None:
        assert listener.closed
        assert len(os.listdir("/proc/self/fd")) == descriptors - 3
        with pytest.raises(ClosedError, match="make another"):
            listener.fileno()
        assert taken(ring) is None
        listener.close()
        with ring.listen() as own:
            assert not is_readable(own)
        ring.put(b"from the child")

    with listener:
        assert fork(leave).wait() == 0
        assert is_readable(listener)
        assert drained(ring) == [b"from the child"]
        assert not is_readable(listener)
    assert listener.closed
    ring.destroy()


def test_a_program_started_by_exec_has_none_of_its_descriptors(ring_type: RingType) -> None:
    """They close with the exec."""
    ring = ring_type()
    with ring.listen() as listener:
        numbers = [listener.fileno(), listener._pipe, listener._timer]
        program = "import os, sys; sys.exit(sum(os.path.exists(f'/proc/self/fd/{n}') for n in %r))"
        command = [sys.executable, "-c", program % [max(numbers) + 100, *numbers]]
        assert subprocess.run(command, close_fds=False, check=False).returncode == 0


def test_a_blocking_get_beside_a_listener_has_its_record(ring_type: RingType, fork: Fork) -> None:
    """The listener is called and never asks; no wake-up of a sleeper is lost to it."""
    ring = ring_type()

    def consume() -> None:
        for number in range(200):
            assert ring.get(PATIENCE) == b"%d" % number

    with ring.listen() as listener:
        child = fork(consume)
        for number in range(200):
            ring.put(b"%d" % number)
        assert child.wait() == 0
        assert is_readable(listener, PATIENCE)
    ring.destroy()


def test_a_listener_is_called_while_another_sleeps(
    ring_type: RingType, fork: Fork, endless_timers: None
) -> None:
    """One put wakes both kinds, for one record each."""
    ring, results = ring_type(), ring_type()

    def consume() -> None:
        results.put(ring.get(PATIENCE))

    with ring.listen() as listener:
        for _ in range(20):
            assert taken(ring) is None
            child = fork(consume)
            while not ring._core._words[at.CONSUMERS_SLEEPING] & at.SLEEPING:
                os.sched_yield()
            ring.put_many([b"x", b"x"])
            assert is_readable(listener, PATIENCE)
            assert taken(ring) == b"x"
            assert results.get(PATIENCE) == b"x"
            assert child.wait() == 0
    ring.destroy()
    results.destroy()


def test_threads_get_beside_a_listener(ring_type: RingType) -> None:
    """Whoever finds nothing arms it, and none of the others is left without."""
    ring, received = ring_type(256), list[bytes]()
    barrier = threading.Barrier(3)

    def consume() -> None:
        barrier.wait()
        while len(received) < 600:
            is_readable(listener, 0.01)
            received.extend(drained(ring))

    with ring.listen() as listener:
        threads = [threading.Thread(target=consume) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait()
        for number in range(600):
            ring.put(b"%d" % number)
        for thread in threads:
            thread.join()
    assert sorted(map(int, received)) == [*range(600)]


def test_statistics_count_sleepers_and_no_listeners(ring_type: RingType) -> None:
    """A descriptor is no thread that sleeps."""
    ring = ring_type()
    with ring.listen():
        assert ring.statistics().waiting_consumers == 0


# The end of a listener


def test_a_closed_listener_leaves_no_descriptor_and_no_block(ring_type: RingType) -> None:
    """Twice is once, and puts go on without it."""
    ring = ring_type()
    at_first, descriptors = blocks(), os.listdir("/proc/self/fd")
    listener = ring.listen()
    assert blocks() == at_first + 1
    listener.close()
    listener.close()
    assert (blocks(), os.listdir("/proc/self/fd")) == (at_first, descriptors)
    ring.put(b"x")
    assert drained(ring) == [b"x"]
    assert ring._core._words[at.CONSUMERS_SLEEPING] == 0


def test_a_listener_that_is_dropped_is_closed_with_a_warning(ring_type: RingType) -> None:
    """As a file is."""
    ring = ring_type()
    at_first, descriptors = blocks(), os.listdir("/proc/self/fd")
    with pytest.warns(ResourceWarning, match="unclosed"):
        ring.listen()
    assert (blocks(), os.listdir("/proc/self/fd")) == (at_first, descriptors)


def test_without_proc_listen_says_so_and_leaves_nothing(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait in get needs none."""
    ring = ring_type()
    at_first, descriptors = blocks(), os.listdir("/proc/self/fd")
    opened = os.open

    def refuse(path: str, flags: int) -> int:
        if path.startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileNotFoundError, match="mount /proc"):
        ring.listen()
    monkeypatch.undo()
    assert (blocks(), os.listdir("/proc/self/fd")) == (at_first, descriptors)


def test_a_listener_cannot_be_sent(ring_type: RingType) -> None:
    """The ring can, and be listened to there."""
    with ring_type().listen() as listener, pytest.raises(TypeError, match="send the ring"):
        pickle.dumps(listener)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, BlockingIOError])
def test_a_producer_that_cannot_reach_a_listener_is_a_second_late(
    ring_type: RingType, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """Its put succeeds, and the listener's timer does the rest."""
    ring = ring_type()
    with ring.listen() as listener:

        def refuse(path: str) -> str:
            raise error

        monkeypatch.setattr(os, "readlink", refuse)
        ring.put(b"x")
        monkeypatch.undo()
        assert is_readable(listener, PATIENCE)
        assert drained(ring) == [b"x"]


def test_a_byte_goes_to_nobody_else_who_has_the_number_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The descriptor must be the very pipe; another pipe, or a file, gets nothing."""
    mine, others = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    found = os.fstat(mine[0])
    try:
        with monkeypatch.context() as untouched:  # to open a device can do something
            untouched.setattr(os, "open", None)
            listeners.write_to((os.getpid(), others[0], found.st_dev, found.st_ino))
        with monkeypatch.context() as between:  # it changes hands after the first look
            between.setattr(os, "readlink", lambda path: f"pipe:[{found.st_ino}]")
            listeners.write_to((os.getpid(), others[0], found.st_dev, found.st_ino))
        listeners.write_to((2**40, mine[0], found.st_dev, found.st_ino))
        listeners.write_to((os.getpid(), 2**40, found.st_dev, found.st_ino))
        for pipe in (mine, others):
            with pytest.raises(BlockingIOError):
                os.read(pipe[0], 1)
        listeners.write_to((os.getpid(), mine[0], found.st_dev, found.st_ino))
        assert len(os.read(mine[0], 2)) == 1
    finally:
        for fd in (*mine, *others):
            os.close(fd)


def test_damage_to_what_listeners_share_is_no_crash(ring_type: RingType) -> None:
    """Whatever the words say, a put is a put, and the marks become right again."""
    ring = ring_type()
    with ring.listen() as listener:
        words, block = ring._core._words, ring._core._block(listener._cell)  # type: ignore[arg-type]
        for value in (2**64 - 1, 2**63, 1 << 40):
            words[at.CONSUMERS_SLEEPING] |= value
            words[at.LISTENERS] = words[at.CALLS] = value
            block[at.B_ARMED] = value + 1 & at.WORD_MASK
            for word in (at.B_PID, at.B_FD, at.B_DEVICE, at.B_INODE):
                block[word] = value
            ring.put(b"x")
            assert words[at.CONSUMERS_SLEEPING] <= at.SLEEPING
            words[at.CONSUMERS_SLEEPING] = 0
            assert drained(ring) == [b"x"]


def test_a_process_object_gets_the_ring_and_calls(ring_type: RingType) -> None:
    """The usual way to start one."""
    ring = ring_type()
    with ring.listen() as listener:
        child = Process(target=ring.put, args=(b"hello",))
        child.start()
        assert receive(ring, listener, 1) == [b"hello"]
        child.join()
    ring.destroy()
