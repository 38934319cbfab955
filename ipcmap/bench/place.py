"""A process of its own for each measurement, the helpers that it forks, and its deadline.

    bench ---fork---> the measuring process ---fork---> helpers: producers, consumers, echoes
          <--answer--                       <--orders-->

Peers are imported, opened and used in the measuring process and its helpers alone: what
one of them wedges, breaks or leaks ends with that process. Every child dies with its
parent, so ending the measuring process ends all of it, by deadline, by Ctrl-C, or
because somebody killed the benchmark. A helper that fails answers in place of the
process that waits for it.
"""

from __future__ import annotations

import contextlib
import glob
import multiprocessing
import os
import select
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from ipcmap.bench.channels import Unfit
from ipcmap.process import Process

__all__ = ["Crew", "Effort", "Failure", "Figures", "Place", "Wrong", "measure_apart"]

Figures = dict[str, float]
"""What a measurement came to: seconds, bytes and counts by name."""

_END_OF_ALL = 5.0  # seconds for helpers to be gone after the process that forked them


class Wrong(Exception):
    """What was received is not what was sent."""


@dataclass(frozen=True)
class Failure:
    """Why there are no figures: ``kind`` is "left out", "failed" or "wrong"."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Effort:
    """How much work a row is given.

    Attributes:
        repeats: How often each measurement is repeated, peers in turn.
        sweep_repeats: The same for rows of several points.
        seconds: How long records are sent, at least.
        wake_ups: Round trips, each after a pause.
        idle_seconds: How long waiting consumers are watched.
        consumers: How many of them.
        channels: How many channels are made to weigh one.
        deadline: Seconds after which a measurement is given up.
    """

    repeats: int
    sweep_repeats: int
    seconds: float
    wake_ups: int
    idle_seconds: float
    consumers: int
    channels: int
    deadline: float


class Place:
    """Where one measurement runs: what it may use, and the helpers that it forks."""

    def __init__(self, effort: Effort, folder: str, answer: Connection) -> None:
        self.effort, self.folder = effort, folder
        self._answer = answer

    def crew(self, count: int, work: Callable[[int, Connection], object]) -> Crew:
        """Fork ``count`` helpers; ``work`` gets its number and a connection for orders."""
        return Crew(count, work, self._answer)


class Crew:
    """Helpers, which are ended when the block is left."""

    def __init__(
        self, count: int, work: Callable[[int, Connection], object], answer: Connection
    ) -> None:
        self.orders: list[Connection] = []
        self._helpers: list[Process] = []
        for number in range(count):
            ours, theirs = multiprocessing.Pipe()
            helper = Process(target=_help, args=(work, number, theirs, answer))
            helper.start()
            theirs.close()
            self.orders.append(ours)
            self._helpers.append(helper)

    @property
    def pids(self) -> list[int]:
        """Who they are."""
        return [helper.pid for helper in self._helpers if helper.pid]

    def tell(self, order: object) -> None:
        """Give an order to every helper."""
        for orders in self.orders:
            orders.send(order)

    def hear(self) -> list[Any]:
        """Return what each of them sends next."""
        return [orders.recv() for orders in self.orders]

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for helper in self._helpers:
            helper.kill()
        for helper in self._helpers:
            helper.join()
        for orders in self.orders:
            orders.close()


def _help(
    work: Callable[[int, Connection], object], number: int, orders: Connection, answer: Connection
) -> None:
    try:
        work(number, orders)
        # It stays until it is ended: a library's own farewell at exit is not measured.
        signal.pause()
    except BaseException as error:
        answer.send(_failure(error))
    finally:
        os._exit(0)


def measure_apart(
    measure: Callable[[Place], Figures], effort: Effort, folder: Path
) -> Figures | Failure:
    """Measure in a process of its own; give up at the deadline. Nothing of it is left after."""
    answer, theirs = multiprocessing.Pipe(duplex=False)
    noise = folder / "noise"
    process = Process(target=_measure, args=(measure, effort, folder, theirs, noise))
    try:
        process.start()
        theirs.close()
        try:
            in_time = answer.poll(effort.deadline)
            found = answer.recv() if in_time else None
        except EOFError:
            process.join()
            record = process.exit_record
            died = record and record.signal and signal.Signals(record.signal).name
            return Failure("failed", f"the process died of {died}{_last_line(noise)}")
        if isinstance(found, (dict, Failure)):
            return found
        return Failure("failed", f"no result within {effort.deadline:g} s{_last_line(noise)}")
    finally:
        if process.pid:
            process.kill()
            process.join()
            _remove_semaphores(process.pid)
            process.close()
        theirs.close()
        _wait_for_the_end(answer)
        answer.close()


def _remove_semaphores(pid: int) -> None:
    """Remove the names that loky gives them, and leaves where its process is killed."""
    for name in glob.glob(f"/dev/shm/sem.loky-{pid}-*"):
        with contextlib.suppress(FileNotFoundError):  # or it does so itself
            os.unlink(name)


def _wait_for_the_end(answer: Connection) -> None:
    """Return when nobody has the other end any more."""
    poll = select.poll()
    poll.register(answer.fileno(), select.POLLIN)
    give_up = time.monotonic() + _END_OF_ALL
    while poll.poll(1000 * max(0.0, give_up - time.monotonic())):
        if not os.read(answer.fileno(), 65536):
            return


def _measure(
    measure: Callable[[Place], Figures],
    effort: Effort,
    folder: Path,
    answer: Connection,
    noise: Path,
) -> None:
    try:
        # Ctrl-C is the benchmark's to handle; what it interrupts here would complain.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(noise, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        warnings.simplefilter("ignore")
        answer.send(measure(Place(effort, str(folder), answer)))
    except BaseException as error:
        answer.send(_failure(error))
    finally:
        os._exit(0)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, Wrong):
        return Failure("wrong", str(error))
    if isinstance(error, (Unfit, ImportError)):
        return Failure("left out", str(error))
    return Failure("failed", f"{type(error).__name__}: {error}"[:500])


def _last_line(noise: Path) -> str:
    try:
        lines = noise.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    said = [line for line in lines if line.strip()]
    return f": {said[-1].strip()[:200]}" if said else ""
