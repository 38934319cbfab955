"""Races in the native engine: threads without an interpreter, under the sanitizer of threads.

``native_threads.c`` is built with the engine's own files and run on rings of several sizes, and
``native_threads_guards.c`` with locks and semaphores. They must come out clean. Then rules of the engine are left out one at a time, and each must be
reported: what is clean without them says nothing.

Exit status: 0 good, 1 not. Needs gcc with libtsan. ``tox -e tsan`` runs it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
ENGINE = TESTS.parent / "ipcmap" / "_core"
SHARED = ("native_section.c", "native_parking.c")
SOURCES = {
    "native_threads.c": (*SHARED, "native_ring.c", "native_allocator.c"),
    "native_threads_guards.c": (
        *SHARED,
        "native_monitor.c",
        "native_locks.c",
        "native_semaphores.c",
    ),
}
FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=thread",
    "-pthread",
]
RECORDS = 20_000  # of each producer
GUARDS = [
    (kind, str(threads), "3000")
    for kind in ("lock", "rlock", "semaphore", "travels")
    for threads in (2, 5)
]
SIZES = [(64, 1, 1), (64, 3, 3), (256, 1, 3), (256, 3, 1), (4096, 2, 2), (1 << 20, 3, 3)]

PUT = """\
    fill(bytes_at(ring, write_pos), data, length);
    STEP("header", store(ring, word_at(ring, write_pos), stub | length));
    STEP("stub", store(ring, word_at(ring, write_pos + need), stub + NUMBER_ONE));
    STEP("R1 publish", store(ring, WRITE_POS, write_pos + need));
"""
PUT_TOO_EARLY = "".join(PUT.splitlines(keepends=True)[index] for index in (1, 2, 3, 0))

TAKEN = """\
if (monitor_word(lock, M_HOLDER))
        return NOTHING;"""

# Each rule: the file, what stands there, and what takes its place.
MUTANTS = {
    "R1 and R2 without acquire": ("native.h", "memory_order_acquire", "memory_order_relaxed"),
    "R1 and R2 without release": ("native.h", "memory_order_release", "memory_order_relaxed"),
    "R2 looked at in passing": ("native_ring.c", "look_across(ring, READ_POS)", "look(ring, READ_POS)"),
    "R1 looked at in passing": ("native_ring.c", "= look_across(ring, WRITE_POS)", "= look(ring, WRITE_POS)"),
    "X1 two in a section": ("native_section.c", "answer == EBUSY ? BUSY", "answer == EBUSY ? DONE"),
    "R1 before the bytes": ("native_ring.h", PUT, PUT_TOO_EARLY),
}  # fmt: skip
OF_GUARDS = {
    "X1 two in a section": ("native_section.c", "answer == EBUSY ? BUSY", "answer == EBUSY ? DONE"),
    "M1 whoever has it": ("native_locks.c", TAKEN, "(void)NOTHING;"),
}


def build(engine: Path, program: Path, *flags: str) -> None:
    """Compile a program, named as its source, with the engine that lies there."""
    source = f"{program.name}.c"
    files = [TESTS / source, *(engine / name for name in SOURCES[source])]
    command = ["gcc", *FLAGS, *flags, f"-I{engine}", *map(str, files), "-o", str(program)]
    subprocess.run(command, check=True)


def run(program: Path, *arguments: object) -> str:
    """Run it once; return what it has to say, or nothing."""
    command = [str(program), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    said = result.stderr or f"exit status {result.returncode}"
    return f"{arguments}: {said}" if result.returncode else ""


def mutate(folder: Path, file: str, rule: str, instead: str) -> None:
    """Leave a rule out of a copy of the engine."""
    source = (folder / file).read_text()
    assert rule in source, f"{file} has no {rule!r} any more"
    (folder / file).write_text(source.replace(rule, instead))


def check(rounds: int, seed: int) -> bool:
    """Run all; return whether all is as it must be."""
    good = True
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "native_threads"
        for across in (1, 0):
            build(ENGINE, program, f"-DIPCMAP_LOOK_DIRECTLY={across}")
            said = [run(program, *s, RECORDS, seed + r) for r in range(rounds) for s in SIZES]
            print(f"look_directly={across}: {'NOT CLEAN' if any(said) else 'clean'}", flush=True)
            print("".join(said), end="", file=sys.stderr)
            good &= not any(said)
        guards = Path(name) / "native_threads_guards"
        build(ENGINE, guards)
        said = [run(guards, *guard) for _ in range(rounds) for guard in GUARDS]
        print(f"guards: {'NOT CLEAN' if any(said) else 'clean'}", flush=True)
        print("".join(said), end="", file=sys.stderr)
        good &= not any(said)
        sizes = [(*size, RECORDS, seed) for size in SIZES[2:5] * 3]
        for mutants, mutated, ways in ((MUTANTS, program, sizes), (OF_GUARDS, guards, GUARDS * 3)):
            for title, change in mutants.items():
                mutant = Path(name) / "mutant"
                shutil.copytree(ENGINE, mutant)
                mutate(mutant, *change)
                build(mutant, mutated, "-DIPCMAP_LOOK_DIRECTLY=1")
                caught = any(run(mutated, *way) for way in ways)
                print(f"mutant, {title}: {'caught' if caught else 'NOT CAUGHT'}", flush=True)
                good &= caught
                shutil.rmtree(mutant)
    return good


def main() -> int:
    """Read the arguments, run, and say it by the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="each with a seed of its own")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    arguments = parser.parse_args()
    for name in ("LD_PRELOAD", "TSAN_OPTIONS"):  # the program has the sanitizer in itself
        os.environ.pop(name, None)
    print(f"seed={arguments.seed}", flush=True)
    return 0 if check(arguments.rounds, arguments.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
