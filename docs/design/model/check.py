#!/usr/bin/env python3
"""Check the models of ipcmap's protocol with spin.

Every configuration must come out clean, its search complete. Every mutant, which is a
configuration with one rule broken, must be caught: a rule whose absence nobody notices is not
tested.

Exit status: 0 all as it should be, 1 not, 2 wrong usage or a tool is missing.
"""

from __future__ import annotations

import argparse
import enum
import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAX_DEPTH = 20_000  # steps; a search that wants more is reported, never passed over
MEMORY_LIMIT = 2_500  # MiB for each search
LONG_MEMORY_LIMIT = 5_000  # MiB, with --long
COMPLAINT_WIDTH = 60  # characters of pan's complaint in the table
TIME_LIMIT = 3_600  # seconds for each search


class Search(enum.Enum):
    """What spin looks for."""

    SAFETY = "safety"  # assertions and invalid end states
    CYCLES = "cycles"  # a run that never ends


@dataclass(frozen=True)
class Configuration:
    """One model with its sizes. Clean, or the protocol is wrong."""

    name: str
    model: str
    flags: str
    search: Search = Search.SAFETY
    long: bool = False


@dataclass(frozen=True)
class Mutant:
    """A configuration with one rule broken. Caught, or the model is blind."""

    base: str
    flag: str


@dataclass(frozen=True)
class Run:
    """What is built and searched."""

    name: str
    configuration: Configuration
    mutation: str | None


@dataclass(frozen=True)
class Outcome:
    """What pan said."""

    run: Run
    states: int
    depth: int
    seconds: float
    errors: int
    complaint: str
    trail: str

    @property
    def good(self) -> bool:
        """Whether it is what it should be."""
        if self.errors < 0:
            return False
        return (self.errors > 0) == (self.run.mutation is not None)

    @property
    def verdict(self) -> str:
        """One phrase for the table."""
        if self.errors < 0:
            return f"INCOMPLETE: {self.complaint}"
        if self.run.mutation is None:
            return "clean" if self.errors == 0 else f"ERROR: {self.complaint}"
        return f"caught: {self.complaint}" if self.errors else "NOT CAUGHT"


def _both(
    name: str, model: str, flags: str, search: Search = Search.SAFETY, *, long: bool = False
) -> list[Configuration]:
    """Return the same sizes for both ways of parking: with fences, and inside sections."""
    return [
        Configuration(f"{name}.fence", model, flags, search, long),
        Configuration(f"{name}.section", model, f"{flags} SECTION_PARK", search, long),
    ]


_PARK = "EARLY=0 LEAVING=0 FILLED=0"
_CLOSE = "EARLY=0 LEAVING=0"
_BLOCK = "NP=1 NC=2 NS=1 PUTS=2 CAPACITY=1 NB=2"
_CROWD = "NP=2 NC=1 NS=2 PUTS=1 CAPACITY=2 NB=2"

