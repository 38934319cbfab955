"""Ends of pipes that are awaited: once and in order, whoever is cancelled, killed or stopped."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from itertools import count

import pytest

from children import Fork
from ipcmap import Pipe, Semaphore, aio
from ipcmap import connection_handle as handles
from listening import PATIENCE
from monitor_harness import stop
from pipe_ends import Ends
from test_aio import descriptors, run, wait_for_the_others

pytestmark = pytest.mark.usefixtures("collected", "ring_type")  # on both engines

LENGTHS = [0, 1, 100, 30_000, 40_000, 70_000, 1 << 20]


def message(number: int, nbytes: int) -> bytes:
    """Return a message that says which it is."""
    return b"%d " % number + bytes(nbytes)


def number_of(record: bytes) -> int:
    """Return which message it is."""
    return int(record.split(b" ", 1)[0])


def test_what_is_awaited_is_answered_by_another_process(ends: Ends, fork: Fork) -> None:
    """Of any length, by its own calls or by a loop."""
    ours, theirs = ends

    def answer() -> None:
        ours.close()
        for _ in LENGTHS:
            theirs.send(theirs.recv()[::-1])

        async def answer_in_a_loop() -> None:
            end = aio.Connection(theirs)
            for _ in LENGTHS:
                await end.send_bytes(await end.recv_bytes())

        run(answer_in_a_loop())

    child = fork(answer)
    theirs.close()

    async def main() -> None:
        end = aio.Connection(ours)
        for nbytes in LENGTHS:
            asked = os.urandom(nbytes)
            await end.send(asked)
            assert await end.recv() == asked[::-1]
        for nbytes in LENGTHS:
            asked = os.urandom(nbytes)
            await end.send_bytes(memoryview(asked))
            assert await end.recv_bytes() == asked

    run(main())
    assert child.wait() == 0


def test_what_was_sent_before_is_received_first(one_way: Ends) -> None:
    """It lies in the ring, and what comes later in the socket."""
    reader, writer = one_way
    for number in range(100):
        writer.send(number)

    async def main() -> None:
        end = aio.Connection(reader)
        assert [await end.recv() for _ in range(50)] == [*range(50)]
        for number in range(100, 150):
            writer.send(number)
        assert [await end.recv() for _ in range(100)] == [*range(50, 150)]

    run(main())


def test_a_thousand_tasks_receive_in_their_order(one_way: Ends, fork: Fork) -> None:
    """Through one descriptor for all, and one for its timer."""
    reader, writer = one_way
    waits = Semaphore(0)

    def send() -> None:
        waits.acquire()
        for number in range(1000):
            writer.send(number)

    child, at_first = fork(send), descriptors()

    async def main() -> None:
        end, other = aio.Connection(reader), aio.Connection(reader)
        before = descriptors()
        tasks = [
            asyncio.create_task((end if number % 2 else other).recv()) for number in range(1000)
        ]
        await wait_for_the_others()
        assert descriptors() == before + 2
        waits.release()
        assert await asyncio.gather(*tasks) == [*range(1000)]

    run(main())
    assert child.wait() == 0
    assert descriptors() == at_first


def test_a_message_of_which_a_part_has_come_holds_up_no_loop_and_no_cancel_loses_it(
    one_way: Ends,
) -> None:
    """The rest is taken by whoever receives next."""
    reader, writer = one_way
    data = os.urandom(100_000)

    async def main() -> None:
        end = aio.Connection(reader)
        first = asyncio.create_task(end.recv_bytes())
        await wait_for_the_others()
        ring = writer._out
        assert ring
        for number, packet in enumerate(handles._packets(data)):
            assert writer._send_packet(ring, packet, first=number == 0)
            await asyncio.sleep(0.01)
            assert not first.done() or number == 3
            if number == 1:
                first.cancel()
                first = asyncio.create_task(end.recv_bytes())
        assert await first == data

    run(main())


@pytest.mark.parametrize("nbytes", [10, 70_000])
def test_no_message_is_lost_or_changes_places_where_receivers_are_cancelled(
    one_way: Ends, nbytes: int, fork: Fork, chance: random.Random
) -> None:
    """Whatever moment a cancel comes at."""
    reader, writer = one_way
    many = 2000 if nbytes < 100 else 200

    def send() -> None:
        reader.close()
        for number in range(many):
            writer.send_bytes(message(number, nbytes))

    child = fork(send)
    writer.close()
    received, cut = list[int](), 0

    async def receive() -> None:
        nonlocal cut
        end = aio.Connection(reader)

        async def take() -> None:
            received.append(number_of(await end.recv_bytes()))

        while True:
            task = asyncio.create_task(take())
            try:
                async with asyncio.timeout(chance.choice([0, 1e-5, 1e-4, 1e-3, 1])):
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    if chance.random() < 0.3:
                        task.cancel()
                    await task
            except (TimeoutError, asyncio.CancelledError):
                cut += 1
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and task.exception():
                    return  # the end came in the same moment
            except EOFError:
                return

    async def main() -> None:
        await asyncio.gather(*(receive() for _ in range(5)))

    run(main())
    assert child.wait() == 0
    assert received == [*range(many)]
    assert cut > 0, "some were cancelled"


def test_a_send_of_the_ends_own_amid_an_awaited_one_loses_neither(
    one_way: Ends, fork: Fork
) -> None:
    """What a task has begun is sent first."""
    reader, writer = one_way
    reader.fileno()  # from here on through the kernel, in packets
    begun = Semaphore(0)

    def receive() -> None:
        writer.close()
        begun.acquire()
        assert [len(reader.recv_bytes()) for _ in range(3)] == [1_000_000, 1, 2]

    child = fork(receive)

    async def main() -> None:
        sending = asyncio.create_task(aio.Connection(writer).send_bytes(bytes(1_000_000)))
        await wait_for_the_others()
        assert not sending.done()
        begun.release()
        writer.send_bytes(b"1")
        await sending
        writer.send_bytes(b"22")

    run(main())
    writer.close()
    assert child.wait() == 0


@pytest.mark.parametrize("nbytes", [10, 20_000, 70_000])
def test_each_send_that_returned_is_received_and_no_cancelled_one(
    one_way: Ends, nbytes: int, fork: Fork, chance: random.Random
) -> None:
    """Also of a message that was begun: its part is dropped."""
    reader, writer = one_way
    said_reader, said_writer = Pipe(duplex=False)

    def receive() -> None:
        received = list[int]()
        for record in iter(reader.recv_bytes, b"end"):
            assert len(record) == len(message(number_of(record), nbytes))
            received.append(number_of(record))
        said_writer.send(received)

    child = fork(receive)
    sent, cut, numbers = list[int](), 0, count()

    async def send() -> None:
        nonlocal cut
        end = aio.Connection(writer)
        for _ in range(100):
            number = next(numbers)
            try:
                async with asyncio.timeout(chance.choice([0, 1e-5, 1e-4, 1e-3, PATIENCE])):
                    await end.send_bytes(message(number, nbytes))
                    sent.append(number)
            except TimeoutError:
                cut += 1
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(send() for _ in range(4)))
        await aio.Connection(writer).send_bytes(b"end")
        assert await aio.Connection(said_reader).recv() == sent

    run(main())
    assert child.wait() == 0
    assert len(sent) + cut == 400
    said_reader.close()
    said_writer.close()


def test_a_peer_that_is_killed_is_the_end_for_those_who_await_it(ends: Ends, fork: Fork) -> None:
    """Who receives gets EOFError, who sends BrokenPipeError, all of them."""
    ours, theirs = ends

    def be_there() -> None:
        ours.close()
        signal.pause()

    child = fork(be_there)
    theirs.close()

    async def main() -> None:
        end = aio.Connection(ours)
        receiving = [asyncio.create_task(end.recv()) for _ in range(3)]
        sending = [asyncio.create_task(end.send(bytes(1 << 20))) for _ in range(3)]
        sending += [asyncio.create_task(end.send(bytes(20_000))) for _ in range(30)]
        await wait_for_the_others()
        assert any(not task.done() for task in sending), "the peer takes nothing"
        child.kill()
        said = await asyncio.gather(*receiving, *sending, return_exceptions=True)
        assert [type(one) for one in said[:3]] == [EOFError] * 3
        assert BrokenPipeError in {type(one) for one in said[3:]}
        assert {type(one) for one in said[3:]} <= {BrokenPipeError, type(None)}

    run(main())


def test_a_peer_that_is_stopped_is_waited_for_and_the_loop_goes_on(ends: Ends, fork: Fork) -> None:
    """What is sent meanwhile arrives when it goes on."""
    ours, theirs = ends
    begun = Semaphore(0)

    def answer() -> None:
        ours.close()
        begun.release()
        theirs.send(sum(len(theirs.recv()) for _ in range(20)))

    child = fork(answer)
    theirs.close()
    begun.acquire()
    stop(child, signal.SIGSTOP)

    async def main() -> None:
        end = aio.Connection(ours)
        sending = asyncio.gather(*(end.send(bytes(100_000)) for _ in range(20)))
        receiving = asyncio.create_task(end.recv())
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not sending.done()
        assert not receiving.done()
        os.kill(child.pid, signal.SIGCONT)
        await sending
        assert await receiving == 2_000_000

    run(main())
    assert child.wait() == 0


def test_who_awaits_an_end_that_is_closed_here_is_told(ends: Ends) -> None:
    """As of any call of a closed end."""
    ours, _theirs = ends

    async def main() -> None:
        end = aio.Connection(ours)
        tasks = [asyncio.create_task(end.recv()) for _ in range(3)]
        tasks += [asyncio.create_task(end.send(bytes(20_000))) for _ in range(60)]
        await wait_for_the_others()
        waiting = [task for task in tasks if not task.done()]
        assert len(waiting) > 10
        ours.close()
        said = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in said} == {OSError}
        with pytest.raises(OSError, match="closed"):
            await end.recv()
        with pytest.raises(OSError, match="closed"):
            await end.send(1)

    run(main())


def test_an_end_that_only_sends_does_not_receive(one_way: Ends) -> None:
    """And the other way round."""
    reader, writer = one_way

    async def main() -> None:
        with pytest.raises(OSError, match="write-only"):
            await aio.Connection(writer).recv()
        with pytest.raises(OSError, match="read-only"):
            await aio.Connection(reader).send(1)

    run(main())


def test_a_child_forked_while_an_end_is_awaited_takes_nothing_from_its_parent(
    ends: Ends, fork: Fork
) -> None:
    """It gives the parent's tasks up, which go on in the parent."""
    ours, theirs = ends

    async def main() -> None:
        end = aio.Connection(ours)
        receiving = asyncio.create_task(end.recv())
        await wait_for_the_others()

        def give_up() -> None:
            coroutine = receiving.get_coro()
            assert coroutine
            coroutine.close()
            theirs.send("from the child")

        child = fork(give_up)
        assert await receiving == "from the child"
        assert child.wait() == 0

    run(main())


def test_a_face_says_what_it_stands_for(ends: Ends) -> None:
    """Its repr has its object's."""
    assert repr(aio.Connection(ends[0])) == f"<ipcmap.aio.Connection: {ends[0]!r}>"
