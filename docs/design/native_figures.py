"""Print the figures of note 0006, of a worker's start in 0010, and for note 0007 those of two builds.

    python docs/design/native_figures.py [ROW...]

Each figure is of the best of many short rounds: what others do on the machine only ever adds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipcmap
from ipcmap import Arena, Mapping, Process, Ring
from ipcmap.zygote import Zygote, ZygoteProcess

SECONDS = 2.0  # for each figure
RECORD = b"x" * 64
BATCH = [RECORD] * 100


def best(round_of: Callable[[], int]) -> float:
    """Return the nanoseconds of one record in the best round; a round says how many it had."""
    figures = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or not figures:
        begin = time.perf_counter_ns()
        count = round_of()
        figures.append((time.perf_counter_ns() - begin) / count)
    return min(figures)


def alone(record: bytes, count: int = 300) -> Iterator[str]:
    """Put and get in one process."""
    ring = Ring()
    put, get, each = ring.put, ring.get, range(count)
    puts, gets = [], []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        for _ in each:
            put(record)
        middle = time.perf_counter_ns()
        for _ in each:
            get()
        gets.append((time.perf_counter_ns() - middle) / count)
        puts.append((middle - begin) / count)
    yield f"put {min(puts):.1f} ns, get {min(gets):.1f} ns"


def pair(record: bytes) -> Iterator[str]:
    """Put one, get one."""
    ring = Ring()

    def one_round() -> int:
        for _ in range(300):
            ring.put(record)
            ring.get()
        return 300

    yield f"put and get {best(one_round):.1f} ns"


PAIRS = """
import sys
from ipcmap import Arena, Ring

def main(rounds):
    ring = Ring(arena=Arena(reserve=1 << 28))  # valgrind has no room for more
    put, get, record, hundred = ring.put, ring.get, b"x" * 64, range(100)
    for _ in range(rounds):
        for _ in hundred:
            put(record)
        for _ in hundred:
            get()