CONFIGURATIONS: list[Configuration] = [
    # Parking: nobody dies, so every wake-up has to come from a post.
    *_both("park.handover", "park", f"NP=1 NC=2 PUTS=2 GETS=1 CAPACITY=2 {_PARK}"),
    *_both(
        "park.leave",
        "park",
        "NP=1 NC=2 PUTS=2 GETS=1 CAPACITY=2 FILLED=0 EARLY=1 LEAVING=1",
    ),
    *_both("park.herd", "park", f"NP=1 NC=3 PUTS=3 GETS=1 CAPACITY=3 {_PARK}"),
    *_both("park.room", "park", "NP=2 NC=1 PUTS=1 GETS=2 CAPACITY=2 FILLED=2 EARLY=0 LEAVING=0"),
    *_both("park.tight", "park", f"NP=2 NC=2 PUTS=1 GETS=1 CAPACITY=1 {_PARK}"),
    *_both("park.busy", "park", f"NP=2 NC=2 PUTS=2 GETS=2 CAPACITY=1 {_PARK}", long=True),
    *_both("park.redeliver", "park", f"NP=1 NC=2 PUTS=1 GETS=1 CAPACITY=1 REDELIVERY {_PARK}"),
    # Parking with kills and stops: late by one slice for each at most.
    *_both("park.kill", "park", f"NP=1 NC=2 PUTS=2 GETS=2 CAPACITY=1 CACHED MAX_DEATHS=1 {_PARK}"),
    *_both("park.kill2", "park", f"NP=1 NC=2 PUTS=2 GETS=1 CAPACITY=1 MAX_DEATHS=2 {_PARK}"),
    *_both(
        "park.kill_leave",
        "park",
        "NP=1 NC=2 PUTS=2 GETS=1 CAPACITY=2 MAX_DEATHS=1 FILLED=0 EARLY=1 LEAVING=1",
    ),
    *_both(
        "park.kill_room",
        "park",
        "NP=2 NC=1 PUTS=1 GETS=2 CAPACITY=2 FILLED=2 MAX_DEATHS=1 EARLY=0 LEAVING=0",
    ),
    *_both(
        "park.kill_redeliver",
        "park",
        f"NP=1 NC=2 PUTS=1 GETS=1 CAPACITY=1 REDELIVERY MAX_DEATHS=1 {_PARK}",
    ),
    *_both("park.stop", "park", f"NP=1 NC=2 PUTS=2 GETS=1 CAPACITY=1 MAX_STOPS=1 {_PARK}"),
    *_both(
        "park.ends",
        "park",
        f"NP=1 NC=2 PUTS=2 GETS=1 CAPACITY=1 MAX_DEATHS=1 {_PARK}",
        Search.CYCLES,
    ),
    *_both(
        "park.herd_kill",
        "park",
        f"NP=1 NC=3 PUTS=3 GETS=1 CAPACITY=3 MAX_DEATHS=1 {_PARK}",
        long=True,
    ),
    *_both(
        "park.tight_kill",
        "park",
        f"NP=2 NC=2 PUTS=1 GETS=1 CAPACITY=1 MAX_DEATHS=1 {_PARK}",
        long=True,
    ),
    *_both(
        "park.tight_stop",
        "park",
        f"NP=2 NC=2 PUTS=1 GETS=1 CAPACITY=1 MAX_DEATHS=1 MAX_STOPS=1 {_PARK}",
        long=True,
    ),
    # Room for records of different sizes.
    Configuration(
        "sizes.equal", "sizes", "NP=3 NEED0=1 NEED1=1 NEED2=1 GETS=3 CAPACITY=4 SLICES=0"
    ),
    Configuration(
        "sizes.mixed", "sizes", "NP=3 NEED0=2 NEED1=1 NEED2=2 GETS=1 CAPACITY=4 SLICES=1"
    ),
    Configuration(
        "sizes.two", "sizes", "NP=2 NEED0=2 NEED1=1 NEED2=0 GETS=1 CAPACITY=4 SLICES=0 PASS_ON"
    ),
    Configuration(
        "sizes.ends",
        "sizes",
        "NP=3 NEED0=3 NEED1=1 NEED2=2 GETS=2 CAPACITY=4 SLICES=1",
        Search.CYCLES,
    ),
    # The end of a ring.
    *_both("close.detach", "close", f"NP=1 NC=2 PUTS=1 GETS=9 CAPACITY=1 {_CLOSE}"),
    *_both("close.three", "close", f"NP=1 NC=3 PUTS=1 GETS=9 CAPACITY=1 {_CLOSE}", long=True),
    *_both("close.enough", "close", f"NP=1 NC=2 PUTS=1 GETS=1 CAPACITY=1 {_CLOSE}"),
    *_both("close.drain", "close", f"NP=1 NC=1 PUTS=2 GETS=9 CAPACITY=1 CLOSER {_CLOSE}"),
    *_both("close.full", "close", f"NP=2 NC=1 PUTS=2 GETS=1 CAPACITY=1 CLOSER {_CLOSE}"),
    *_both("close.many", "close", f"NP=1 NC=2 PUTS=1 GETS=9 CAPACITY=1 CLOSER {_CLOSE}", long=True),
    *_both("close.kill", "close", f"NP=1 NC=2 PUTS=1 GETS=9 CAPACITY=1 MAX_DEATHS=1 {_CLOSE}"),
    *_both("close.kill2", "close", f"NP=2 NC=1 PUTS=1 GETS=9 CAPACITY=2 MAX_DEATHS=2 {_CLOSE}"),
    *_both(
        "close.kill_closer",
        "close",
        f"NP=1 NC=1 PUTS=1 GETS=9 CAPACITY=1 CLOSER MAX_DEATHS=2 {_CLOSE}",
    ),
    *_both("close.stop", "close", f"NP=1 NC=2 PUTS=1 GETS=9 CAPACITY=1 MAX_STOPS=1 {_CLOSE}"),
    *_both(
        "close.ends",
        "close",
        f"NP=1 NC=1 PUTS=1 GETS=9 CAPACITY=1 CLOSER MAX_DEATHS=1 {_CLOSE}",
        Search.CYCLES,
    ),
    *_both(
        "close.many_kill",
        "close",
        f"NP=1 NC=2 PUTS=1 GETS=9 CAPACITY=1 CLOSER MAX_DEATHS=1 {_CLOSE}",
        long=True,
    ),
    # Records, stubs and padding.
    Configuration("ring.calm", "ring", "NP=2 NC=2 PUTS=2 CAPACITY=6"),
    Configuration("ring.kill", "ring", "NP=2 NC=2 PUTS=1 CAPACITY=6 MAX_DEATHS=1"),
    Configuration("ring.order", "ring", "NP=2 NC=1 PUTS=2 CAPACITY=6 MAX_DEATHS=1"),
    Configuration("ring.wrap", "ring", "NP=1 NC=1 PUTS=4 CAPACITY=6 MAX_DEATHS=1"),
    Configuration("ring.heirs", "ring", "NP=2 NC=1 PUTS=3 CAPACITY=6 MAX_DEATHS=1"),
    Configuration("ring.equal", "ring", "NP=2 NC=1 PUTS=2 CAPACITY=4 MAX_DEATHS=1 EQUAL"),
    Configuration("ring.kill2", "ring", "NP=2 NC=2 PUTS=1 CAPACITY=6 MAX_DEATHS=2"),
    Configuration("ring.batch", "ring", "NP=1 NC=2 PUTS=3 CAPACITY=6 MAX_DEATHS=2 BATCH"),
    Configuration("ring.stop", "ring", "NP=2 NC=2 PUTS=1 CAPACITY=6 MAX_DEATHS=1 MAX_STOPS=1"),
    Configuration("ring.ends", "ring", "NP=2 NC=2 PUTS=1 CAPACITY=6 MAX_DEATHS=1", Search.CYCLES),
    Configuration("ring.long", "ring", "NP=2 NC=2 PUTS=2 CAPACITY=6 MAX_DEATHS=2", long=True),
    # Listeners.
    Configuration("listen.calm", "listen", "NP=2 NL=2 PUTS=2"),
    Configuration("listen.end", "listen", "NP=2 NL=2 PUTS=1 CLOSES"),
    Configuration("listen.lazy", "listen", "NP=1 NL=2 PUTS=2 LAZY=1"),
    Configuration("listen.kill", "listen", "NP=2 NL=2 PUTS=1 MAX_DEATHS=1"),
    Configuration("listen.kill2", "listen", "NP=2 NL=1 PUTS=2 CLOSES MAX_DEATHS=2"),
    Configuration("listen.stop", "listen", "NP=2 NL=2 PUTS=1 MAX_STOPS=1"),
    Configuration("listen.ends", "listen", "NP=2 NL=1 PUTS=2 MAX_DEATHS=1", Search.CYCLES),
    Configuration("listen.exact", "listen", "NP=2 NL=1 PUTS=2 EXACT OTHERS=2"),
    Configuration("listen.exact.end", "listen", "NP=2 NL=1 PUTS=1 CLOSES EXACT OTHERS=2"),
    Configuration("listen.exact.kill", "listen", "NP=2 NL=1 PUTS=2 EXACT OTHERS=1 MAX_DEATHS=1"),
    # Waiting for room by a descriptor, in lines of one process.
    Configuration("room.calm", "room", "NL=2 NEED0=1 NEED1=2 NC=1 GETS=3 CAPACITY=3"),
    Configuration("room.little", "room", "NL=2 NEED0=1 NEED1=2 NC=1 GETS=1 CAPACITY=3"),
    Configuration("room.two", "room", "NL=2 NEED0=1 NEED1=2 NC=2 GETS=2 CAPACITY=4"),
    Configuration("room.kill", "room", "NL=2 NEED0=1 NEED1=2 NC=2 GETS=2 CAPACITY=4 MAX_DEATHS=1"),
    Configuration("room.kill2", "room", "NL=1 NEED0=2 NEED1=1 NC=2 GETS=2 CAPACITY=3 MAX_DEATHS=2"),
    Configuration("room.stop", "room", "NL=2 NEED0=1 NEED1=2 NC=1 GETS=3 CAPACITY=3 MAX_STOPS=1"),
    # Events that are awaited.
    Configuration("event.set", "event", "NS=2 NL=2 SETS=1"),
    Configuration("event.pulse", "event", "NS=1 NL=2 SETS=2 PULSE"),
    Configuration("event.pulses", "event", "NS=2 NL=1 SETS=2 PULSE"),
    Configuration("event.clock", "event", "NS=1 NL=1 SETS=2 PULSE CLOCK"),
    Configuration("event.kill", "event", "NS=2 NL=2 SETS=1 MAX_DEATHS=1"),
    Configuration("event.kill2", "event", "NS=2 NL=1 SETS=1 PULSE MAX_DEATHS=2"),
    Configuration("event.stop", "event", "NS=2 NL=2 SETS=1 MAX_STOPS=1"),
    # Attached producers.
    Configuration("producers.calm", "producers", "NP=3 NS=1"),
    Configuration("producers.kill", "producers", "NP=3 NS=2 MAX_DEATHS=1"),
    Configuration("producers.kill2", "producers", "NP=2 NS=2 MAX_DEATHS=2"),
    Configuration("producers.stop", "producers", "NP=2 NS=2 MAX_DEATHS=2 MAX_STOPS=1"),
    Configuration("producers.ends", "producers", "NP=2 NS=1 MAX_DEATHS=2", Search.CYCLES),
    # Blocks.
    Configuration("block.get", "block", f"{_BLOCK} MAX_DEATHS=1"),
    Configuration("block.lease", "block", f"{_BLOCK} MAX_DEATHS=1 LEASE"),
    Configuration("block.mixed", "block", f"{_BLOCK} MAX_DEATHS=1 MIXED"),
    Configuration("block.inline", "block", f"{_BLOCK} MAX_DEATHS=1 LEASE INLINE_RECORDS"),
    Configuration("block.inline_mixed", "block", f"{_BLOCK} MAX_DEATHS=1 MIXED INLINE_RECORDS"),
    Configuration("block.crowd", "block", f"{_CROWD} MAX_DEATHS=1"),
    Configuration("block.sweepers", "block", f"{_BLOCK} NS=2 MAX_DEATHS=1 LEASE"),
    Configuration("block.newcomer", "block", f"{_CROWD} MAX_DEATHS=1 NEWCOMER"),
    Configuration(
        "block.returned",
        "block",
        "NP=1 NC=3 NS=1 PUTS=1 CAPACITY=1 NB=1 MAX_DEATHS=1 SWEEPERS_LIVE LEASE",
    ),
    Configuration(
        "block.lease2",
        "block",
        "NP=1 NC=2 NS=1 PUTS=1 CAPACITY=1 NB=2 MAX_DEATHS=2 SWEEPERS_LIVE LEASE",
    ),
    Configuration(
        "block.inline2",
        "block",
        "NP=1 NC=2 NS=1 PUTS=1 CAPACITY=1 NB=2 MAX_DEATHS=2 SWEEPERS_LIVE LEASE INLINE_RECORDS",
    ),
    Configuration("block.stop", "block", f"{_BLOCK} MAX_DEATHS=1 MAX_STOPS=1 SWEEPERS_LIVE LEASE"),
    Configuration(
        "block.sweeper_dies",
        "block",
        "NP=1 NC=2 NS=2 PUTS=1 CAPACITY=1 NB=1 MAX_DEATHS=2 LEASE",
    ),
    Configuration("block.ends", "block", f"{_BLOCK} MAX_DEATHS=1 MIXED", Search.CYCLES),
    Configuration(
        "block.long",
        "block",
        "NP=1 NC=2 NS=2 PUTS=2 CAPACITY=2 NB=2 MAX_DEATHS=2 LEASE",
        long=True,
    ),
]

