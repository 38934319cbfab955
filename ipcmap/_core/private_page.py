"""A page that belongs to one process: a child made by any kind of fork finds zeros in it.

The kernel wipes it at the fork (MADV_WIPEONFORK), so that no library call has to
notice the fork: C-level forks are covered as well as os.fork(). Before Linux 4.14
there is no such advice; then the page keeps its owner's pid beside the words, and
whoever reads compares it with getpid(). Not told apart there: a grandchild that has
the pid of its dead grandparent, by way of a parent that never wrote the page.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from ipcmap._core import libc

__all__ = ["PrivatePage"]

_MADV_WIPEONFORK = 18
_WORD = 8  # bytes
_OWNER = -1  # the last word


class PrivatePage:
    """One page of u64 words, zero in a process that has not written them.

    Args:
        wipe: ``False`` goes without the kernel's help.
    """

    __slots__ = ("_address", "_end", "_unaided", "words")

    def __init__(self, *, wipe: bool = True) -> None:
        nbytes = mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._address = 0  # for __del__, where there is no room for a page
        self._address = libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        page = (ctypes.c_ubyte * nbytes).from_address(self._address)
        self.words = memoryview(page).cast("B").cast("Q")
        self._unaided = not wipe
        try:
            if wipe:
                libc.madvise(self._address, nbytes, _MADV_WIPEONFORK)
        except OSError:
            self._unaided = True

    def __del__(self, _unmapping: type[libc.Unmapping] = libc.Unmapping) -> None:
        if self._address:
            self._end = _unmapping(self._address, mmap.PAGESIZE)

    @property
    def ours(self) -> bool:
        """Whether what the words say was written by this process."""
        return not self._unaided or self.words[_OWNER] == os.getpid()

    def own(self) -> None:
        """Forget what a parent wrote; call it before the first store of this process."""
        if self.ours:
            return
        for index in range(mmap.PAGESIZE // _WORD - 1):
            self.words[index] = 0
        self.words[_OWNER] = os.getpid()
