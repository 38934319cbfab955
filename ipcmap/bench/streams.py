"""Records or objects from one or more producers to a consumer, as fast as they go.

Before and after what is timed, numbered records are sent and looked at one by one: each
must come once, whole, and in the order of its producer. One that came twice in between
displaces those after it; one that got lost leaves the consumer waiting until the
deadline. Of the timed records the number counts, and the last is looked at.

The consumer gives the producers an order for each of these parts, so that the clock
starts when all are open and warm.
"""

from __future__ import annotations

from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any

from ipcmap.bench.channels import Channel, Peer, Receiver, Terms
from ipcmap.bench.clock import timed
from ipcmap.bench.goods import Goods
from ipcmap.bench.place import Figures, Place

__all__ = ["stream"]

_BATCH = 100  # records
_LOOKED_AT = 200  # records before, and as many after; fewer of long ones
_LOOKED_AT_BYTES = 8 << 20
_WARM_UP = 128  # records, which fill a channel of long ones
_FIRST_GUESS = 200  # records; fewer of long ones
_FIRST_GUESS_BYTES = 16 << 20


def stream(
    peer: Peer[Channel],
    goods: Goods,
    place: Place,
    *,
    objects: bool = False,
    producers: int = 1,
    batches: bool = False,
) -> Figures:
    """Measure records a second, and CPU seconds a record over all processes that take part."""
    terms = Terms(goods.nbytes, place.folder, objects=objects)
    channel = peer.open(terms)

    def produce(number: int, orders: Connection) -> None:
        _produce(channel, number, goods, batches, orders)

    with place.crew(producers, produce) as crew:
        receiver = channel.receiver()
        crew.tell("open")
        crew.hear()
        looked_at = max(2, min(_LOOKED_AT, _LOOKED_AT_BYTES // goods.nbytes) // producers)

        def look(first: int) -> None:
            crew.tell(("look", first, looked_at))
            goods.look_at(_all(receiver, looked_at * producers, batches), producers, first)

        def send(each: int) -> None:
            crew.tell(("time", 0, each))
            goods.look_at_last(_last(receiver, each * producers, batches))

        look(0)
        multiple_of = _BATCH if batches else 1
        warm = -(-min(_WARM_UP, terms.backlog) // producers)
        send(-(-warm // multiple_of) * multiple_of)
        result = timed(
            send,
            place.effort.seconds,
            [*crew.pids, *channel.helpers],
            first=max(1, min(_FIRST_GUESS, _FIRST_GUESS_BYTES // goods.nbytes) // producers),
            multiple_of=multiple_of,
        )
        look(looked_at)
        crew.tell(None)
        crew.hear()
    receiver.finish()
    channel.close()
    records = result.count * producers
    return {
        "records": records,
        "records_per_second": records / result.seconds,
        "bytes_per_second": records * goods.nbytes / result.seconds,
        "seconds_per_record": result.seconds / records,
        "cpu_seconds_per_record": result.cpu_seconds / records,
    }


# Producers


def _produce(
    channel: Channel, producer: int, goods: Goods, batches: bool, orders: Connection
) -> None:
    orders.recv()
    sender = channel.sender()
    orders.send("open")
    put, put_many = sender.put, sender.put_many
    one = goods.timed(producer)
    batch = [one] * _BATCH
    while order := orders.recv():
        what, first, count = order
        if what == "look":
            records = [goods.make(producer, first + number) for number in range(count)]
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
                put(one)
    sender.finish()
    orders.send("finished")


# The consumer


def _last(receiver: Receiver, count: int, batches: bool) -> Any:
    """Take the timed records; return the last, or its length."""
    last: Any = None
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


def _all(receiver: Receiver, count: int, batches: bool) -> list[Any]:
    """Take records to look at."""
    records: list[Any] = []
    while len(records) < count:
        if batches and receiver.get_many is not None:
            records += receiver.get_many()
        else:
            records.append(receiver.get())
    return records