MUTANTS: list[Mutant] = [
    Mutant("park.handover.fence", "NO_RECHECK"),
    Mutant("park.handover.section", "NO_RECHECK"),
    Mutant("park.handover.fence", "NO_FENCE_SLEEPER"),
    Mutant("park.handover.fence", "NO_FENCE_POSTER"),
    Mutant("park.handover.fence", "PLAIN_ANNOUNCE"),
    Mutant("park.handover.fence", "NO_CHAIN_CONSUMERS"),
    Mutant("park.handover.section", "NO_CHAIN_CONSUMERS"),
    Mutant("park.herd.fence", "NOTE_STALE"),
    Mutant("park.herd.section", "NOTE_STALE"),
    Mutant("park.room.fence", "NO_CHAIN_PRODUCERS"),
    Mutant("park.room.section", "NO_CHAIN_PRODUCERS"),
    Mutant("park.room.fence", "NO_RECHECK"),
    Mutant("park.room.fence", "NO_FENCE_SLEEPER"),
    Mutant("park.room.fence", "NO_FENCE_POSTER"),
    Mutant("park.handover.section", "OWN_SECTION"),
    Mutant("park.ends.fence", "HAND_BACK"),
    Mutant("park.leave.fence", "LEAVE_WITH_TOKEN"),
    Mutant("park.leave.section", "LEAVE_WITH_TOKEN"),
    Mutant("park.kill.fence", "TOKEN_FLAG"),
    Mutant("park.kill.fence", "SWEEP_RETIRES"),
    Mutant("park.kill2.fence", "NO_SLICE"),
    Mutant("park.kill2.fence", "NOT_ROBUST"),
    Mutant("park.kill2.section", "NO_SLICE"),
    Mutant("park.stop.fence", "NO_SLICE"),
    Mutant("sizes.mixed", "SLICES=0"),
    Mutant("sizes.mixed", "SLICES=0 PASS_ON"),
    Mutant("sizes.ends", "PASS_ON_ALWAYS"),
    Mutant("close.drain.fence", "POSITION_BEFORE_CLOSED"),
    Mutant("close.drain.fence", "CLOSE_OUTSIDE_P"),
    Mutant("close.detach.fence", "NO_FENCE_POSTER"),
    Mutant("close.detach.fence", "NO_CHAIN_END"),
    Mutant("close.detach.fence", "END_ONLY_FROM_SLEEP"),
    Mutant("close.detach.section", "END_ONLY_FROM_SLEEP"),
    Mutant("close.enough.fence", "NO_CHAIN_END"),
    Mutant("close.detach.fence", "NO_DETACH_POST"),
    Mutant("close.full.fence", "CLOSE_WAKES_CONSUMERS_ONLY"),
    Mutant("close.full.section", "CLOSE_LOOKS_IN_P"),
    Mutant("close.kill.fence", "NO_ATTACHED_SWEEP"),
    Mutant("close.kill.fence", "FREE_BEFORE_CLOSE"),
    Mutant("ring.kill", "NOT_ROBUST"),
    Mutant("ring.kill", "STUB_AFTER_PUBLISH"),
    Mutant("ring.heirs", "DIRTY_NUMBER"),
    Mutant("ring.heirs", "PADDING_BEFORE_STUB"),
    Mutant("ring.wrap", "NUMBER_AFTER_PADDING"),
    Mutant("ring.wrap", "ROOM_WITHOUT_STUB"),
    Mutant("ring.wrap", "ROOM_BEYOND_EDGE"),
    Mutant("ring.heirs", "NOTE_WITHOUT_MAX"),
    Mutant("ring.calm", "UNGUARDED"),
    Mutant("ring.kill", "PUBLISH_BEFORE_BYTES"),
    Mutant("ring.heirs", "ROOM_ONLY_IF_MOVED"),
    Mutant("listen.calm", "NO_RECHECK"),
    Mutant("listen.calm", "RECHECK_OUTSIDE"),
    Mutant("listen.calm", "DRAIN_LAST"),
    Mutant("listen.calm", "LOOK_OUTSIDE"),
    Mutant("listen.calm", "UNMARK_OUTSIDE"),
    Mutant("listen.end", "NO_RECHECK_OF_END"),
    Mutant("listen.lazy", "CALL_ONE"),
    Mutant("listen.kill", "NO_TIMER"),
    Mutant("listen.kill", "NOT_ROBUST"),
    Mutant("listen.exact", "CALL_IN_VAIN"),
    Mutant("listen.exact", "WRITE_OUTSIDE"),
    Mutant("listen.exact", "DRAIN_OUTSIDE"),
    Mutant("room.calm", "GLANCE_AFTER"),
    Mutant("room.little", "ARM_OTHERS"),
    Mutant("room.calm", "LOOK_OUTSIDE"),
    Mutant("room.calm", "UNMARK_OUTSIDE"),
    Mutant("room.kill", "NO_TIMER"),
    Mutant("room.kill", "NOT_ROBUST"),
    Mutant("event.pulse", "COUNT_CALLS_ALONE"),
    Mutant("event.set", "LOOK_OUTSIDE"),
    Mutant("event.pulse", "FLAG_ONLY"),
    Mutant("event.pulse", "COUNT_ANEW"),
    Mutant("event.clock", "NO_GLANCE_AFTER"),
    Mutant("event.kill", "NO_TIMER"),
    Mutant("event.kill", "NOT_ROBUST"),
    Mutant("producers.calm", "NO_LEAVING"),
    Mutant("producers.calm", "COUNT_BEFORE_MARK"),
    Mutant("producers.calm", "LOOK_BEFORE_ATTACH"),
    Mutant("producers.calm", "CLOSE_AFTER_SECTION"),
    Mutant("producers.kill2", "FREE_BEFORE_COUNT"),
    Mutant("block.get", "RETAG_AFTER_CONSUME"),
    Mutant("block.get", "HEADER_AFTER_PUBLISH"),
    Mutant("block.get", "SWEEP_BY_TAG_ONLY"),
    Mutant("block.crowd", "SWEEP_BY_POSITION_ONLY"),
    Mutant("block.crowd", "RECORD_BEFORE_POSITION"),
    Mutant("block.crowd", "FREE_WITHOUT_COMPARE"),
    Mutant("block.sweepers", "SWEEP_TRUSTS_FIRST_LOOK"),
    Mutant("block.newcomer", "SWEEP_WITHOUT_DEAD"),
    Mutant("block.newcomer", "FREE_WITHOUT_GENERATION"),
    Mutant("block.sweeper_dies", "HINT_AFTER_TAG"),
    Mutant("block.lease", "END_BY_FREE"),
    Mutant("block.returned", "CLEAR_WITHOUT_SEARCH"),
    Mutant("block.returned", "POP_WITHOUT_LOOK"),
    Mutant("block.inline", "LEASED_BEFORE_TAKEN"),
    Mutant("block.inline", "TAKEN_AFTER_CONSUME"),
    Mutant("block.inline", "CONSUME_BEFORE_LEASED"),
    Mutant("block.inline", "TAKEN_BEFORE_COPY"),
    Mutant("block.inline2", "TAKEN_BEFORE_WORDS"),
    Mutant("block.inline", "NO_TAKEN"),
    Mutant("block.inline", "NO_FINISH"),
    Mutant("block.inline", "JUDGE_WITHOUT_FINISH"),
    Mutant("block.inline2", "FINISH_CONSUMES_FIRST"),
]


