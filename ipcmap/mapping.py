"""mmap(2) for Python: memory that processes share, and files as memory.

It promises safety where a raw pointer has none:

* An access after :meth:`Mapping.close` raises; it never reaches memory that is
  gone, not even from another thread, and ``close`` refuses while a view is alive.
* :meth:`Mapping.read`, :meth:`Mapping.write` and indexing raise where the pages
  of a file are gone. A raw :meth:`Mapping.view` has no such guard.

A mapping synchronises nothing. Two processes that touch the same bytes need a
semaphore, a lock or a ring beside it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import operator
import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, SupportsIndex, overload

from ipcmap.errors import BusyError
from ipcmap.pages import HUGETLB, NORESERVE, PAGE_SIZE, PageFault, Pages, byte_count, map_pages
from ipcmap.paging import Advice, FlushMode, PagedMemory

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["PAGE_SIZE", "Advice", "FlushMode", "Mapping"]


class Mapping(PagedMemory):
    """Memory mapped into this process, shared or private, with or without a file.

    Made by :meth:`anonymous`, :meth:`zero_device` or :meth:`file`. It counts,
    slices and is a context manager; ``len(mapping)`` is its length in bytes. A
    child made by fork inherits it at the same address. A process that is killed
    takes nothing from the others: what it wrote before stays.

    Example:
        >>> import os
        >>> with Mapping.anonymous(4096) as shared:
        ...     pid = os.fork()
        ...     if pid == 0:
        ...         shared[:5] = b"hello"
        ...         os._exit(0)
        ...     _ = os.waitpid(pid, 0)
        ...     shared[:5]
        b'hello'
    """

    __slots__ = ("_huge",)

    _huge: bool

    def __init__(self) -> None:
        """Refused: a mapping comes from one of the three constructors."""
        raise TypeError(
            "a mapping is made by its kind; call Mapping.anonymous(nbytes), "
            "Mapping.zero_device(nbytes) or Mapping.file(path_or_fd)"
        )

    @classmethod
    def _made(
        cls, pages: Pages, name: str, *, writable: bool, file_backed: bool, huge: bool = False
    ) -> Mapping:
        self = object.__new__(cls)
        self._pages, self._name, self._writable = pages, name, writable
        self._file_backed, self._huge = file_backed, huge
        return self

    # Constructors

    @classmethod
    def anonymous(cls, nbytes: int, *, reserve: bool = False, huge_pages: bool = False) -> Mapping:
        """Map zeroed memory without a name or a file, shared with every later child.

        Args:
            nbytes: Length in bytes, at least 1.
            reserve: Promise no memory up front (``MAP_NORESERVE``), so that a
                length far beyond the machine's memory costs only what is touched.
            huge_pages: Take pages from the hugetlb pool. Where it has too few,
                the mapping gets ordinary pages, which the kernel is advised to
                join; :attr:`huge_pages` tells which came of it.

        Raises:
            ValueError: ``nbytes`` is below 1.
            OSError: The kernel has no room for it (``ENOMEM``).
        """
        nbytes = _positive(nbytes)
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | (NORESERVE if reserve else 0)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        name = f"anonymous, {nbytes} bytes"
        # Without a reservation an empty pool would be a SIGBUS at the first touch.
        if huge_pages and not reserve:
            with contextlib.suppress(OSError):
                pages = map_pages(nbytes, protection, flags | HUGETLB)
                return cls._made(pages, name, writable=True, file_backed=False, huge=True)
        mapping = cls._made(
            map_pages(nbytes, protection, flags), name, writable=True, file_backed=False
        )
        if huge_pages:
            with contextlib.suppress(OSError):
                mapping.advise("hugepage")
        return mapping

    @classmethod
    def zero_device(cls, nbytes: int) -> Mapping:
        """Map ``/dev/zero`` shared: the older way to the same as :meth:`anonymous`.

        Args:
            nbytes: Length in bytes, at least 1.

        Raises:
            ValueError: ``nbytes`` is below 1.
            OSError: ``/dev/zero`` is missing, or the kernel has no room (``ENOMEM``).
        """
        nbytes = _positive(nbytes)
        fd = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)
        try:
            pages = map_pages(nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd)
        finally:
            os.close(fd)
        return cls._made(pages, f"/dev/zero, {nbytes} bytes", writable=True, file_backed=False)

    @classmethod
    def file(
        cls,
        path_or_fd: int | str | bytes | os.PathLike[str] | os.PathLike[bytes],
        nbytes: int = 0,
        *,
        offset: int = 0,
        private: bool = False,
        writable: bool = True,
    ) -> Mapping:
        """Map a window of a file. The file never grows or shrinks by it.

        The window may end anywhere in the file's last page; what lies there past
        the end of the file reads as zeros and is no part of the file.

        Args:
            path_or_fd: A path, or an open descriptor. The mapping keeps neither:
                a descriptor may be closed while the mapping lives on.
            nbytes: Length in bytes; 0 = all of the file from ``offset`` on.
            offset: Where the window begins, a multiple of :data:`PAGE_SIZE`.
            private: Copy on write: what is written stays in this process (a
                child has its copy of it) and the file never changes. The file
                needs no write permission.
            writable: ``False`` maps for reading; the file needs no write permission.

        Raises:
            ValueError: A length or offset that no window of this file can have.
            FileNotFoundError, PermissionError, IsADirectoryError, OSError: The
                path or descriptor cannot be mapped; a pipe and a socket never can.
        """
        if isinstance(path_or_fd, SupportsIndex):
            fd = operator.index(path_or_fd)
            return cls._map_file(fd, f"descriptor {fd}", nbytes, offset, private, writable)
        # O_NONBLOCK: opening a pipe by its name must not wait for its other end.
        flags = os.O_RDWR if writable and not private else os.O_RDONLY
        try:
            fd = os.open(path_or_fd, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError as error:
            if flags == os.O_RDWR:
                error.add_note(
                    "to map it without write permission, pass writable=False or private=True"
                )
            raise
        try:
            name = os.fsdecode(path_or_fd)
            return cls._map_file(fd, name, nbytes, offset, private, writable)
        finally:
            os.close(fd)

    @classmethod
    def _map_file(
        cls, fd: int, name: str, nbytes: int, offset: int, private: bool, writable: bool
    ) -> Mapping:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        try:
            nbytes, offset = byte_count("nbytes", nbytes), byte_count("offset", offset)
            nbytes = _file_window(os.fstat(fd), name, nbytes, offset)
            pages = map_pages(nbytes, protection, kind, fd, offset)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                "descriptor allows less than the mapping asks for: a shared writable mapping "
                "needs it open for reading and writing, any other for reading; "
                "open it so, or pass writable=False or private=True",
                name,
            ) from None
        except OSError as error:
            error.filename = name
            raise
        return cls._made(pages, name, writable=writable, file_backed=True)

    # Facts

    @property
    def address(self) -> int:
        """Where it begins in this process, and in every child that inherited it."""
        return self._open().address

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called in this process."""
        return self._pages is None

    @property
    def writable(self) -> bool:
        """Whether this process may write to it now; see :meth:`protect`."""
        return self._writable

    @property
    def huge_pages(self) -> bool:
        """Whether its pages come from the hugetlb pool."""
        return self._huge

    def __len__(self) -> int:
        return self._open().nbytes

    def __repr__(self) -> str:
        pages = self._pages
        state = "closed" if pages is None else f"{pages.nbytes} bytes"
        name = self._name if self._file_backed else self._name.partition(",")[0]
        return f"<ipcmap.Mapping of {name}: {state}>"

    # Bytes in and out

    def read(self, offset: int, nbytes: int) -> bytes:
        """Copy ``nbytes`` bytes out, beginning at ``offset``.

        Raises:
            ClosedError: The mapping is closed.
            ValueError: The range does not lie within the mapping.
            BrokenError: A page of the range is gone: the file was shortened.
        """
        pages = self._open()
        offset, nbytes = self._range(pages, offset, nbytes)
        if not self._file_backed:
            return pages.load(offset, nbytes)
        try:
            return pages.fetch(offset, nbytes)
        except PageFault as fault:
            raise self._broken(fault.offset) from None

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """Copy ``data`` in, beginning at ``offset``: all of it, or an error.

        Other processes may see the bytes arrive in any order. A process killed
        in here leaves any part of them written.

        Args:
            offset: Where to begin, in bytes.
            data: Any contiguous buffer: bytes, bytearray, memoryview, array, ndarray.

        Raises:
            ClosedError: The mapping is closed.
            TypeError: The mapping is read-only, or ``data`` is not contiguous.
            ValueError: The range does not lie within the mapping.
            BrokenError: A page of the range is gone; what lies before it is written.
        """
        pages = self._open()
        source = _contiguous(data)
        offset, nbytes = self._range(pages, offset, source.nbytes)
        with pages.window() as window:
            # Asked now that protect() counts the window: see there.
            if not self._writable:
                raise self._read_only()
            if not self._file_backed:
                window[offset : offset + nbytes] = source
                return
            try:
                pages.store(offset, source)
            except PageFault as fault:
                raise self._broken(fault.offset) from None

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> bytes: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | bytes:
        if isinstance(index, slice):
            start, stop = self._slice(index)
            return self.read(start, stop - start)
        return self.read(self._index(index), 1)[0]

    @overload
    def __setitem__(self, index: SupportsIndex, value: int) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: ReadableBuffer) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: int | ReadableBuffer) -> None:
        if isinstance(index, slice):
            start, stop = self._slice(index)
            data = _contiguous(value)
            if data.nbytes != stop - start:
                raise ValueError(
                    f"slice and data differ in length: slice={stop - start} bytes, "
                    f"data={data.nbytes} bytes; a mapping never changes its length"
                )
            self.write(start, data)
        else:
            self.write(self._index(index), bytes((operator.index(value),)))  # type: ignore[arg-type]

    def view(self, offset: int = 0, nbytes: int | None = None) -> memoryview:
        """Return the bytes themselves, without a copy; ``None`` = to the end.

        A view, a slice of it and an array over it each keep the mapping from
        being closed. Unlike :meth:`read`, a load from a view of a file that
        another process shortens is a SIGBUS that ends the process.

        Raises:
            ClosedError: The mapping is closed.
            ValueError: The range does not lie within the mapping.
        """
        pages = self._open()
        offset, nbytes = self._range(pages, offset, nbytes)
        view = pages.window()[offset : offset + nbytes]
        return view if self._writable else view.toreadonly()

    # The end

    def close(self) -> None:
        """Unmap it from this process; other processes keep theirs. Twice is once.

        Raises:
            BusyError: Views are alive, or another thread is writing; the message
                says how many. The mapping stays open.
        """
        # One load: another thread may close at the same time.
        pages = self._pages
        if pages is None:
            return
        views = pages.count_windows()
        if views:
            raise BusyError(
                f"mapping cannot be closed under its views: {views} alive, {self._name}; "
                "release them (memoryview.release, del array), then close"
            )
        self._pages = None

    def __enter__(self) -> Mapping:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # A refusal would hide the error; views in its frames keep the pages until they go.
            self._pages = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a mapping travels by fork, not by pickle: create it before the children, "
            "or map the same file in each process"
        )

    # Inside

    def _slice(self, index: slice) -> tuple[int, int]:
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError(
                f"slice of a mapping has no step: step={step}; slice its view(), which has"
            )
        return start, max(start, stop)

    def _index(self, index: SupportsIndex) -> int:
        position, length = operator.index(index), len(self)
        if not -length <= position < length:
            raise IndexError(f"index lies outside the mapping: {position}, length={length}")
        return position % length


