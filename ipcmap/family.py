"""The family: every process that shares a region, and who of them died of what.

The public face of the table of process slots (``_core``). A process becomes a
member by itself, the first time that anything of the family needs to know who
it is; children made by any kind of fork are members of their own, and a program
started by exec is none.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ipcmap._core import slot_layout
from ipcmap._core.reference_slots import SlotTable

if TYPE_CHECKING:
    from ipcmap._core.death_log import LoggedDeath
    from ipcmap._core.reference_slots import Step

__all__ = ["ExitRecord", "Family", "Member", "signal_name"]

_CAUSES: dict[int, Literal["unknown", "exited", "killed", "exec"]] = {
    slot_layout.UNKNOWN: "unknown",
    slot_layout.EXITED: "exited",
    slot_layout.KILLED: "killed",
    slot_layout.EXECED: "exec",
    slot_layout.LEFT: "exited",
}


@dataclass(frozen=True)
class ExitRecord:
    """How a process of the family ended.

    Attributes:
        pid: Its pid.
        exitcode: As in multiprocessing: the code it exited with, or minus
            the signal that ended it; ``None`` where its parent was faster to reap it.
        signal: The signal that ended it, else ``None``.
        exception: The exception that ended it, if it left word.
        traceback: The traceback that goes with it.
        cause: ``"exited"``, ``"killed"``, ``"exec"`` (it lives on as another
            program), or ``"unknown"`` where its parent reaped it first and it did
            not come to the end of its interpreter.
        seen_at: When it was found dead, in seconds since the epoch.
    """

    pid: int
    exitcode: int | None
    signal: int | None
    exception: str | None = None
    traceback: str | None = None
    cause: Literal["unknown", "exited", "killed", "exec"] = "unknown"
    seen_at: float = 0.0

    def __str__(self) -> str:
        """Say in short who ended, and of what."""
        if self.exception:
            cause = self.exception
        elif self.signal is not None:
            cause = f"signal={signal_name(self.signal)}"
        elif self.exitcode is not None:
            cause = f"exit code={self.exitcode}"
        else:
            cause = "exec" if self.cause == "exec" else "reaped by somebody else"
        return f"pid={self.pid}, {cause}"


def signal_name(number: int) -> str:
    """Return the name of a signal; of most of the real-time ones, the number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


@dataclass(frozen=True)
class Member:
    """One process of the family, as it was at a moment.

    Attributes:
        pid: Its pid.
        slot: Its slot, 1 and up.
        generation: How many processes had the slot before.
        dying: Whether it was found dead and its things are being released.
        claimed_at: When it became a member, in seconds since the epoch.
        waits_for: What it said it waits for, 0 = nothing.
        holds: What it said it holds, 0 = nothing.
        task: What it said it works on, 0 = nothing.
        puts: How many puts it counted.
        gets: How many gets it counted.
        waits: How many waits it counted.
        recoveries: How many repairs after a death it counted.
    """

    pid: int
    slot: int
    generation: int
    dying: bool
    claimed_at: float
    waits_for: int
    holds: int
    task: int
    puts: int
    gets: int
    waits: int
    recoveries: int


