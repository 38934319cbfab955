"""The arena: blocks that every child shares, handles that travel, and a limit with figures."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipcmap
from children import Fork
from ipcmap import (
    Arena,
    ArenaFull,
    Block,
    BusyError,
    ClosedError,
    StaleHandle,
)
from ipcmap.memory_limits import free_memory

MIB = 1 << 20
TIB = 1 << 40


@pytest.fixture
def arena() -> Iterator[Arena]:
    """A fresh arena of 64 MiB of blocks, closed afterwards."""
    arena = Arena(64 * MIB)
    yield arena
    arena.close()


def status(name: str) -> int:
    """Return a figure of this process in kB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:")[1].split()[0])


def flags_of(address: int) -> set[str]:
    """Return the kernel's flags of the mapping at an address."""
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{address:08x}-"):
            found = True
        elif found and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("no such mapping")


# The arena


def test_it_reserves_much_and_touches_little() -> None:
    """A terabyte of addresses costs a few pages."""
    before = status("RssShmem")
    arena = Arena()

    assert arena.reserved >= TIB
    assert status("RssShmem") - before < 64
    arena.close()


def test_its_limit_is_half_of_what_is_free() -> None:
    """Within what other processes take or give meanwhile."""
    arena = Arena()

    assert arena.limit == pytest.approx(free_memory() / 2, rel=0.5)
    arena.close()


def test_it_stays_out_of_core_dumps_and_huge_pages(arena: Arena) -> None:
    """A core dump would allocate all of the reserve."""
    pages = arena._open().pages

    assert {"dd", "nh"} <= flags_of(pages.address)


def test_where_addresses_are_short_it_reserves_less(fork: Fork) -> None:
    """By halves, down to 64 MiB; below that it is an error with the figure."""

    def reserve_under(room: int) -> int:
        used = status("VmSize") * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
        return Arena(10 * MIB).reserved

    def refused() -> None:
        with pytest.raises(OSError, match="nbytes=67108864"):
            reserve_under(40 * MIB)

    children = [
        fork(lambda: os._exit(reserve_under(600 * MIB) != 512 * MIB)),
        fork(lambda: os._exit(reserve_under(100 * MIB) != 64 * MIB)),
        fork(refused),
    ]
    assert [child.wait() for child in children] == [0, 0, 0]