main(int(sys.argv[1]))
"""


def instructions() -> Iterator[str]:
    """Count those of put, get, and the loops around them, by callgrind."""
    counts = []
    for rounds in (100, 1100):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        program = [sys.executable, "-P", "-c", PAIRS, str(rounds)]
        told = subprocess.run([*command, *program], capture_output=True, text=True, check=True)
        found = re.search(r"Collected : (\d+)", told.stderr)
        assert found, told.stderr
        counts.append(int(found[1]))
    yield f"{(counts[1] - counts[0]) / 100_000:,.0f} for a put and its get"


def batches() -> Iterator[str]:
    """Put and get a hundred."""
    ring = Ring()

    def one_round() -> int:
        ring.put_many(BATCH)
        return len(ring.get_many())

    yield f"put and get {best(one_round):.1f} ns a record"


def stream(producers: int, batch: bool) -> Iterator[str]:
    """One consumer, and producers that never stop."""
    ring = Ring()

    def produce() -> None:
        while True:
            if batch:
                ring.put_many(BATCH)
            else:
                for _ in range(1000):
                    ring.put(RECORD)

    def one_round() -> int:
        """Take more than the ring holds, many times over."""
        count = 0
        while count < 500_000:
            if batch:
                count += len(ring.get_many())
            else:
                for _ in range(1000):
                    ring.get()
                count += 1000
        return count

    children = [Process(target=produce, daemon=True) for _ in range(producers)]
    for child in children:
        child.start()
    yield f"{1e3 / best(one_round):.1f} million records a second"
    for child in children:
        child.kill()
        child.join()


def round_trip() -> Iterator[str]:
    """There and back."""
    there, back = Ring(), Ring()

    def echo() -> None:
        while True:
            back.put(there.get())

    def one_round() -> int:
        for _ in range(300):
            there.put(RECORD)
            back.get()
        return 300

    child = Process(target=echo, daemon=True)
    child.start()
    yield f"{best(one_round) / 1e3:.2f} µs"
    child.kill()
    child.join()


def idle() -> Iterator[str]:
    """What a consumer uses that waits."""
    ring = Ring()
    begin, used = time.perf_counter(), time.process_time()
    with contextlib.suppress(queue.Empty):
        ring.get(5 * SECONDS)
    spent = (time.process_time() - used) / (time.perf_counter() - begin)
    yield f"{100 * spent:.2f} % of a CPU"


def makers_of(name: str) -> dict[str, Callable[..., Any]]:
    """Return who makes a lock of this name: each engine, and multiprocessing."""
    public = getattr(ipcmap, name)
    context = multiprocessing.get_context("fork")
    engines = {engine: Arena(1 << 24, backend=engine) for engine in ipcmap._core.engines}
    return {
        **{
            engine: lambda *values, arena=arena: public(*values, arena=arena)
            for engine, arena in engines.items()
        },
        "multiprocessing": getattr(context, name),
    }


def guard(name: str, *values: int) -> Iterator[str]:
    """Take it and give it back, by two calls and by ``with``."""
    for who, make in makers_of(name).items():
        lock = make(*values)
        acquire, release = lock.acquire, lock.release

        def calls(acquire: Any = acquire, release: Any = release) -> int:
            for _ in range(300):
                acquire()
                release()
            return 300

        def with_block(lock: Any = lock) -> int:
            for _ in range(300):
                with lock:
                    pass
            return 300

        yield f"{best(calls):7.1f} ns, with {best(with_block):7.1f} ns: {who}"


def contention(processes: int) -> Iterator[str]:
    """Have processes take and give back one lock as fast as they can."""
    for who, make in makers_of("Lock").items():
        lock, counts = make(), Mapping.anonymous(8 * processes).view().cast("Q")

        def work(number: int, lock: Any = lock, counts: memoryview = counts) -> None:
            while True:
                for _ in range(100):
                    with lock:
                        pass
                counts[number] += 100

        children = [Process(target=work, args=(n,), daemon=True) for n in range(processes)]
        for child in children:
            child.start()
        while not all(counts):
            time.sleep(0.001)
        begin, before = time.perf_counter(), sum(counts)
        time.sleep(SECONDS)
        rate = (sum(counts) - before) / (time.perf_counter() - begin)
        for child in children:
            child.kill()
            child.join()
        yield f"{rate / 1e6:7.2f} million a second: {who}"


def start(pause: float) -> Iterator[str]:
    """Have a zygote start workers, so many seconds after the last one's end."""
    ring = Ring()
    zygote = Zygote(lambda: ring.put(b"%d" % time.perf_counter_ns()))
    returned, ran = [], []
    for _ in range(200):
        time.sleep(pause)
        worker = ZygoteProcess(zygote, ring.put)
        begin = time.perf_counter_ns()
        worker.start()
        returned.append(time.perf_counter_ns() - begin)
        ran.append(int(ring.get()) - begin)
        worker.join()
        worker.let_go()
    zygote.close()
    yield (
        f"function after {statistics.median(ran) / 1e6:.2f} ms, "
        f"start() returns after {statistics.median(returned) / 1e6:.2f} ms, medians"
    )


ROWS: dict[str, Callable[[], Iterator[str]]] = {
    "alone": lambda: alone(RECORD),
    "pair": lambda: pair(RECORD),
    "instructions": instructions,
    "4 KiB": lambda: pair(bytes(4096)),
    "batches": batches,
    "stream": lambda: stream(1, batch=False),
    "stream, batches": lambda: stream(1, batch=True),
    "stream, 8 producers": lambda: stream(8, batch=False),
    "round trip": round_trip,
    "idle": idle,
    "start": lambda: start(0.02),
    "start, at once": lambda: start(0.0),
    "Lock": lambda: guard("Lock"),
    "RLock": lambda: guard("RLock"),
    "Semaphore": lambda: guard("Semaphore", 3),
    "Lock, 2 processes": lambda: contention(2),
    "Lock, 4 processes": lambda: contention(4),
}


def main() -> None:
    """Print a line for each figure."""
    print(f"ipcmap {ipcmap.__version__}, {ipcmap.backend} engine")
    for name in sys.argv[1:] or ROWS:
        for figure in ROWS[name]():
            print(f"{name:<20} {figure}", flush=True)


if __name__ == "__main__":
    main()
