"""Round trips between two processes, and the CPU time of consumers that wait for nothing."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

from ipcmap.bench.channels import Channel, Peer, Terms
from ipcmap.bench.clock import cpu_seconds, percentiles
from ipcmap.bench.goods import numbered
from ipcmap.bench.place import Figures, Place, Wrong

__all__ = ["idle", "round_trips"]

_NBYTES = 64
_WARM_UP = 50  # round trips that do not count
_LAST = 1 << 62  # the number of the record that ends an echo
_SETTLE = 0.3  # seconds: consumers have spun, and sleep


def round_trips(peer: Peer[Channel], place: Place, *, pause: float = 0.0) -> Figures:
    """Measure seconds from the put of a record to the get of its echo.

    Args:
        peer: Whose channels: one there, one back.
        place: Where it runs.
        pause: Seconds of sleep before each; 0 = for ``effort.seconds``, one after the other.
    """
    there, back = (peer.open(Terms(_NBYTES, place.folder)) for _ in range(2))

    def echo(number: int, orders: Connection) -> None:
        receiver = there.receiver()
        orders.send("open")
        orders.recv()
        sender = back.sender()
        orders.send("open")
        get, put = receiver.get, sender.put
        last = numbered(0, _LAST, _NBYTES)
        record = b""
        while record != last:
            record = get()
            put(record)
        sender.finish()
        orders.send("finished")

    with place.crew(1, echo) as crew:
        receiver = back.receiver()
        crew.hear()
        sender = there.sender()
        crew.tell("open")
        crew.hear()
        put, get, clock, sleep = sender.put, receiver.get, time.perf_counter_ns, time.sleep
        took: list[int] = []
        wanted = _WARM_UP + place.effort.wake_ups if pause else 1 << 60
        until = clock() + round(place.effort.seconds * 1e9)
        number = 0
        while number < wanted:
            record = numbered(0, number, _NBYTES)
            if pause:
                sleep(pause)
            began = clock()
            put(record)
            reply = get()
            ended = clock()
            if reply != record:
                raise Wrong(f"an echo is not what was sent: number={number}")
            took.append(ended - began)
            number += 1
            if not pause and ended >= until and number > 2 * _WARM_UP:
                break
        put(numbered(0, _LAST, _NBYTES))
        get()
        crew.hear()
        sender.finish()
    receiver.finish()
    there.close()
    back.close()
    return percentiles(took[_WARM_UP:])


def idle(peer: Peer[Channel], place: Place) -> Figures:
    """Measure the CPU time of consumers that wait for a record which does not come.

    Then as many records come as there are consumers: each must wake, and take one.
    """
    consumers, seconds = place.effort.consumers, place.effort.idle_seconds
    channel = peer.open(Terms(_NBYTES, place.folder, consumers))

    def consume(number: int, orders: Connection) -> None:
        orders.recv()
        receiver = channel.receiver()
        orders.send("open")
        orders.send(receiver.get())

    with place.crew(consumers, consume) as crew:
        sender = channel.sender()
        crew.tell("open")
        crew.hear()
        time.sleep(_SETTLE)
        who = [*crew.pids, *channel.helpers]
        used, began = cpu_seconds(who), time.perf_counter()
        time.sleep(seconds)
        used, seconds = cpu_seconds(who) - used, time.perf_counter() - began
        sent = [numbered(0, number, _NBYTES) for number in range(consumers)]
        for record in sent:
            sender.put(record)
        if sorted(crew.hear()) != sent:
            raise Wrong("the consumers that waited did not get one record each")
        sender.finish()
    channel.close()
    return {"consumers": consumers, "cpu_share": used / seconds}