class Family:
    """The processes that share a range of memory.

    Args:
        words: :meth:`nbytes` zeroed bytes of shared memory, cast to ``"Q"``.
        address: Where they begin.
        section: Where an initialised section begins that guards them alone.
        max_processes: How many can be members at a time.

    Raises:
        ValueError: ``max_processes`` is out of range, or the memory too short for it.

    Example:
        >>> import os
        >>> from ipcmap import Mapping
        >>> from ipcmap._core import reference_sections as sections
        >>> region = Mapping.anonymous(sections.NBYTES + Family.nbytes(16))
        >>> sections.initialise(region.address)
        >>> words = region.view(sections.NBYTES).cast("Q")
        >>> family = Family(words, region.address + sections.NBYTES, region.address, 16)
        >>> pid = os.fork()
        >>> if pid == 0:
        ...     _ = family.slot()
        ...     os._exit(3)
        >>> _ = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        >>> family.sweep()
        1
        >>> [(record.pid == pid, record.exitcode) for record in family.deaths()]
        [(True, 3)]
        >>> _ = os.waitpid(pid, 0)
    """

    __slots__ = (
        "__weakref__", "_max_processes", "_table", "cause_of_death", "generation", "holder", "is_dying", "known",
        "known_holder", "leave", "note", "own_page", "pid_of", "slot", "sweep",
    )  # fmt: skip

    def __init__(self, words: memoryview, address: int, section: int, max_processes: int) -> None:
        if len(words) * words.itemsize < self.nbytes(max_processes):
            raise ValueError(
                f"memory is too short for the family: nbytes={len(words) * words.itemsize}, "
                f"max_processes={max_processes}; give it Family.nbytes(max_processes) = "
                f"{self.nbytes(max_processes)} bytes"
            )
        self._table = table = SlotTable(words, address, section, max_processes)
        self._max_processes = max_processes
        # The table's own methods: no frame between a caller and its slot.
        self.slot, self.generation, self.note = table.slot, table.generation, table.note
        self.known, self.is_dying, self.sweep = table.known, table.is_dying, table.sweep
        self.holder, self.known_holder = table.holder, table.known_holder
        self.leave, self.own_page = table.leave, table.own_page
        self.cause_of_death, self.pid_of = table.cause_of_death, table.pid_of
        _families.add(self)

    @staticmethod
    def nbytes(max_processes: int) -> int:
        """Return how much memory a family needs, in bytes.

        Raises:
            ValueError: ``max_processes`` is out of range.
        """
        if not 1 <= max_processes <= slot_layout.MAX_PROCESSES:
            raise ValueError(
                f"max_processes must be 1 to {slot_layout.MAX_PROCESSES}: "
                f"max_processes={max_processes}"
            )
        return slot_layout.nbytes(max_processes)

    @property
    def max_processes(self) -> int:
        """How many processes can be members at a time."""
        return self._max_processes

    def on_death(self, step: Step) -> None:
        """Have a sweep of this process, and of its later children, call ``step(slot, generation)``.

        It is called at least once for each dead member, maybe by two processes at a
        time, in the order of registration and before the slot has another owner. It
        must compare the generation, be idempotent, and not ask for its own slot. Where it
        raises ``Stalled``, the burial is put off until a later sweep.
        """
        self._table.steps = (*self._table.steps, step)

    def members(self) -> list[Member]:
        """Return who is of the family now; stale as soon as it is read."""
        return [
            Member(
                slot.pid,
                slot.number,
                slot.generation,
                slot.state == slot_layout.DYING,
                slot.claimed_at / 1e9,
                *slot.notes,
            )
            for slot in self._table.members()
        ]

    def deaths(self) -> list[ExitRecord]:
        """Return who was found dead so far, oldest first; of very many, the last 1024."""
        return [_exit_record(death) for death in self._table.deaths()]


def _exit_record(death: LoggedDeath) -> ExitRecord:
    exitcode = signal = None
    if death.cause == slot_layout.EXITED:
        exitcode = death.status
    elif death.cause == slot_layout.KILLED:
        exitcode, signal = -death.status, death.status
    return ExitRecord(
        death.pid,
        exitcode,
        signal,
        cause=_CAUSES[death.cause],
        seen_at=death.seen_at / 1e9,
    )


# Who ends by itself says so: what it holds then stays taken, as in multiprocessing.
_families: weakref.WeakSet[Family] = weakref.WeakSet()
_known_to_multiprocessing: list[bool] = []


@atexit.register
def _leave_all() -> None:
    for family in list(_families):
        family.leave()


def _leave_with_multiprocessing() -> None:
    """Have multiprocessing's children say it too: they end by os._exit, after its finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is None or _known_to_multiprocessing:
        return
    _known_to_multiprocessing.append(True)

    def after_fork(_: object) -> None:
        # Priorities below 0 are taken last; the registry was emptied just before.
        util.Finalize(None, _leave_all, exitpriority=-1000)

    util.register_after_fork(_leave_all, after_fork)


os.register_at_fork(before=_leave_with_multiprocessing)
