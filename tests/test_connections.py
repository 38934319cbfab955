"""Pipes: what is sent arrives, once and in order, in whichever way; and the end is told."""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import random
import select
import signal
import socket
import threading
from multiprocessing import connection as standard
from multiprocessing import resource_sharer
from typing import Any

import numpy as np
import pytest

import ipcmap
from children import Fork, die
from families import Stores, _Watched
from ipcmap import Arena, Connection, Pipe, Process, Semaphore, ended_pipes
from ipcmap._core import ring_layout
from ipcmap._core.reference_cells import Cell
from pipe_ends import Ends

pytestmark = pytest.mark.usefixtures("ring_type")  # on both engines

LARGE = 3 << 20
wait: Any = standard.wait  # its annotation names multiprocessing's own connections


def mode(reader: Connection) -> int:
    """Return how senders send to this end."""
    assert reader._in
    return int(reader._in._core._words[ring_layout.CLOSED])


def readable(one: Connection) -> bool:
    """Ask the kernel about its descriptor."""
    return bool(select.select([one], [], [], 0)[0])


# Objects and bytes


@pytest.mark.parametrize(
    "obj", [7, -1.5, None, True, "é", b"", b"x" * 100, (1, [2, {3: "4"}]), 10**40, ValueError]
)
def test_an_object_comes_out_at_the_other_end(ends: Ends, obj: object) -> None:
    """In both directions."""
    for one, other in (ends, ends[::-1]):
        one.send(obj)
        assert other.poll()
        found = other.recv()
        assert (found, type(found)) == (obj, type(obj))
        assert not other.poll()


def test_an_array_comes_out_writable(ends: Ends) -> None:
    """However large."""
    for nbytes in (10, 1 << 16, LARGE):
        ends[0].send(np.arange(nbytes, dtype="u1"))
        found = ends[1].recv()
        assert np.array_equal(found, np.arange(nbytes, dtype="u1"))
        found[0] = 1


def test_a_message_for_which_the_arena_has_no_room_arrives(fork: Fork) -> None:
    """In its turn, and also if it never had any."""
    arena = Arena(limit=1 << 20)
    reader, writer = Pipe(duplex=False, arena=arena)
    lengths = [100, 300_000, 300_000, 300_000, 300_000, 10, LARGE, 20, 300_000]

    def send() -> None:
        for number, length in enumerate(lengths):
            writer.send_bytes(bytes([number]) * length)

    try:
        child = fork(send)
        writer.close()
        ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while mode(reader) == 0 and not os.waitid(os.P_PID, child.pid, ended):
            os.sched_yield()
        found = [reader.recv_bytes() for _ in lengths]
        assert [(len(one), one[0]) for one in found] == [
            (length, number) for number, length in enumerate(lengths)
        ]
        assert child.wait() == 0
    finally:
        reader.close()


def test_an_object_is_a_pickle_as_bytes(ends: Ends) -> None:
    """Either way, as in multiprocessing."""
    ends[0].send(("k", 1))
    assert pickle.loads(ends[1].recv_bytes()) == ("k", 1)
    ends[0].send_bytes(pickle.dumps(("k", 2)))
    assert ends[1].recv() == ("k", 2)


