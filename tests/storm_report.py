"""What can be seen of a family from outside: who is in which section, and of one that hangs, all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import watcher
from ipcmap import Arena, Ring
from ipcmap._core import ring_layout
from ipcmap._core.layout import SLOTS_SECTION
from ipcmap.structure import Structure
from processes import facts, processes

OWNER = 0x3FFFFFFF  # of a robust mutex's first word: the thread that has it, for the kernel


def sections(arena: Arena, things: Iterable[Structure]) -> dict[str, memoryview]:
    """Return the word of each section that says who is inside."""
    found = {"slots": _word(arena._open().words, SLOTS_SECTION)}
    for thing in things:
        name = f"{type(thing).__name__} at {thing._cell.offset}"
        if isinstance(thing, Ring):
            found[f"{name}, producers"] = _word(thing._memory, ring_layout.PRODUCERS_SECTION)
            found[f"{name}, consumers"] = _word(thing._memory, ring_layout.CONSUMERS_SECTION)
        else:
            found[name] = _word(thing._memory, 0)
    return found


def _word(memory: memoryview, at: int) -> memoryview:
    return memory.cast("B")[at : at + 4].cast("I")


def report(pids: dict[int, str], dumps: int, arena: Arena, things: Sequence[Structure]) -> str:
    """Return it as lines; the processes are named as ``pids`` says, and write to ``dumps``."""
    lines = [str(member) for member in arena._open().family.members()]
    lines += [f"{thing!r}" for thing in things]
    for thing in things:
        if isinstance(thing, Ring):
            lines.append(f"its words: {thing._memory[: ring_layout.RECORDS].cast('Q').tolist()}")
    for name, word in sections(arena, things).items():
        owner = word[0] & OWNER
        lines.append(f"section of {name}: {f'thread {owner} is inside' if owner else 'free'}")
    # Stopped ones last, since they have to be woken and may then change what others do.
    family = [process for process in processes() if process.pid in pids]
    for process in sorted(family, key=lambda process: process.state == "T"):
        lines.append(f"--- {pids[process.pid]}: {facts(process)}")
        lines.append(watcher.stacks(process.pid, dumps))
    return "\n".join(lines)