def all_runs() -> list[Run]:
    """Return the configurations, each followed by its mutants."""
    runs: list[Run] = []
    for configuration in CONFIGURATIONS:
        runs.append(Run(configuration.name, configuration, None))
        runs.extend(
            Run(f"{mutant.base}-{mutant.flag.replace(' ', '-')}", configuration, mutant.flag)
            for mutant in MUTANTS
            if mutant.base == configuration.name
        )
    names = {configuration.name for configuration in CONFIGURATIONS}
    strays = [mutant.base for mutant in MUTANTS if mutant.base not in names]
    if strays:
        message = f"mutant of an unknown configuration: {strays}"
        raise ValueError(message)
    return runs


def choose(runs: list[Run], patterns: list[str], *, long: bool) -> list[Run]:
    """Return the runs that the patterns name, or all; a long one if asked for, or by its name."""
    return [
        run
        for run in runs
        if run.name in patterns
        or (
            (long or not run.configuration.long)
            and (not patterns or any(_matches(run.name, pattern) for pattern in patterns))
        )
    ]


def _matches(name: str, pattern: str) -> bool:
    return name.startswith((f"{pattern}.", f"{pattern}-")) or fnmatch.fnmatchcase(name, pattern)


def definitions(run: Run) -> list[str]:
    """Return the preprocessor flags; a later value replaces an earlier one."""
    values: dict[str, str] = {}
    for word in f"{run.configuration.flags} {run.mutation or ''}".split():
        name, _, value = word.partition("=")
        values[name] = value
    return [f"-D{name}={value}" if value else f"-D{name}" for name, value in values.items()]