@pytest.mark.parametrize(
    "data",
    [b"", b"abc", bytearray(b"abc"), memoryview(b"abc"), array.array("i", [1, 2]), np.ones(3)],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.parametrize("watched", [False, True])
def test_bytes_come_out_as_one_message(ends: Ends, data: Any, watched: bool) -> None:
    """Of anything that has a buffer; none are a message, too."""
    if watched:
        ends[1].fileno()
    ends[0].send_bytes(data)
    assert ends[1].recv_bytes() == bytes(data)


def test_a_part_of_a_buffer_is_sent(ends: Ends) -> None:
    """From an offset, so many."""
    for offset, size in ((0, None), (2, None), (2, 3), (6, 0), (6, None), (0, 6)):
        ends[0].send_bytes(b"abcdef", offset, size)
        assert ends[1].recv_bytes() == b"abcdef"[offset : None if size is None else offset + size]


@pytest.mark.parametrize(("offset", "size"), [(-1, None), (7, None), (0, -1), (0, 7), (5, 2)])
def test_a_part_that_is_none_is_refused(ends: Ends, offset: int, size: int | None) -> None:
    """And nothing is sent."""
    with pytest.raises(ValueError, match=r"negative|buffer length"):
        ends[0].send_bytes(b"abcdef", offset, size)
    assert not ends[1].poll()


def test_a_message_is_received_into_a_buffer(ends: Ends) -> None:
    """At an offset; what is too long comes with the error."""
    numbers = array.array("i", [0] * 4)
    ends[0].send_bytes(array.array("i", [5, 6]))
    assert ends[1].recv_bytes_into(numbers, 4) == 8
    assert [*numbers] == [0, 5, 6, 0]
    ends[0].send_bytes(b"x" * 14)
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        ends[1].recv_bytes_into(numbers, 4)
    assert caught.value.args == (b"x" * 14,)
    for offset in (-1, 17):
        with pytest.raises(ValueError, match="offset"):
            ends[1].recv_bytes_into(numbers, offset)


def test_a_message_beyond_maxlength_ends_the_receiving(ends: Ends, one_way: Ends) -> None:
    """As in multiprocessing: a one-way end is closed, the other only sends from then on."""
    for writer, reader in (ends, one_way[::-1]):
        writer.send_bytes(b"abc")
        assert reader.recv_bytes(3) == b"abc"
        with pytest.raises(ValueError, match="negative maxlength"):
            reader.recv_bytes(-1)
        writer.send_bytes(b"abcd")
        with pytest.raises(OSError, match="bad message length"):
            reader.recv_bytes(3)
        with pytest.raises(OSError, match=r"write-only|closed"):
            reader.recv_bytes()
    ends[1].send(1)
    assert ends[0].recv() == 1
    assert one_way[0].closed


def test_each_end_says_what_it_is_for(ends: Ends, one_way: Ends) -> None:
    """And refuses the rest."""
    assert [(one.readable, one.writable) for one in (*ends, *one_way)] == [
        (True, True), (True, True), (True, False), (False, True)
    ]  # fmt: skip
    reader, writer = one_way
    with pytest.raises(OSError, match="read-only"):
        reader.send(1)
    with pytest.raises(OSError, match="read-only"):
        reader.send_bytes(b"")
    for call in (writer.recv, writer.poll, writer.recv_bytes):
        with pytest.raises(OSError, match="write-only"):
            call()
    assert repr(reader).startswith("<ipcmap.Connection in: descriptor")
    assert repr(ends[0]).startswith("<ipcmap.Connection in and out: descriptor")


def test_a_closed_end_refuses_all(ends: Ends) -> None:
    """And may be closed again."""
    first = ends[0]
    with first as entered:
        assert (entered, entered.closed) == (first, False)
    assert entered.closed
    first.close()
    calls: list[Any] = [first.recv, first.poll, first.fileno, lambda: first.send(1)]
    for call in (*calls, lambda: first.send_bytes(b""), lambda: pickle.dumps(first)):
        with pytest.raises(OSError, match="handle is closed"):
            call()
    assert "closed" in repr(first)


def test_what_pickle_does_not_take_is_not_sent(ends: Ends) -> None:
    """The error comes out of send."""
    with pytest.raises((AttributeError, pickle.PicklingError)):
        ends[0].send(lambda: None)
    ends[0].send(1)
    assert ends[1].recv() == 1


# The end


@pytest.mark.parametrize("how", ["slow", "watched", "asked"])
def test_the_end_comes_after_what_was_sent(ends: Ends, how: str) -> None:
    """Then each recv says so, and poll is true."""
    first, second = ends
    first.send(1)
    if how == "watched":
        second.fileno()
    first.send(2)
    first.close()
    if how == "asked":
        assert second.poll(5)
    assert [second.recv(), second.recv()] == [1, 2]
    for _ in range(2):
        assert second.poll()
        assert second.poll(5)
        with pytest.raises(EOFError):
            second.recv()
    assert readable(second)


def test_a_send_to_nobody_is_a_broken_pipe(one_way: Ends) -> None:
    """At once, as in multiprocessing."""
    reader, writer = one_way
    writer.send(1)
    reader.close()
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            writer.send(2)
        with pytest.raises(BrokenPipeError):
            writer.send_bytes(bytes(LARGE))


def test_a_send_to_the_killed_is_a_broken_pipe(one_way: Ends, fork: Fork) -> None:
    """The first one, too, though the ring has room."""
    reader, writer = one_way
    child = fork(lambda: reader.recv() + reader.recv())
    reader.close()
    writer.send(1)
    child.kill()
    with pytest.raises(BrokenPipeError):
        writer.send(2)


def test_the_end_waits_for_the_last_who_has_it(one_way: Ends, fork: Fork) -> None:
    """A copy in a child counts, until it is killed."""
    reader, writer = one_way
    child = fork(signal.pause)
    writer.close()
    assert not reader.poll(0.05)
    child.kill()
    assert reader.poll(None)
    with pytest.raises(EOFError):
        reader.recv()


def test_who_waits_hears_of_a_kill(one_way: Ends, fork: Fork) -> None:
    """Asleep in recv, in poll, and in select."""
    reader, writer = one_way
    told = Semaphore(0)
    children = []
    for call in (reader.recv, lambda: reader.poll(None), lambda: select.select([reader], [], [])):

        def await_the_end(call: Any = call) -> None:
            writer.close()
            told.release()
            with contextlib.suppress(EOFError):
                call()

        children.append(fork(await_the_end))
    holder = fork(signal.pause)
    writer.close()
    for _ in children:
        told.acquire()
    holder.kill()
    assert [child.wait() for child in children] == [0, 0, 0]


@pytest.mark.parametrize("watched", [False, True])
def test_a_sender_that_waits_for_room_hears_of_a_kill(
    one_way: Ends, fork: Fork, watched: bool
) -> None:
    """Asleep, since the ring is full, or the socket."""
    reader, writer = one_way
    sent = ipcmap.Counter()
    if watched:
        reader.fileno()

    def fill() -> None:
        reader.close()
        with contextlib.suppress(BrokenPipeError):
            while True:
                writer.send_bytes(bytes(1000))
                sent.add()

    holder = fork(signal.pause)
    child = fork(fill)
    while not sent.value:
        os.sched_yield()
    reader.close()
    holder.kill()
    assert child.wait() == 0


def test_what_the_killed_had_sent_arrives(one_way: Ends, fork: Fork) -> None:
    """All of which send has returned, in order, from either way."""
    reader, writer = one_way

    def send(numbers: range, die: bool) -> None:
        for number in numbers:
            writer.send(number)
        os.kill(os.getpid(), signal.SIGKILL if die else signal.SIGCONT)

    fork(send, range(100), True).wait()
    reader.fileno()
    fork(send, range(100, 200), True).wait()
    writer.close()
    assert [reader.recv() for _ in range(200)] == [*range(200)]
    with pytest.raises(EOFError):
        reader.recv()


def test_the_rest_of_a_message_that_was_killed_is_no_message(one_way: Ends, fork: Fork) -> None:
    """Others' come through; at the end it is told as multiprocessing does."""
    reader, writer = one_way
    reader.fileno()

    def send() -> None:
        writer.send_bytes(bytes(LARGE))  # more than the socket holds: it waits amid it

    child = fork(send)
    assert reader.poll(None)
    child.kill()
    thread = threading.Thread(target=writer.send, args=("next",))
    thread.start()
    assert reader.recv() == "next"
    thread.join()
    child = fork(send)
    assert reader.poll(None)
    child.kill()
    writer.close()
    with pytest.raises(OSError, match="got end of file during message"):
        reader.recv()
    with pytest.raises(EOFError):
        reader.recv()


# Descriptors


def test_the_descriptor_is_readable_if_there_is_a_message(ends: Ends) -> None:
    """Exactly then, and in multiprocessing's wait as well."""
    first, second = ends
    assert not readable(second)
    for number in range(3):
        first.send(number)
        assert readable(second)
        assert wait([second, first], 5) == [second]
        assert second.poll()
    for number in range(3):
        assert readable(second)
        assert second.recv() == number
    assert not readable(second)
    assert wait([second], 0) == []
    assert not second.poll()


def test_what_was_sent_before_the_descriptor_was_asked_for_is_told(ends: Ends) -> None:
    """Until it is taken, also if more came since."""
    first, second = ends
    first.send(1)
    first.send(2)
    assert readable(second)
    first.send(3)
    assert second.recv() == 1
    assert readable(second)
    assert second.recv() == 2
    assert readable(second)
    assert second.recv() == 3
    assert not readable(second)
    first.send(4)
    assert readable(second)
    assert second.recv() == 4


def test_what_another_process_took_is_told_of_no_more(ends: Ends, fork: Fork) -> None:
    """Though it has not the descriptor that told of it."""
    first, second = ends
    first.send(1)
    go_on = Semaphore(0)
    child = fork(lambda: go_on.acquire() and second.recv())
    assert readable(second)
    go_on.release()
    child.wait()
    assert not second.poll()
    assert not readable(second)
    first.send(2)
    assert readable(second)
    assert second.recv() == 2


def test_a_message_that_there_was_no_memory_for_comes_again(ends: Ends) -> None:
    """Also where messages go through the kernel since."""
    first, second = ends
    first.send_bytes(bytes(100_000))
    assert readable(second)
    assert second._in
    core = second._in._core
    taken = core.get(pos=core._words[ring_layout.WRITE_POS])
    assert isinstance(taken, Cell)
    core.return_taken(taken)
    assert readable(second)
    assert second.poll()
    assert second.recv_bytes() == bytes(100_000)
    assert not readable(second)
    assert not second.poll()


def test_an_event_loop_waits_for_it(ends: Ends) -> None:
    """With the descriptor registered once."""

    async def receive() -> list[int]:
        loop, taken = asyncio.get_running_loop(), list[int]()
        done = asyncio.Event()

        def take() -> None:
            taken.append(ends[0].recv())
            if len(taken) == 200:
                done.set()

        loop.add_reader(ends[0], take)
        await done.wait()
        loop.remove_reader(ends[0])
        return taken

    def send() -> None:
        for number in range(200):
            ends[1].send(number)

    ends[1].send(-1)
    assert ends[0].recv() == -1
    child = Process(target=send)
    child.start()
    assert asyncio.run(receive()) == [*range(200)]
    child.join()
    child.close()


def test_the_fast_way_makes_no_packet(ends: Ends) -> None:
    """While the receiver is awake, and nobody asked for the descriptor."""
    first, second = ends
    for _ in range(3):
        first.send(1)
        assert mode(second) == 0
        assert second.recv() == 1
    assert not second.poll(0.001)
    assert mode(second) == 1
    first.send(2)
    assert second.recv() == 2
    second.fileno()
    first.send(3)
    assert (second.recv(), mode(second)) == (3, 2)


def test_the_fast_way_is_taken_again(ends: Ends, fork: Fork) -> None:
    """After a sleep, once answers come soon."""

    def answer() -> None:
        while (number := ends[1].recv()) is not None:
            ends[1].send(number)

    child = fork(answer)
    modes: set[int] = set()
    number = 0
    while modes != {0, 1}:
        ends[0].send(number)
        assert ends[0].recv() == number
        modes.add(mode(ends[0]))
        number += 1
        if 0 in modes and 1 not in modes:
            assert not ends[0].poll(0.001)
            modes.add(mode(ends[0]))
    ends[0].send(None)
    assert child.wait() == 0


@pytest.mark.parametrize("how", ["send", "close", "fileno"])
def test_who_waits_at_the_ring_is_woken(
    ends: Ends, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a message, by the end, and where messages go another way from then on."""
    monkeypatch.setattr("ipcmap.connection_handle._AT_RING", 3600.0)
    first, second = ends
    assert second._in
    words = second._in._core._words
    taken: list[Any] = []

    def receive() -> None:
        try:
            taken.append(second.recv())
        except EOFError:
            taken.append(EOFError)

    thread = threading.Thread(target=receive)
    thread.start()
    while not words[ring_layout.CONSUMERS_SLEEPING]:
        os.sched_yield()
    assert mode(second) == 0
    if how == "fileno":
        second.fileno()
    if how == "close":
        first.close()
    else:
        first.send(1)
    thread.join()
    assert taken == [EOFError if how == "close" else 1]


def test_who_closes_an_end_has_both_sides_ask_the_kernel(ends: Ends) -> None:
    """Who sends to it with the next message, and who receives from it at once."""
    ends[1].close()
    assert [mode(one) for one in ends] == [1, 1]


# Processes


def test_messages_come_in_order_whichever_way_they_took(
    ends: Ends, fork: Fork, chance: random.Random
) -> None:
    """Each once, while the receiver sleeps, polls, looks on and asks for its descriptor."""
    count, seed = 3000, chance.random()

    def send() -> None:
        own = random.Random(seed)
        for number in range(count):
            data = number.to_bytes(4, "little")
            if own.random() < 0.02:
                data += bytes(own.choice([100, 40_000, 100_000]))
            ends[1].send_bytes(data)
            if own.random() < 0.03:
                os.sched_yield()
                select.select([], [], [], own.random() * 0.002)

    child = fork(send)
    for number in range(count):
        turn = chance.random()
        if turn < 0.1:
            ends[0].poll(chance.choice([0, 0.0001, 0.001]))
        elif turn < 0.15:
            assert ends[0].poll(None)
        elif turn < 0.16:
            select.select([], [], [], 0.002)
        elif turn < 0.17 and number > count // 2:
            assert wait([ends[0]]) == [ends[0]]
        assert int.from_bytes(ends[0].recv_bytes()[:4], "little") == number
    assert child.wait() == 0
    assert not ends[0].poll()


def test_a_storm_of_senders_that_are_killed(
    one_way: Ends, fork: Fork, chance: random.Random
) -> None:
    """Nothing that was sent is missing, nothing comes twice, and the end comes."""
    reader, writer = one_way
    sent = [ipcmap.Counter() for _ in range(10)]

    def send(which: int) -> None:
        reader.close()
        number = 0
        while True:
            writer.send((which, number))
            number += 1
            sent[which].value = number

    seen: list[list[int]] = [[] for _ in sent]
    for which in range(len(sent)):
        child = fork(send, which)
        for _ in range(chance.randrange(1, 200)):
            source, number = reader.recv()
            seen[source].append(number)
            if chance.random() < 0.05:
                reader.poll(0.001)
        if which == 5:
            reader.fileno()
        child.kill()
    writer.close()
    with contextlib.suppress(EOFError):
        while True:
            source, number = reader.recv()
            seen[source].append(number)
    for counter, numbers in zip(sent, seen, strict=True):
        assert numbers == [*range(len(numbers))]
        assert counter.value <= len(numbers) <= counter.value + 1


def test_an_end_reaches_a_child_that_runs_already(ends: Ends) -> None:
    """By pickle, through a queue, a pipe, or with arguments."""
    inbox: ipcmap.Queue[Any] = ipcmap.Queue()

    def work() -> None:
        with inbox.get() as one, ends[1].recv() as other:
            other.send(2 * one.recv())

    child = Process(target=work)
    child.start()
    ours, theirs = Pipe()
    results, result = Pipe(duplex=False)
    try:
        inbox.put(theirs)
        ends[0].send(result)
        theirs.close()
        result.close()
        ours.send(21)
        assert results.recv() == 42
        with pytest.raises(EOFError):
            ours.recv()
        child.join()
        assert child.exitcode == 0
    finally:
        resource_sharer.stop(timeout=30)  # multiprocessing's thread that hands descriptors out
        child.close()
        ours.close()
        results.close()


def test_a_socket_is_sent(ends: Ends) -> None:
    """By multiprocessing's reducers."""
    left, right = socket.socketpair()
    with left, right:
        try:
            ends[0].send(right)
            with ends[1].recv() as twin:
                left.send(b"through")
                assert twin.recv(10) == b"through"
        finally:
            resource_sharer.stop(timeout=30)


def test_an_end_that_is_gone_is_closed(one_way: Ends) -> None:
    """Without a warning, as in multiprocessing."""
    reader, writer = Pipe(duplex=False)
    del writer
    gc.collect()
    with pytest.raises(EOFError):
        reader.recv()
    reader.close()


def test_a_signal_handler_interrupts_a_wait(one_way: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception comes out, and the pipe works on."""
    monkeypatch.setattr("ipcmap.connection_handle._AT_RING", 3600.0)

    class Raised(Exception):
        pass

    def handler(*_: object) -> None:
        raise Raised

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(Raised):
                one_way[0].recv()
            assert mode(one_way[0]) == 1  # the next recv asks the kernel, and does not wait before
            one_way[1].send(1)
            assert one_way[0].recv() == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_threads_wait_beside_each_other(ends: Ends) -> None:
    """One end receives in one thread and sends in another."""
    first, second = ends
    taken: list[int] = []

    def receive() -> None:
        while (number := second.recv()) is not None:
            taken.append(number)
            second.send(number)

    thread = threading.Thread(target=receive)
    thread.start()
    for number in range(300):
        first.send(number)
        assert first.recv() == number
    first.send(None)
    thread.join()
    assert taken == [*range(300)]


# Memory


def test_the_rings_of_ended_pipes_are_freed(
    arena: Arena, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process that made them, though they had been shared with children."""
    ended = ended_pipes.EndedPipes()
    monkeypatch.setattr("ipcmap.connection.made", ended)
    monkeypatch.setattr(ended_pipes.EndedPipes, "_REST", 0.0)
    kept = Pipe(arena=arena)
    for _ in range(ended_pipes.EndedPipes._EVERY - 1):
        ends = Pipe(arena=arena)
        ends[0].send(bytes(100_000))
        for one in ends:
            one._in._share()  # type: ignore[union-attr]
            one.close()
    assert arena.statistics().blocks > 2 * ended_pipes.EndedPipes._EVERY
    child = fork(signal.pause)  # has `kept` alone
    for _ in range(2 * ended_pipes.EndedPipes._EVERY):
        ends = Pipe(arena=arena)
        for one in ends:
            one.close()
    del ends, one
    gc.collect()
    assert arena.statistics().blocks == 2
    for one in kept:
        one.close()
    ended._look(ended_pipes.listed_sockets(), ended_pipes.network())
    ended._look(ended_pipes.listed_sockets(), ended_pipes.network())
    assert arena.statistics().blocks == 2
    child.kill()
    ended._look(ended_pipes.listed_sockets(), ended_pipes.network())
    ended._look(ended_pipes.listed_sockets(), ended_pipes.network())
    assert arena.statistics().blocks == 0


def test_a_pipe_for_which_there_is_no_room_takes_that_of_ended_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However few they are; where none has ended, there is none."""
    ended = ended_pipes.EndedPipes()
    monkeypatch.setattr("ipcmap.connection.made", ended)
    monkeypatch.setattr(ended_pipes.EndedPipes, "_REST", 0.01)
    arena = Arena(limit=1 << 20)
    kept: list[Connection] = []

    def make_all() -> None:
        while True:
            kept.extend(Pipe(arena=arena))

    for _ in range(30):
        ends = Pipe(arena=arena)
        for one in ends:
            one._in._share()  # type: ignore[union-attr]
            one.close()
    with pytest.raises(ipcmap.ArenaFull):
        make_all()
    assert kept
    for one in kept:
        one.close()


def test_a_pipe_that_was_not_shared_is_freed_with_its_ends(arena: Arena) -> None:
    """At once."""
    ends = Pipe(arena=arena)
    ends[0].send(1)
    for one in ends:
        one.close()
    del ends, one
    gc.collect()
    assert arena.statistics().blocks == 0


# Deaths in a section


@pytest.mark.parametrize("store", [1, 2, 3])
def test_a_receiver_that_is_killed_at_a_sync_point_holds_nobody_up(
    one_way: Ends, fork: Fork, store: int
) -> None:
    """C1 mode, at either of its stores, and C2 flip: the next who receives goes on."""
    reader, writer = one_way
    writer.send(0)

    def receive() -> None:
        assert reader._in
        core: Any = reader._in._core
        assert reader.recv() == 0
        core._words = _Watched(core._words, Stores(store, die))
        reader.poll(0.001)
        reader._short = True
        reader.recv()

    child = fork(receive)
    assert child.wait() == -signal.SIGKILL
    for number in range(3):
        writer.send(number)
    assert [reader.recv() for _ in range(3)] == [0, 1, 2]
    writer.close()
    with pytest.raises(EOFError):
        reader.recv()
