"""Handles of blocks that travel by pickle, and damage that no answer is made up from."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

import ipcmap
from children import Fork
from ipcmap import Arena, ArenaFull, CorruptError, NotInherited, StaleHandle
from ipcmap._core.layout import ENGINES, HeaderWord

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    """A fresh arena of 64 MiB of blocks, closed afterwards."""
    arena = Arena(64 * MIB)
    yield arena
    arena.close()


# Handles that travel


def test_a_child_fills_a_block_that_it_made_and_the_parent_reads_it_by_its_pickle(
    arena: Arena, fork: Fork
) -> None:
    """An object made after the fork reaches a process that ran before."""
    read_end, write_end = os.pipe()

    def child() -> None:
        block = arena.allocate(1000)
        block.view()[:] = b"c" * 1000
        os.write(write_end, pickle.dumps(block))

    assert fork(child).wait() == 0
    block = pickle.loads(os.read(read_end, 10_000))
    os.close(read_end)
    os.close(write_end)

    assert (block.nbytes, bytes(block.view())) == (1000, b"c" * 1000)
    block.free()
    assert arena.statistics().blocks == 0


def test_a_pickle_of_a_block_that_is_gone_is_stale(arena: Arena) -> None:
    """Also when its place has another block."""
    block = arena.allocate(10)
    sent = pickle.dumps(block)
    block.free()
    with pytest.raises(StaleHandle):
        pickle.loads(sent)
    arena.allocate(10)

    with pytest.raises(StaleHandle):
        pickle.loads(sent)


def test_a_process_that_did_not_inherit_the_arena_says_so(fork: Fork) -> None:
    """Forked before it was made, or another program."""
    read_end, write_end = os.pipe()

    def child() -> None:
        with pytest.raises(NotInherited, match=f"pid={os.getpid()}; make it before"):
            pickle.loads(os.read(read_end, 10_000))

    early = fork(child)
    arena = Arena(MIB)
    sent = pickle.dumps(arena.allocate(10))
    os.write(write_end, sent)
    assert early.wait() == 0
    os.close(read_end)
    os.close(write_end)
    program = f"import pickle; pickle.loads({sent!r})"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert "ipcmap.errors.NotInherited" in ended.stderr
    arena.close()


def test_an_arena_travels_as_itself(arena: Arena, fork: Fork) -> None:
    """Its pickle and its copy are the arena of the same id."""
    sent = pickle.dumps(arena)

    assert pickle.loads(sent) is arena
    assert copy.copy(arena) is arena
    assert fork(lambda: os._exit(pickle.loads(sent) is not arena)).wait() == 0
    assert len(sent) < 100


# Damage


@pytest.mark.parametrize(
    "word",
    [
        HeaderWord.MAGIC,
        HeaderWord.VERSION,
        HeaderWord.ENGINE,
        HeaderWord.ARENA_ID,
        HeaderWord.RESERVED,
        HeaderWord.MAX_PROCESSES,
    ],
)
def test_a_scribbled_header_is_noticed_when_a_handle_arrives(arena: Arena, word: int) -> None:
    """What is here already needs nothing from it."""
    block = arena.allocate(10)
    arena._open().words[word] = 77

    with pytest.raises(CorruptError, match="header of the arena is damaged"):
        pickle.loads(pickle.dumps(block))
    block.free()


def test_an_arena_of_the_other_engine_is_refused(arena: Arena) -> None:
    """The two never share a region."""
    sent = pickle.dumps(arena.allocate(10))
    words, here = arena._open().words, ENGINES[ipcmap.backend]
    words[HeaderWord.ENGINE] = other = 3 - here

    with pytest.raises(ValueError, match=rf"its engine={other}, here={here} \({ipcmap.backend}\)"):
        pickle.loads(sent)


def test_scribbles_anywhere_in_the_bookkeeping_end_in_a_legal_outcome() -> None:
    """The right result, ArenaFull, StaleHandle or CorruptError; nothing else and no crash."""
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    chance = random.Random(seed)
    legal = (ArenaFull, StaleHandle, CorruptError, ValueError)  # of another engine
    right = 0
    for _ in range(200):
        arena = Arena(MIB)
        _, words, allocator, _ = arena._open()
        blocks = [arena.allocate(chance.choice([10, 100, 5000])) for _ in range(30)]
        places = [*range(9), *range(256 // 8, 4096 // 8)]  # all of the first page but sections
        for size_class in allocator.layout.classes[:8]:
            places += range(size_class.tags, size_class.tags + 20)
            places += range(size_class.lengths, size_class.lengths + 20)
        for _ in range(3):
            words[chance.choice(places)] = chance.choice([0, 1, 2**64 - 1, chance.randrange(2**64)])
        for block in blocks:
            for call in (
                lambda: arena.allocate(chance.choice([0, 10, 100, 5000])).view(),  # noqa: B023
                lambda: pickle.loads(pickle.dumps(block)),  # noqa: B023
                block.free,
                arena.statistics,
            ):
                try:
                    call()
                    right += 1
                except legal:
                    pass
        try:
            allocator.sweep(0)
        except CorruptError:
            continue
    assert right > 200 * 30