def call(command: list[str], directory: Path, *, check: bool = True) -> str:
    """Run a tool, which has to succeed if `check` is set, and return what it printed."""
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    output = done.stdout + done.stderr
    if check and (done.returncode != 0 or "Error:" in output):
        message = f"{' '.join(command)} failed:\n{output.strip()}"
        raise RuntimeError(message)
    return output


def parse(run: Run, report: str, seconds: float, trail: str) -> Outcome:
    """Read pan's report. An incomplete search counts as -1 errors."""
    summary = re.search(r"depth reached (\d+), errors: (\d+)", report)
    states = re.search(r"^\s*(\d+) states, stored", report, re.MULTILINE)
    complaint = re.search(r"^pan:\d*:? *(.+?)(?: \(at depth \d+\))?$", report, re.MULTILINE)
    text = re.sub(r"\s+", " ", complaint.group(1)) if complaint else "no reason given"
    errors = int(summary.group(2)) if summary else -1
    truncated = re.search(
        r"max search depth too small|MEMLIM|out of memory|VECTORSZ|hash-table|aborted", report
    )
    if truncated:
        errors, text = -1, truncated.group(0)
    elif errors == 0 and "Search not completed" in report:
        errors, text = -1, "search not completed"
    return Outcome(
        run=run,
        states=int(states.group(1)) if states else 0,
        depth=int(summary.group(1)) if summary else 0,
        seconds=seconds,
        errors=errors,
        complaint=textwrap.shorten(text, COMPLAINT_WIDTH, placeholder="..."),
        trail=trail,
    )


