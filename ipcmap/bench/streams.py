"""Records from one or more producers to a consumer, as fast as they go.

Before and after what is timed, numbered records are sent and looked at one by one: each
must come once, whole, and in the order of its producer. One that came twice in between
displaces those after it; one that got lost leaves the consumer waiting until the
deadline. Of the timed records the number counts, and the last is looked at.

The consumer gives the producers an order for each of these parts, so that the clock
starts when all are open and warm.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from itertools import repeat
from multiprocessing.connection import Connection

from ipcmap.bench.channels import Channel, Peer, Receiver, Terms
from ipcmap.bench.place import Figures, Place, Wrong, cpu_seconds

__all__ = ["SHORTEST", "numbered", "stream"]

_head = struct.Struct("<QQ")  # producer, number
SHORTEST = _head.size  # bytes of a record

_BATCH = 100  # records
_LOOKED_AT = 200  # records before, and as many after; fewer of long ones
_LOOKED_AT_BYTES = 8 << 20
_WARM_UP = 128  # records, which fill a channel of long ones
_FIRST_GUESS = 200  # records
_LEAST_GROWTH, _MOST_GROWTH = 2.0, 10.0

_MARK = 1 << 63  # in place of the number, in records that are timed


def numbered(producer: int, number: int, nbytes: int) -> bytes:
    """Return the record that a producer sends as its ``number``-th."""
    return _head.pack(producer, number) + b"\xa5" * (nbytes - SHORTEST)


def stream(
    peer: Peer, nbytes: int, place: Place, *, producers: int = 1, batches: bool = False
) -> Figures:
    """Measure records a second, and CPU seconds a record over all processes that take part."""
    terms = Terms(nbytes, place.folder)
    channel = peer.open(terms)

    def produce(number: int, orders: Connection) -> None:
        _produce(channel, number, nbytes, batches, orders)

    with place.crew(producers, produce) as crew:
        receiver = channel.receiver()
        crew.tell("open")
        crew.hear()
        looked_at = max(2, min(_LOOKED_AT, _LOOKED_AT_BYTES // nbytes) // producers)
        order = ("look", 0, looked_at)
        crew.tell(order)
        _look(receiver, order, producers, nbytes, batches)

        warm = -(-min(_WARM_UP, terms.backlog) // producers)
        warm = _in_batches(warm) if batches else warm
        crew.tell(("time", 0, warm))
        _receive(receiver, warm * producers, batches)
        who = [*crew.pids, *channel.helpers]
        each = max(1, _FIRST_GUESS // producers)
        while True:
            each = _in_batches(each) if batches else each
            order = ("time", 0, each)
            used, began = cpu_seconds(who) + time.process_time(), time.perf_counter()
            crew.tell(order)
            last = _receive(receiver, each * producers, batches)
            seconds = time.perf_counter() - began
            used = cpu_seconds(who) + time.process_time() - used
            _look_at_last(last, nbytes)
            if seconds >= place.effort.seconds:
                break
            growth = 1.2 * place.effort.seconds / seconds
            each = int(each * min(_MOST_GROWTH, max(_LEAST_GROWTH, growth)))

        order = ("look", looked_at, looked_at)
        crew.tell(order)
        _look(receiver, order, producers, nbytes, batches)
        crew.tell(None)
        crew.hear()
    receiver.finish()
    channel.close()
    records = each * producers
    return {
        "records": records,
        "records_per_second": records / seconds,
        "bytes_per_second": records * nbytes / seconds,
        "seconds_per_record": seconds / records,
        "cpu_seconds_per_record": used / records,
    }


def _in_batches(count: int) -> int:
    return -(-count // _BATCH) * _BATCH


# Producers


def _produce(
    channel: Channel, producer: int, nbytes: int, batches: bool, orders: Connection
) -> None:
    orders.recv()
    sender = channel.sender()
    orders.send("open")
    put, put_many = sender.put, sender.put_many
    timed = numbered(producer, _MARK, nbytes)
    batch = [timed] * _BATCH
    while order := orders.recv():
        what, first, count = order
        if what == "look":
            records = [numbered(producer, first + number, nbytes) for number in range(count)]
            if batches and put_many is not None:
                put_many(records)
            else:
                for record in records:
                    put(record)
        elif batches and put_many is not None:
            for _ in repeat(None, count // _BATCH):
                put_many(batch)
        else:
            for _ in repeat(None, count):
                put(timed)
    sender.finish()
    orders.send("finished")


# The consumer


def _receive(receiver: Receiver, count: int, batches: bool) -> bytes | int:
    """Take the timed records; return the last, or its length."""
    last: bytes | int = b""
    if batches and receiver.get_many is not None:
        get_many, left = receiver.get_many, count
        while left > 0:
            records = get_many()
            left -= len(records)
        return records[-1]
    take = receiver.take or receiver.get
    for _ in repeat(None, count):
        last = take()
    return last


def _look(
    receiver: Receiver, order: tuple[str, int, int], producers: int, nbytes: int, batches: bool
) -> None:
    _, first, count = order
    records: list[bytes] = []
    while len(records) < count * producers:
        if batches and receiver.get_many is not None:
            records += receiver.get_many()
        else:
            records.append(receiver.get())
    look_at(records, producers, first, nbytes)


def look_at(records: Sequence[bytes], producers: int, first: int, nbytes: int) -> None:
    """See that each record is the next one of its producer.

    Raises:
        Wrong: It is not.
    """
    expected = [first] * producers
    for record in records:
        producer, number = _head.unpack_from(record) if len(record) >= SHORTEST else (-1, -1)
        if not 0 <= producer < producers or number != expected[producer]:
            raise Wrong(
                f"a record is not the one that was sent: producer={producer}, number={number}, "
                f"expected={expected[producer] if 0 <= producer < producers else 'any'}"
            )
        if record != numbered(producer, number, nbytes):
            raise Wrong(f"a record came changed: producer={producer}, number={number}")
        expected[producer] += 1


def _look_at_last(last: bytes | int, nbytes: int) -> None:
    if isinstance(last, int):
        good = last == nbytes
    else:
        good = len(last) == nbytes and last[8:] == numbered(0, _MARK, nbytes)[8:]
    if not good:
        raise Wrong("the last of the timed records came changed")