def test_the_library_is_imported_where_there_is_no_room_for_an_arena() -> None:
    """The default arena is then an error at its first use."""
    program = (
        "import resource, re, ctypes, mmap\n"
        "used = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)\n"
        "import ipcmap\n"
        "try:\n    ipcmap.default_arena()\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (ended.stdout, ended.stderr) == ("12\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": -1}, "limit=-1"),
        ({"reserve": 64 * MIB - 1}, "reserve=67108863"),
        ({"max_processes": 0}, "1 to 65536: max_processes=0"),
        ({"max_processes": 65537}, "1 to 65536: max_processes=65537"),
        ({"backend": "imaginary"}, "backend='imaginary', built: .*'reference'"),
    ],
)
def test_figures_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    """Each error has the figure."""
    with pytest.raises(ValueError, match=message):
        Arena(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", [1.5, "1", True])
def test_a_limit_that_is_no_number_of_bytes_is_refused(argument: object) -> None:
    """As for a mapping."""
    with pytest.raises(TypeError, match="limit must be an integer"):
        Arena(argument)  # type: ignore[arg-type]


def test_the_loaded_engine_can_be_asked_for_by_name() -> None:
    """It is the one that ipcmap.backend names."""
    Arena(1, backend=ipcmap.backend).close()


def test_the_default_arena_is_there_from_the_import_on(fork: Fork) -> None:
    """One for the process, and the same in its children."""
    arena = ipcmap.default_arena()

    assert arena is ipcmap.default_arena()
    assert fork(lambda: os._exit(ipcmap.default_arena() is not arena)).wait() == 0


# Blocks


def test_a_block_is_bytes_of_its_own(arena: Arena) -> None:
    """It has its length, and keeps what is written."""
    blocks = [arena.allocate(nbytes) for nbytes in (0, 1, 64, 65, 5000, MIB, 3 * MIB)]
    for mark, block in enumerate(blocks):
        block.view()[:] = bytes([mark]) * block.nbytes

    assert [block.nbytes for block in blocks] == [0, 1, 64, 65, 5000, MIB, 3 * MIB]
    assert all(bytes(b.view()) == bytes([mark]) * b.nbytes for mark, b in enumerate(blocks))


def test_one_block_may_be_a_quarter_of_the_reserve() -> None:
    """Nothing of it is touched before it is used."""
    arena = Arena(TIB, reserve=TIB)
    block = arena.allocate(arena.reserved // 4)
    block.view()[-1] = 7

    with pytest.raises(ArenaFull, match=r"Arena\(reserve="):
        arena.allocate(arena.reserved // 4 + 1)
    block.free()
    arena.close()


def test_statistics_count_what_is_there(arena: Arena) -> None:
    """By class, and frozen."""
    blocks = [arena.allocate(nbytes) for nbytes in (0, 64, 100, 128, 5000)]
    blocks.pop().free()
    statistics = arena.statistics()

    assert (statistics.reserved, statistics.limit) == (arena.reserved, 64 * MIB)
    assert (statistics.blocks, statistics.bytes_in_use) == (4, 64 + 64 + 100 + 128)
    by_class = [(c.cell_nbytes, c.blocks, c.bytes_in_use) for c in statistics.classes]
    assert by_class == [(64, 2, 128), (128, 2, 228)]
    assert statistics.damaged == 0
    with pytest.raises(AttributeError):
        statistics.blocks = 0  # type: ignore[misc]


def test_beyond_the_limit_the_arena_is_full(arena: Arena) -> None:
    """A MemoryError with figures; a free makes room."""
    block = arena.allocate(40 * MIB)

    with pytest.raises(ArenaFull, match=f"in use={40 * MIB}, limit={64 * MIB}"):
        arena.allocate(24 * MIB + 1)
    block.free()
    arena.allocate(64 * MIB).free()
    with pytest.raises(ArenaFull):
        Arena(0).allocate(0)


@pytest.mark.parametrize("nbytes", [-1, -(2**70)])
def test_a_negative_length_is_refused(arena: Arena, nbytes: int) -> None:
    """The error has the figure."""
    with pytest.raises(ValueError, match=f"nbytes={nbytes}"):
        arena.allocate(nbytes)


def test_a_freed_block_is_stale(arena: Arena) -> None:
    """For a second free and for a view, even when its place is used again."""
    block = arena.allocate(10)
    block.free()
    again = arena.allocate(10)

    assert again.offset == block.offset
    assert again.generation == block.generation + 1
    for call in (block.free, block.view):
        with pytest.raises(StaleHandle, match=f"offset={block.offset}"):
            call()
    again.view()[:] = b"0123456789"


def test_a_view_keeps_its_block_from_being_freed(arena: Arena) -> None:
    """Slices count as their view."""
    block = arena.allocate(10)
    part = block.view()[2:4]
    with pytest.raises(BusyError, match="1 alive"):
        block.free()

    part[:] = b"ok"
    part.release()
    block.free()


def test_a_block_is_made_by_its_arena_alone() -> None:
    """The error names the way."""
    with pytest.raises(TypeError, match=r"Arena\.allocate"):
        Block()


def test_handles_say_what_they_are(arena: Arena) -> None:
    """For whoever looks at them in a debugger."""
    assert repr(arena.allocate(5)).startswith("<ipcmap.Block of 5 bytes: offset ")
    assert repr(arena) == f"<ipcmap.Arena {arena._id:016x}: {arena.reserved} bytes>"


# The end


def test_after_close_everything_is_closed() -> None:
    """Twice is once."""
    arena = Arena(MIB)
    block = arena.allocate(10)
    sent = pickle.dumps(block)
    arena.close()
    arena.close()

    assert arena.closed
    for call in (lambda: arena.allocate(1), arena.statistics, block.view, block.free):
        with pytest.raises(ClosedError, match="arena is closed"):
            call()
    with pytest.raises(ClosedError):
        pickle.loads(sent)
    assert repr(arena).endswith(": closed>")


def test_close_unmaps_and_is_refused_under_a_view() -> None:
    """The arena stays open, and the message counts."""
    arena = Arena(MIB)
    address = arena._open().pages.address
    views = [arena.allocate(10).view(), arena.allocate(10).view()]
    with pytest.raises(BusyError, match="2 alive"):
        arena.close()
    arena.allocate(1)
    views.clear()
    arena.close()

    assert f"{address:08x}-" not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_forgotten_arena_is_unmapped() -> None:
    """The table of arenas by id keeps none alive."""
    arena = Arena(MIB)
    address = arena._open().pages.address
    del arena

    assert f"{address:08x}-" not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_child_closes_its_own(arena: Arena, fork: Fork) -> None:
    """The parent's stays open."""
    assert fork(arena.close).wait() == 0
    arena.allocate(10).view()[:2] = b"ok"


def test_threads_that_allocate_while_one_closes_end_cleanly() -> None:
    """Each call gives its result or ClosedError."""
    for _ in range(20):
        arena, started, errors = Arena(MIB), threading.Barrier(3), []

        def work(arena: Arena = arena, started: threading.Barrier = started) -> None:
            started.wait()
            try:
                while True:
                    arena.allocate(10).free()
            except BaseException as error:
                errors.append(type(error))  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.wait()
        arena.close()
        for thread in threads:
            thread.join()
        assert errors == [ClosedError, ClosedError]