def search(run: Run, *, memory: int, want_trail: bool) -> Outcome:
    """Build one model in a directory of its own and search it."""
    configuration = run.configuration
    with tempfile.TemporaryDirectory(prefix="ipcmap-model-") as name:
        directory = Path(name)
        for model in HERE.glob("*.pml"):
            shutil.copy(model, directory)
        source = f"{configuration.model}.pml"
        call(["spin", "-a", *definitions(run), source], directory)
        cycles = configuration.search is Search.CYCLES
        build = ["-DNP", "-DNOFAIR"] if cycles else ["-DSAFETY", "-DNOFAIR"]
        build += ["-DCOLLAPSE", "-DVECTORSZ=1024", f"-DMEMLIM={memory}"]
        # A mutant's search takes less time than its build.
        level = "-O0" if run.mutation else "-O1"
        call(["gcc", level, "-w", *build, "-o", "pan", "pan.c"], directory)
        started = time.monotonic()
        done = subprocess.run(
            ["./pan", f"-m{MAX_DEPTH}", "-n", *(["-l"] if cycles else [])],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
        seconds = time.monotonic() - started
        trail = ""
        if want_trail and (directory / f"{source}.trail").exists():
            trail = call(["spin", "-t", "-p", *definitions(run), source], directory, check=False)
        return parse(run, done.stdout + done.stderr, seconds, trail)


def search_or_say_why(run: Run, *, memory: int, want_trail: bool) -> Outcome:
    """Search, and turn a tool's failure into an outcome, so that the other runs go on."""
    try:
        return search(run, memory=memory, want_trail=want_trail)
    except subprocess.TimeoutExpired as error:
        return Outcome(run, 0, 0, error.timeout, -1, "time limit", "")
    except RuntimeError as error:
        return Outcome(run, 0, 0, 0.0, -1, str(error), "")


def missing_tools() -> list[str]:
    """Return the tools that are not to be found."""
    return [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="runs, groups (park, close.kill) or patterns")
    parser.add_argument("--long", action="store_true", help="the larger configurations as well")
    parser.add_argument("--jobs", type=int, default=2, help="searches at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--trail", action="store_true", help="print each counterexample")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for and print the table."""
    options = arguments()
    runs = choose(all_runs(), options.names, long=options.long)
    if not runs:
        print(f"check.py: no run is called {options.names}; see --list", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(run.name for run in runs))
        return 0
    if missing := missing_tools():
        print(
            f"check.py: not found: {', '.join(missing)}; apt-get install spin gcc",
            file=sys.stderr,
        )
        return 2

    memory = LONG_MEMORY_LIMIT if options.long else MEMORY_LIMIT
    width = max(len(run.name) for run in runs)
    print(f"{'configuration':{width}} {'states':>10} {'depth':>6} {'seconds':>8}  verdict")
    passed = failed = 0
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        outcomes = pool.map(
            lambda run: search_or_say_why(run, memory=memory, want_trail=options.trail), runs
        )
        for outcome in outcomes:
            print(
                f"{outcome.run.name:{width}} {outcome.states:>10} {outcome.depth:>6} "
                f"{outcome.seconds:>8.1f}  {outcome.verdict}",
                flush=True,
            )
            if outcome.trail:
                print(outcome.trail)
            if outcome.good:
                passed += 1
            else:
                failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
