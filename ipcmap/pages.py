"""A range of mapped pages, and the copies in and out of it that cannot fault.

This file is the one place that maps and unmaps what others may have too, memory
or a file (a process's own page is private_page's). Pages are unmapped when the
last reference to them goes: a view, or a copy under way in another thread,
holds one, so nothing is ever taken from under a use.

A copy through the kernel (process_vm_readv(2) on the process itself) answers
EFAULT where a load would be SIGBUS: beyond the end of a file that another
process shortened, or on a disk that is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import operator
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, SupportsIndex

from ipcmap._core import libc

__all__ = [
    "HUGETLB",
    "NORESERVE",
    "PAGE_SIZE",
    "PageFault",
    "Pages",
    "byte_count",
    "huge_page_size",
    "map_pages",
    "reserve_pages",
]

PAGE_SIZE = mmap.PAGESIZE  # bytes

HUGETLB = 0x40000  # MAP_HUGETLB, which the mmap module does not name
NORESERVE = 0x4000  # MAP_NORESERVE, which older mmap modules do not name


class PageFault(Exception):
    """A page of the range cannot be had; ``offset`` is the first such byte."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class Pages:
    """A mapped range of ``nbytes`` bytes at ``address``, owned by whoever holds it."""

    def __init__(self, address: int, nbytes: int, mapped_nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self._mapped_nbytes = mapped_nbytes
        self._window: Any = ctypes.c_ubyte * nbytes
        # By id. Only ever counted: what keeps the pages is each window's reference to them.
        self._windows: dict[int, weakref.ref[Any]] = {}

    def __del__(self, _unmapping: type[libc.Unmapping] = libc.Unmapping) -> None:
        self._end = _unmapping(self.address, self._mapped_nbytes)

    def window(self) -> memoryview:
        """Return all of the bytes, writable; they and their slices hold the pages."""
        window = self._window.from_address(self.address)
        window.pages = self
        key, forget = id(window), self._windows.pop
        self._windows[key] = weakref.ref(window, lambda _: forget(key))
        return memoryview(window).cast("B")

    def count_windows(self) -> int:
        """Count the windows of which anything is still alive."""
        # The garbage collector clears the references of a cycle without calling back.
        return sum(window() is not None for window in list(self._windows.values()))

    def whole(self, offset: int, nbytes: int) -> tuple[int, int]:
        """Return address and length of a range, begun where its first page begins."""
        inside = offset % PAGE_SIZE
        if offset + nbytes == self.nbytes:
            # The kernel refuses to cut a huge page, and the last one may be part used.
            nbytes = self._mapped_nbytes - offset
        return self.address + offset - inside, nbytes + inside

    def load(self, offset: int, nbytes: int) -> bytes:
        """Copy bytes out directly: a SIGBUS where one is missing."""
        # Not counted as a window: another thread may close, for this call holds the pages.
        window = memoryview(self._window.from_address(self.address)).cast("B")
        return bytes(window[offset : offset + nbytes])

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Copy bytes out by way of the kernel; :class:`PageFault` where one is missing."""
        copy = bytearray(nbytes)
        self._transfer(libc.process_vm_readv, offset, copy)
        return bytes(copy)

    def store(self, offset: int, data: memoryview) -> None:
        """Copy bytes in by way of the kernel; those before a :class:`PageFault` stay."""
        self._transfer(libc.process_vm_writev, offset, bytearray(data))

    def _transfer(self, copy: Callable[..., int], offset: int, buffer: bytearray) -> None:
        done, nbytes = 0, len(buffer)
        here = ctypes.addressof((ctypes.c_ubyte * 0).from_buffer(buffer))
        while done < nbytes:
            ours = libc.IoVec(here + done, nbytes - done)
            theirs = libc.IoVec(self.address + offset + done, nbytes - done)
            try:
                done += copy(os.getpid(), ours, 1, theirs, 1, 0)
            except OSError as error:
                if error.errno == errno.EFAULT:
                    raise PageFault(offset + done) from None
                if error.errno in (errno.EPERM, errno.ENOSYS):
                    error.add_note(
                        "this system forbids process_vm_readv(2) and process_vm_writev(2), by which "
                        "a file is read and written without SIGBUS; allow them, or use view()"
                    )
                raise


def map_pages(nbytes: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> Pages:
    """Map ``nbytes`` bytes; ``OSError`` (``ENOMEM``) with the figures where they do not fit."""
    unit = huge_page_size() if flags & HUGETLB else 1
    mapped_nbytes = -(-nbytes // unit) * unit
    try:
        # ctypes would cut a longer number to 64 bits without a word.
        if mapped_nbytes + offset > sys.maxsize:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        address = libc.mmap(None, mapped_nbytes, protection, flags, fd, offset)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise OSError(
            errno.ENOMEM,
            f"no room to map so much: nbytes={nbytes}; the bounds are the address space, "
            "RLIMIT_AS, how many mappings there may be (vm.max_map_count) and what memory "
            "the kernel may promise (reserve=True asks for none)",
        ) from None
    return Pages(address, nbytes, mapped_nbytes)


def reserve_pages(nbytes: int, least: int) -> Pages:
    """Map shared addresses without a promise of memory; where they are too many, half of them.

    And so on down to ``least``, below which it is the ``OSError`` of :func:`map_pages`.
    The pages are left out of core dumps, which would allocate all of them, and are
    never joined to huge ones, since a touch of one byte would cost 2 MiB.
    """
    while True:
        nbytes = -(-nbytes // PAGE_SIZE) * PAGE_SIZE
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE
        try:
            pages = map_pages(nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags)
        except OSError as error:
            if error.errno != errno.ENOMEM or nbytes <= least:
                raise
            nbytes = max(nbytes // 2, least)
            continue
        for advice in (mmap.MADV_DONTDUMP, mmap.MADV_NOHUGEPAGE):
            # A kernel without huge pages knows no advice about them.
            with contextlib.suppress(OSError):
                libc.madvise(pages.address, nbytes, advice)
        return pages


def byte_count(name: str, value: SupportsIndex) -> int:
    """Return an argument as a plain integer; ``TypeError`` where it is none, or a bool."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, in bytes: {name}={value!r}")
    return operator.index(value)


def huge_page_size() -> int:
    """Return the default huge page size in bytes; ``OSError`` where there is none."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Hugepagesize:"):
                return int(line.split()[1]) * 1024
    raise OSError(errno.ENOSYS, "this kernel has no huge pages")
