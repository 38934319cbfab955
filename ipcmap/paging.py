"""What the kernel does with the pages of mapped memory, and when.

The half of :class:`ipcmap.Mapping` that is about pages: writing them to their
file, touching, locking, protecting and counting them. A range that need not be
whole pages is widened to them; advice that throws bytes away never is.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import resource
from typing import Literal

from ipcmap._core import libc
from ipcmap.errors import BrokenError, BusyError, ClosedError
from ipcmap.pages import PAGE_SIZE, PageFault, Pages, byte_count

__all__ = ["Advice", "FlushMode", "PagedMemory"]

FlushMode = Literal["sync", "async", "invalidate"]
Advice = Literal[
    "normal", "random", "sequential", "willneed", "cold", "pageout",
    "dontneed", "remove", "hugepage", "nohugepage", "dontdump", "dodump",
]  # fmt: skip

_FLUSH = {"async": 1, "invalidate": 2, "sync": 4}
# The last two, and populate's two (Linux 5.14), have no name in the mmap module.
_ADVICE = {
    "normal": mmap.MADV_NORMAL,
    "random": mmap.MADV_RANDOM,
    "sequential": mmap.MADV_SEQUENTIAL,
    "willneed": mmap.MADV_WILLNEED,
    "dontneed": mmap.MADV_DONTNEED,
    "remove": mmap.MADV_REMOVE,
    "hugepage": mmap.MADV_HUGEPAGE,
    "nohugepage": mmap.MADV_NOHUGEPAGE,
    "dontdump": mmap.MADV_DONTDUMP,
    "dodump": mmap.MADV_DODUMP,
    "cold": 20,
    "pageout": 21,
}
_POPULATE_READ, _POPULATE_WRITE = 22, 23

_DESTRUCTIVE = frozenset({"dontneed", "remove"})

_RESIDENT_STEP = PAGE_SIZE << 18  # bytes a call; its answer is a byte for each page


class PagedMemory:
    """Mapped pages under a name, until they are closed."""

    __slots__ = ("__weakref__", "_file_backed", "_name", "_pages", "_writable")

    _pages: Pages | None
    _name: str
    _writable: bool
    _file_backed: bool

    def flush(self, offset: int = 0, nbytes: int | None = None, mode: FlushMode = "sync") -> None:
        """Push changed pages to the file: msync(2) over every page of the range.

        Other processes see a write at once without it. Flushing is about the
        file on its disk, and does nothing for memory without a file or private.

        Args:
            offset: Where the range begins, in bytes.
            nbytes: Its length in bytes; ``None`` = to the end.
            mode: ``"sync"`` returns when the file has it, ``"async"`` leaves the
                moment to the kernel, ``"invalidate"`` asks that other mappings
                of the file be brought up to date (on Linux they always are).

        Raises:
            ClosedError: The mapping is closed.
            ValueError: The mode is unknown, or the range lies outside.
            OSError: The disk reports an error (``EIO``), or with
                ``"invalidate"`` a page of the range is locked (``EBUSY``).
        """
        if mode not in _FLUSH:
            raise ValueError(f"flush mode is unknown: mode={mode!r}; use one of {[*_FLUSH]}")
        pages = self._open()
        libc.msync(*pages.whole(*self._range(pages, offset, nbytes)), _FLUSH[mode])

    def advise(self, advice: Advice, offset: int = 0, nbytes: int | None = None) -> None:
        """Tell the kernel how the range will be used: madvise(2).

        ``"dontneed"`` drops this process's private changes, and ``"remove"``
        zeroes the range for every process and gives its memory back. These two
        want whole pages (the last page of a mapping may be part used, but not
        for ``"remove"`` in a file); any other advice is widened to them.

        Args:
            advice: The kernel's name for it in lower case, such as ``"sequential"``.
            offset: Where the range begins, in bytes.
            nbytes: Its length in bytes; ``None`` = to the end.

        Raises:
            ClosedError: The mapping is closed.
            TypeError: ``"remove"`` on a read-only mapping.
            ValueError: The advice is unknown, the range lies outside, or it must
                be whole pages and is not.
            OSError: The kernel knows no such advice for this kind of mapping.
        """
        if advice not in _ADVICE:
            raise ValueError(f"advice is unknown: {advice!r}; use one of {[*_ADVICE]}")
        pages = self._open()
        offset, nbytes = self._range(pages, offset, nbytes)
        end = offset + nbytes
        # The rest of a file's last page may hold bytes that are not ours to remove.
        tail_is_ours = end == pages.nbytes and not (advice == "remove" and self._file_backed)
        ends_inside = end % PAGE_SIZE and not tail_is_ours
        if advice in _DESTRUCTIVE and (offset % PAGE_SIZE or ends_inside):
            raise ValueError(
                f"advice {advice!r} acts on whole pages: offset={offset}, nbytes={nbytes}, "
                f"page size={PAGE_SIZE}; choose a range of whole pages"
            )
        if advice == "remove" and not self._writable:
            raise self._read_only()
        try:
            libc.madvise(*pages.whole(offset, nbytes), _ADVICE[advice])
        except OSError as error:
            raise OSError(
                error.errno, f"kernel refuses advice {advice!r}: {error.strerror}", self._name
            ) from None

    def populate(self) -> None:
        """Touch every page now, so that no later access waits for one.

        Memory without a file is allocated. A file is read in; the first write
        to each of its pages still costs a fault, which tells the kernel of it.

        Raises:
            ClosedError: The mapping is closed.
            BrokenError: The file no longer reaches to the end of the mapping.
            OSError: There is not enough memory (``ENOMEM``).
        """
        pages = self._open()
        advice = _POPULATE_READ if self._file_backed else _POPULATE_WRITE
        try:
            libc.madvise(*pages.whole(0, pages.nbytes), advice)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EFAULT):
                raise
            # An older kernel, or a page that is gone: the loop tells which.
            try:
                for offset in range(0, pages.nbytes, PAGE_SIZE):
                    pages.fetch(offset, 1)
            except PageFault as fault:
                raise self._broken(fault.offset) from None

    def lock(self) -> None:
        """Keep every page in memory until :meth:`unlock` or close: mlock(2).

        A child does not inherit the lock, only the mapping.

        Raises:
            ClosedError: The mapping is closed.
            OSError: More than ``RLIMIT_MEMLOCK`` allows, or more than there is.
        """
        pages = self._open()
        try:
            libc.mlock(*pages.whole(0, pages.nbytes))
        except OSError as error:
            # The kernel leaves locked what it could not bring in.
            libc.munlock(*pages.whole(0, pages.nbytes))
            soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            raise OSError(
                error.errno,
                f"pages cannot be locked: nbytes={pages.nbytes}, RLIMIT_MEMLOCK={soft} bytes, "
                f"{error.strerror}; raise the limit (ulimit -l) or lock less",
            ) from None

    def unlock(self) -> None:
        """Undo :meth:`lock`; harmless where nothing is locked."""
        pages = self._open()
        libc.munlock(*pages.whole(0, pages.nbytes))

    def protect(self, readonly: bool) -> None:
        """Forbid or allow writing, in this process alone: mprotect(2).

        One thread at a time may call it.

        Raises:
            ClosedError: The mapping is closed.
            BusyError: A writable view is alive, or another thread writes; to go
                on through it would end the process.
            PermissionError: The file was not opened for writing.
        """
        pages = self._open()
        if readonly and self._writable:
            # The flag first, then the count: a thread that writes or takes a view
            # looks at them in the other order, so that one of the two gives way.
            self._writable = False
            views = pages.count_windows()
            if views:
                self._writable = True
                raise BusyError(
                    f"mapping cannot become read-only under its views: {views} alive, "
                    f"{self._name}; release them first"
                )
        protection = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
        try:
            libc.mprotect(*pages.whole(0, pages.nbytes), protection)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                "file was not opened for writing, so its mapping stays read-only; "
                "map it with writable=True",
                self._name,
            ) from None
        self._writable = not readonly

    def resident_bytes(self) -> int:
        """Count the bytes of its pages that are in memory now: mincore(2).

        Counts whole pages, whoever touched them; for a file, those in the page
        cache (of one that this process may not write, the kernel says all). A
        snapshot, stale when it returns. Its cost grows with the length of the
        mapping, touched or not.

        Raises:
            ClosedError: The mapping is closed.
        """
        pages = self._open()
        resident = 0
        for start in range(0, pages.nbytes, _RESIDENT_STEP):
            nbytes = min(_RESIDENT_STEP, pages.nbytes - start)
            states = ctypes.create_string_buffer(-(-nbytes // PAGE_SIZE))
            libc.mincore(pages.address + start, nbytes, states)
            resident += sum(state & 1 for state in states.raw)
        return resident * PAGE_SIZE

    def _open(self) -> Pages:
        # One load: the caller's reference keeps the pages if another thread closes.
        pages = self._pages
        if pages is None:
            raise ClosedError(f"mapping is closed: {self._name}; map it again")
        return pages

    def _range(self, pages: Pages, offset: int, nbytes: int | None) -> tuple[int, int]:
        offset = byte_count("offset", offset)
        nbytes = pages.nbytes - offset if nbytes is None else byte_count("nbytes", nbytes)
        if offset < 0 or nbytes < 0 or offset + nbytes > pages.nbytes:
            raise ValueError(
                f"range lies outside the mapping: offset={offset}, nbytes={nbytes}, "
                f"length={pages.nbytes}"
            )
        return offset, nbytes

    def _read_only(self) -> TypeError:
        return TypeError(
            f"mapping is read-only: {self._name}; map it with writable=True, "
            "or call protect(readonly=False)"
        )

    def _broken(self, offset: int) -> BrokenError:
        return BrokenError(
            f"file no longer reaches this far: {self._name}, offset={offset} in the mapping; "
            "another process shortened it, or its disk is full: map it again"
        )
