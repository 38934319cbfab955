"""The peers that have to be installed: ``pip install 'ipcmap[bench]'``, and iceoryx2.

They are imported by the process that uses them and by no other, and not by name, so
that types are checked the same with and without them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ipcmap.bench.channels import Can, Channel, Peer, Receiver, Sender, Terms

__all__ = ["INSTALLED", "SHM_PREFIX"]

SHM_PREFIX = "ipcmap_bench_"  # of names in /dev/shm, followed by the pid of the benchmark
_FOR_LONG = 3600.0  # seconds, for those who cannot wait for ever
_IOX_BUFFER = 256  # records: what a subscriber of iceoryx2 holds; more is more memory at the start

_EXTRA = "'ipcmap[bench]'"


def _faster_fifo(terms: Terms, *, raw: bool = False) -> Channel:
    coding: dict[str, Callable[[bytes], bytes]] = {"loads": bytes, "dumps": bytes} if raw else {}
    queue = import_module("faster_fifo").Queue(max_size_bytes=terms.room, **coding)
    sender = Sender(
        partial(queue.put, timeout=_FOR_LONG), partial(queue.put_many, timeout=_FOR_LONG)
    )
    receiver = Receiver(
        partial(queue.get, timeout=_FOR_LONG),
        partial(queue.get_many, timeout=_FOR_LONG, max_messages_to_get=1000),
    )
    return Channel(lambda: sender, lambda: receiver)


def _zmq(terms: Terms) -> Channel:
    zmq = import_module("zmq")
    address = f"ipc://@ipcmap-bench-{os.getpid()}-{os.urandom(8).hex()}"  # abstract: no file

    def open_end(kind: int, *, bind: bool) -> Any:
        socket = zmq.Context.instance().socket(kind)
        socket.set_hwm(terms.backlog)
        (socket.bind if bind else socket.connect)(address)
        return socket

    # Whoever is alone on its side binds.
    def sender() -> Sender:
        socket = open_end(zmq.PUSH, bind=terms.consumers > 1)
        put = socket.send_pyobj if terms.objects else socket.send
        return Sender(put, finish=socket.close)

    def receiver() -> Receiver:
        socket = open_end(zmq.PULL, bind=terms.consumers == 1)
        get = socket.recv_pyobj if terms.objects else socket.recv
        return Receiver(get, finish=socket.close)

    return Channel(sender, receiver)


def _posix_mq(terms: Terms) -> Channel:
    posix_ipc = import_module("posix_ipc")
    queue = posix_ipc.MessageQueue(
        None, posix_ipc.O_CREX, max_messages=10, max_message_size=terms.nbytes
    )
    queue.unlink()
    return Channel(lambda: Sender(queue.send), lambda: Receiver(lambda: queue.receive()[0]))


def _iceoryx2(terms: Terms) -> Channel:
    iox = import_module("iceoryx2")
    iox.set_log_level(iox.LogLevel.Fatal)
    prefix = f"{SHM_PREFIX}{os.path.basename(terms.folder)}_"
    name = os.urandom(8).hex()

    def service() -> Any:
        config = iox.config.default()
        config.global_cfg.prefix = iox.FileName.new(prefix)
        config.global_cfg.root_path = iox.Path.new(terms.folder)
        node = (
            iox.NodeBuilder.new()
            .config(config)
            .signal_handling_mode(iox.SignalHandlingMode.Disabled)
            .create(iox.ServiceType.Ipc)
        )
        return (
            node.service_builder(iox.ServiceName.new(name))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(min(terms.backlog, _IOX_BUFFER))
            .open_or_create()
        )

    def sender() -> Sender:
        publisher = (
            service()
            .publisher_builder()
            .initial_max_slice_len(terms.nbytes)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        loan, nbytes, copy = publisher.loan_slice_uninit, terms.nbytes, ctypes.memmove

        def put(record: bytes) -> None:
            sample = loan(nbytes)
            copy(sample.payload_ptr, record, nbytes)
            sample.assume_init().send()

        return Sender(put)

    def receiver() -> Receiver:
        receive, nbytes = service().subscriber_builder().create().receive, terms.nbytes

        def get() -> bytes:
            while (sample := receive()) is None:
                pass
            record = ctypes.string_at(sample.payload_ptr, nbytes)
            sample.delete()
            return record

        return Receiver(get)

    return Channel(sender, receiver)


_BATCHES = Can.BATCHES | Can.QUEUE

INSTALLED = (
    Peer("faster-fifo", _faster_fifo, "faster_fifo", _EXTRA, Can.BYTES | Can.OBJECTS | _BATCHES),
    Peer(
        "faster-fifo, raw bytes",
        partial(_faster_fifo, raw=True),
        "faster_fifo",
        _EXTRA,
        Can.BYTES | _BATCHES,
    ),
    Peer("pyzmq, ipc", _zmq, "zmq", _EXTRA),
    # The kernel takes longer messages from root alone.
    Peer(
        "posix_ipc.MessageQueue",
        _posix_mq,
        "posix_ipc",
        _EXTRA,
        Can.BYTES | Can.QUEUE,
        longest=8192,
    ),
    Peer("iceoryx2, polling", _iceoryx2, "iceoryx2", "iceoryx2", Can.BYTES),
)
