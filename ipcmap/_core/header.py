"""The header of an arena: what it is, for whoever meets its bytes.

Shared fields (places: layout.HeaderWord): magic, version, engine, arena id, bytes
reserved, limit, max_processes, the inode of the creator's pid namespace (0 =
unknown) and the creator's pid. The creator writes each once, before anyone else
can have the arena, and nobody writes them again. So they have no guard.

Sync point
  H1 create  creator: store of the magic, last; every other process: fork, later

If the creator dies before H1, nobody has the arena. A process takes what it
needs from its handle, which it inherited by fork with the arena: from the header
it only learns, when a pickle names the arena, whether this is still the same one.
"""

from __future__ import annotations

import contextlib
import os

from ipcmap._core.layout import ENGINES, MAGIC, VERSION, HeaderWord, Layout
from ipcmap.errors import CorruptError

__all__ = ["check_header", "write_header"]


def write_header(
    words: memoryview, layout: Layout, *, engine: str, arena_id: int, limit: int
) -> None:
    """Write the header of a fresh arena."""
    words[HeaderWord.VERSION] = VERSION
    words[HeaderWord.ENGINE] = ENGINES[engine]
    words[HeaderWord.ARENA_ID] = arena_id
    words[HeaderWord.RESERVED] = layout.reserved
    words[HeaderWord.LIMIT] = limit
    words[HeaderWord.MAX_PROCESSES] = layout.max_processes
    # Without /proc it stays 0.
    with contextlib.suppress(OSError):
        words[HeaderWord.PID_NAMESPACE] = os.stat("/proc/self/ns/pid").st_ino
    words[HeaderWord.CREATOR] = os.getpid()
    words[HeaderWord.MAGIC] = MAGIC  # H1 create


def check_header(words: memoryview, layout: Layout, *, engine: str, arena_id: int) -> None:
    """See that the header is this arena's, and of this engine.

    Raises:
        CorruptError: It is not what was written.
        ValueError: The arena belongs to the other engine.
    """
    expected = {
        HeaderWord.MAGIC: MAGIC,
        HeaderWord.VERSION: VERSION,
        HeaderWord.ARENA_ID: arena_id,
        HeaderWord.RESERVED: layout.reserved,
        HeaderWord.MAX_PROCESSES: layout.max_processes,
    }
    found = {word: words[word] for word in expected}
    number = words[HeaderWord.ENGINE]
    if found != expected or number not in ENGINES.values():
        raise CorruptError(
            f"header of the arena is damaged: words={found}, expected={expected}, "
            f"engine={number}; make a new arena"
        )
    if number != ENGINES[engine]:
        raise ValueError(
            f"arena belongs to another engine: its engine={number}, here={ENGINES[engine]} "
            f"({engine}), id={arena_id:016x}; set one IPCMAP_BACKEND for all of the family"
        )
