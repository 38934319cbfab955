"""The last words of a child: the text of the exception that ended it, in shared memory.

They travel through a block of the default arena, which the parent takes before the
fork and frees when it reaps. A pipe would have to be read while the child runs, and
one that is full would hold the child up.

Shared fields, in the block
  0  nbytes     u64   child, last   of both texts; 0 = none, which the parent stores first
  8  exception  u64   child         how many of these bytes are the first text
  16 the texts, UTF-8, exception and traceback

If the child dies before nbytes is stored, it left no word.
"""

from __future__ import annotations

import contextlib
import struct
import traceback

from ipcmap.arena import default_arena
from ipcmap.block import Block
from ipcmap.errors import IpcmapError

__all__ = ["LastWords"]

_HEADER = struct.Struct("=QQ")
_BLOCK_NBYTES = 16384  # pages are touched only by a child that dies of an exception
_EXCEPTION_NBYTES = 4096  # of a longer text the beginning is kept, of a traceback the end
_CUT = "…".encode()


class LastWords:
    """The text that a child leaves of the exception that ends it; none where there is no room."""

    def __init__(self) -> None:
        self._block: Block | None = None
        with contextlib.suppress(IpcmapError, OSError):
            self._block = default_arena().allocate(_BLOCK_NBYTES)
            self._block.view()[: _HEADER.size].cast("Q")[0] = 0

    def write(self, error: BaseException) -> bool:
        """Leave word, in the child; return whether there was room for it."""
        # An exception that cannot be told must not hide the one that is being told.
        with contextlib.suppress(Exception):
            if self._block is None or error.__traceback__ is None:
                return False
            # Without the frame that calls this.
            told = traceback.TracebackException(type(error), error, error.__traceback__.tb_next)
            exception = _encoded("".join(told.format_exception_only()).rstrip())
            if len(exception) > _EXCEPTION_NBYTES:
                exception = exception[: _EXCEPTION_NBYTES - len(_CUT)] + _CUT
            text, room = _encoded("".join(told.format())), _BLOCK_NBYTES - _HEADER.size
            room -= len(exception)
            if len(text) > room:
                text = _CUT + text[len(_CUT) - room :]
            view = self._block.view()
            words, texts = view[: _HEADER.size].cast("Q"), view[_HEADER.size :]
            texts[: len(exception) + len(text)] = exception + text
            words[1] = len(exception)
            words[0] = len(exception) + len(text)
            return True
        return False

    def take(self) -> tuple[str | None, str | None]:
        """Return exception and traceback, and free the block, in the parent."""
        block, self._block = self._block, None
        if block is not None:
            with contextlib.suppress(IpcmapError):
                try:
                    return self._read(block)
                finally:
                    block.free()
        return None, None

    @staticmethod
    def _read(block: Block) -> tuple[str | None, str | None]:
        nbytes, exception_nbytes = _HEADER.unpack(block.view()[: _HEADER.size])
        if not nbytes or not exception_nbytes <= nbytes <= _BLOCK_NBYTES - _HEADER.size:
            return None, None
        texts = bytes(block.view()[_HEADER.size : _HEADER.size + nbytes])
        exception, text = texts[:exception_nbytes], texts[exception_nbytes:]
        return exception.decode(errors="replace"), text.decode(errors="replace")


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
