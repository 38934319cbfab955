"""One ring and its users, one of whom is struck at a sync point; then the accounts.

Everything runs in a program that has loaded the hook build (sync_point_program). The
records are those of ring_traffic: each says who put it, which of theirs it is, and
whether its bytes are whole.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import cycle
from queue import Empty, Full
from random import Random
from types import FrameType
from typing import Any, NamedTuple

from ipcmap import Arena, Block, ClosedError, Mapping, Ring
from ipcmap._core import native as loaded
from ring_traffic import GETTING, GETTING_MANY, IDLE, Log, Name, pack, unpack

native: Any = loaded  # with what the hook build adds

STREAMED = "_streamed"  # ends the name of a call whose records are written past the caches
CAPACITY, BODY, FILLED = 256, 48, 3  # bytes; a record takes 80: three, and then padding
LARGE_CAPACITY, LARGE_BODY, LARGE_FILLED = 128, 300, 5  # in a block; 24 bytes of the ring
STREAMED_CAPACITY, STREAMED_BODY = 16 << 10, 4096  # bytes; three, and then padding, likewise
HUGE_BODY = 600_000  # a producer's first one: copied without the GIL, its block is kept warm
ENTRIES = 10_000  # of a log
COUNT = 3  # records that the victim puts or takes
STOPPED = 2.0  # seconds; longer than any slice
PATIENCE = 20.0  # seconds that any wait may take: far more than slices add up to


class Raised(Exception):
    """What the handler raises."""


class Strike(NamedTuple):
    """Where the victim is struck, and how."""

    point: str
    passing: int
    mode: str


class Stage:
    """A ring of the native engine, a victim, and its partners."""

    def __init__(self, call: str, strike: Strike | None) -> None:
        self.call, self.strike = call.removesuffix(STREAMED), strike
        self.produces, self.large = call.startswith("put"), call.endswith("_large")
        self.filled = LARGE_FILLED if self.large else FILLED  # so many records fill the ring
        self.body, capacity = BODY, CAPACITY
        if self.large:
            self.body, capacity = LARGE_BODY, LARGE_CAPACITY
        elif call.endswith(STREAMED):
            self.body, capacity = STREAMED_BODY, STREAMED_CAPACITY
        self.arena = Arena(16 << 20, backend="native")
        self.ring = Ring(capacity, arena=self.arena)
        self.producers, self.consumers = list[Log](), list[Log]()
        self.helpers = list[Log]()
        self.givers, self.takers = list[int](), list[int]()
        self.late = list[int]()  # who may have to wait for the victim, if that is stopped
        self.closing = False
        self.doubts = Log(ENTRIES)  # what calls of the victim that raised were about
        self.mine, self.child = self.log(self.producers), Log(ENTRIES)
        self.victim = 0
        self.victim_log = self.log(self.producers if self.produces else self.consumers)
        self.drained = self.log(self.consumers)
        (self.producers if self.produces else self.consumers).append(self.child)
        self.heard = False  # somebody listens for the first record that the victim puts or takes
        self.deaths_inside = 0  # of others than the victim
        self.stops = 0  # of others, in a section
        self.also: list[tuple[str, int, int]] = []
        self.handled = Mapping.anonymous(1)  # 1 = the handler ran
        self.blocks = list[Block]()  # beside those of records
        self._trace, self._trace_write = os.pipe()

    def log(self, logs: list[Log]) -> Log:
        """Return a log for one more producer or consumer."""
        logs.append(Log(ENTRIES))
        return logs[-1]

    # Who takes part

    def strike_down(self, timeout: float = PATIENCE) -> None:
        """Start the victim."""
        self.victim = start(self._be_struck, timeout)

    def _be_struck(self, timeout: float) -> None:
        signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
        forks = bool(self.strike) and self.mode == "fork"
        signal.signal(signal.SIGUSR1, self._fork if forks else self._raise)
        native.disarm()
        for armed in self.also:
            native.arm(*armed)
        if self.strike:
            number = signals.get(self.mode, signal.SIGUSR1)
            native.arm(self.strike.point, self.strike.passing, number)
        self.work(self.call, self.victim_log, COUNT, timeout)
        os.write(self._trace_write, "\n".join(native.trace()).encode())

    def trace(self) -> list[str]:
        """Return the points that the victim passed, which has ended by itself."""
        return os.read(self._trace, 1 << 20).decode().split("\n")

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.handled[0] = 1
        raise Raised

    def _fork(self, number: int, frame: FrameType | None) -> None:
        """Have a child use the ring amid a call of its parent."""
        self.handled[0] = 1
        call = "put" if self.produces else "get"
        child = start(self.work, call, self.child, 1, 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def produce(self, count: int) -> None:
        """Start a producer of so many records."""
        log = self.log(self.producers)
        self.givers.append(start(self.work, "put", log, count, PATIENCE))

    def consume(self) -> None:
        """Start a consumer that goes on until the ring has ended."""
        self.takers.append(start(self.take, self.log(self.consumers)))

    def close(self) -> None:
        """Start a process that closes the ring: the victim may be stopped in the section."""
        self.closing = True
        self.late.append(start(self.ring.close))

    def take(self, log: Log) -> None:
        """Take until the ring has ended, one and many, by either engine's method."""
        ways: list[Callable[..., Any]] = [
            self.ring.get,
            partial(Ring.get, self.ring),
            self.ring.get_many,
            partial(Ring.get_many, self.ring),
        ]
        try:
            for way in cycle(ways):
                taken = way(timeout=PATIENCE)
                log.take(*map(unpack, [taken] if isinstance(taken, bytes) else taken))
        except ClosedError:
            pass

    def helper(self, call: str, point: str, number: int) -> int:
        """Start a process that is killed or stopped at a point, and wait until it is."""
        log = self.log(self.producers if call == "put" else self.consumers)
        self.helpers.append(log)

        def be_helper() -> None:
            native.disarm()
            native.arm(point, 1, number)
            self.work(call, log, 1, PATIENCE)

        pid = start(be_helper)
        until(lambda: is_over(pid))
        if number == signal.SIGKILL:
            assert code_of(pid) == -signal.SIGKILL
            self.deaths_inside += 1
        else:
            self.stops += 1
        return pid

    # What they do

    def work(self, call: str, log: Log, count: int, timeout: float) -> None:
        """Put or take so many records; the end, or the end of the time, ends it."""
        name = self.producers.index(log) if call.startswith("put") else -1
        step = count if call == "put_many" else 1
        try:
            for number in range(0, count, step):
                records = [self.record(name, n) for n in range(number, number + step)]
                try:
                    if call.startswith("put"):
                        log.begin(number + step)
                        put = self.ring.put if step == 1 else self.ring.put_many
                        put(records[0] if step == 1 else records, timeout)
                        log.end()
                    elif call != "get_many":
                        log.enter(GETTING)
                        log.take(unpack(self.ring.get(timeout)))
                    elif log.count < count:
                        log.enter(GETTING_MANY)
                        log.take(*map(unpack, self.ring.get_many(count, timeout)))
                except Raised:
                    if name < 0:
                        self.doubts.take(*[Name(0, 0)] * (count if call == "get_many" else 1))
                    else:
                        self.doubts.take(*(Name(name, n) for n in range(number, number + step)))
                        log.begin(number + step)
                        log.end()
        except (Full, Empty, ClosedError) as error:
            log.enter(IDLE)
            if name >= 0:
                log.begin(log.count + getattr(error, "put", 0))
                log.end()

    def record(self, producer: int, number: int) -> bytes:
        """Return one record."""
        name = Name(max(producer, 0), number)
        body = HUGE_BODY if self.large and not number else self.body
        return pack(name, body, Random(f"{name}"))  # nobody's bytes may pass for another's

    def fill(self, count: int) -> None:
        """Put so many records, which there is room for."""
        for number in range(self.mine.count, self.mine.count + count):
            self.mine.begin(number + 1)
            self.ring.put(self.record(0, number), 0)
            self.mine.end()

    def fill_on(self) -> None:
        """Put some more, one and many, by either engine's method."""
        ways: list[Callable[[bytes], object]] = [
            lambda record: self.ring.put_many([record], PATIENCE),
            lambda record: Ring.put(self.ring, record, PATIENCE),
            lambda record: Ring.put_many(self.ring, [record], PATIENCE),
        ]
        for way in ways:
            self.mine.begin(self.mine.count + 1)
            way(self.record(0, self.mine.count))
            self.mine.end()

    def see_victim_over(self) -> None:
        """Give the victim what it needs until it has ended, or is stopped."""
        while not is_over(self.victim):
            if not (self.produces or self.closing or self.ring._core.backlog()):
                self.try_to_fill(0)  # others may have taken what was for the victim
            time.sleep(0.002)

    def try_to_fill(self, timeout: float) -> None:
        """Put one more if there is room in time: somebody may be stopped in the section.

        A large one is another process's: the block of a put that gave up may stay with who put
        it, until that one ends, where somebody is stopped in the ring.
        """
        if self.large:
            if not self.givers or is_over(self.givers[-1]):
                self.produce(1)
            return
        with suppress(Full, ClosedError):
            self.ring.put(self.record(0, self.mine.count), timeout)
            self.mine.begin(self.mine.count + 1)
            self.mine.end()

    def advance(self, count: int) -> None:
        """Put and take so many, so that the next is further along in the ring."""
        self.fill(count)
        self.drained.take(*map(unpack, self.ring.get_many(count, 0)))

    def asleep(self, producers: int, consumers: int) -> None:
        """Wait until so many sleep, or the victim is struck or has ended."""

        def are() -> bool:
            _, asleep, also_asleep, _ = self.ring._core.glance()  # enters no section
            return (asleep >= producers and also_asleep >= consumers) or bool(
                self.victim and is_over(self.victim)
            )

        until(are)

    @property
    def mode(self) -> str:
        """How the victim is struck."""
        return self.strike.mode if self.strike else ""


def start(work: Callable[..., object], *args: Any) -> int:
    """Do something in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*args)
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return pid


def until(condition: Callable[[], object]) -> None:
    """Wait until something holds; the test's own timeout is the limit."""
    while not condition():
        time.sleep(0.0005)


def is_over(pid: int) -> bool:
    """Return whether a child has ended, or is stopped."""
    flags = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, pid, flags) is not None


def is_waiting(pid: int) -> bool:
    """Return whether a process sleeps in a call of the kernel."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def code_of(pid: int) -> int:
    """Wait for the end of a child and return its exit code; negative = a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