def _file_window(status: os.stat_result, name: str, nbytes: int, offset: int) -> int:
    """Check a window against the file and return its length in bytes."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory cannot be mapped", name)
    if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENODEV, "a pipe or socket has no pages to map; read it instead", name)
    if offset < 0 or offset % PAGE_SIZE:
        below = max(0, offset // PAGE_SIZE * PAGE_SIZE)
        raise ValueError(
            f"offset must be a multiple of the page size: offset={offset}, "
            f"page size={PAGE_SIZE}; the nearest are {below} and {below + PAGE_SIZE}"
        )
    if nbytes < 0:
        raise ValueError(f"length must not be negative: nbytes={nbytes}; 0 = the file's length")
    if not stat.S_ISREG(status.st_mode):
        return _positive(nbytes)
    size = status.st_size
    if offset >= size:
        raise ValueError(
            f"window begins at or after the end of the file: {name}, offset={offset}, "
            f"file={size} bytes; lengthen the file first (os.truncate)"
        )
    last_page_end = -(-size // PAGE_SIZE) * PAGE_SIZE
    if offset + nbytes > last_page_end:
        raise ValueError(
            f"window ends after the last page of the file: {name}, offset={offset}, "
            f"nbytes={nbytes}, file={size} bytes, page size={PAGE_SIZE}; "
            "lengthen the file first (os.truncate)"
        )
    return nbytes or size - offset


def _positive(nbytes: int) -> int:
    nbytes = byte_count("nbytes", nbytes)
    if nbytes < 1:
        raise ValueError(f"length must be at least 1 byte: nbytes={nbytes}")
    return nbytes


def _contiguous(data: object) -> memoryview:
    view = memoryview(data)  # type: ignore[arg-type]
    if not view.c_contiguous:
        raise TypeError(
            f"data must be contiguous: shape={view.shape}, strides={view.strides}; "
            "pass bytes(data), or numpy.ascontiguousarray(data)"
        )
    # An empty array of several dimensions cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")
