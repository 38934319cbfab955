"""The zygotes of a test and their children, and what tests have these do."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import executors as work
from ipcmap import Ring
from ipcmap.zygote import Zygote, ZygoteProcess
from processes import children, read


def say_so(ring: Ring) -> None:
    """Say that one runs."""
    ring.put(b"%d" % os.getpid())


class Household:
    """The zygotes of a test, and who are our children for them."""

    def __init__(self) -> None:
        self.strangers = pids_of(os.getpid())
        self.zygotes: list[Zygote] = []

    def zygote(self) -> Zygote:
        """Make one, without a target."""
        self.zygotes.append(Zygote())
        return self.zygotes[-1]

    def children(self) -> set[int]:
        """Return who is there, dead or alive, beside the zygotes."""
        known = {zygote.pid for zygote in self.zygotes}
        return pids_of(os.getpid()) - self.strangers - known

    def spare(self) -> int:
        """Wait until there is one; return its pid."""
        work.wait_until(lambda: len(self.children()) == 1)
        (pid,) = self.children()
        return pid

    def close(self) -> None:
        """Close the zygotes; nobody is left."""
        for zygote in self.zygotes:
            zygote.close()
        self.zygotes = []
        assert not self.children()


def pids_of(parent: int) -> set[int]:
    """Return the pids of the children of a process."""
    return {one.pid for one in children(parent) or []}


def runs(zygote: Zygote) -> int:
    """Have a worker forked, see that it does its work and ends well; return its pid."""
    said = Ring()
    worker = ZygoteProcess(zygote, say_so, (said,))
    worker.start()
    pid = int(said.get())
    worker.join()
    assert (pid, worker.exitcode) == (worker.pid, 0)
    worker.close()
    return pid


def waits(pid: int) -> bool:
    """Return whether a spare waits for its request: it has unblocked its signals, and sleeps."""
    status = read(f"/proc/{pid}/status")
    blocked = status.partition("SigBlk:")[2].split()[:1]
    return blocked == ["0" * 16] and "State:\tS" in status


@pytest.fixture
def home() -> Iterator[Household]:
    """A household, which is closed in the end and leaves nobody."""
    home = Household()
    yield home
    home.close()
