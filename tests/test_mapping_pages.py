"""What the kernel does with the pages: flush, populate, advise, lock, protect, count."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from children import Fork
from ipcmap import PAGE_SIZE, BusyError, Mapping
from ipcmap._core import libc
from ipcmap.paging import Advice

NOBODY = 65534
HUGETLB = 0x40000
HUGE_PAGE = 2 << 20  # bytes; what the simulated pool gives
POPULATE_READ, POPULATE_WRITE = 22, 23
SLACK = 16  # page faults that the interpreter itself may cost

Record = Callable[[str], list[tuple[int, ...]]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four pages of ``x``."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4 * PAGE_SIZE)
    return path


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Note the arguments of a call into C, and make it all the same."""

    def record(name: str) -> list[tuple[int, ...]]:
        calls: list[tuple[int, ...]] = []
        real = getattr(libc, name)

        def call(*arguments: int) -> Any:
            calls.append(arguments)
            return real(*arguments)

        monkeypatch.setattr(libc, name, call)
        return calls

    return record


def small_pages(nbytes: int) -> Mapping:
    """Map memory whose pages the kernel does not join to huge ones."""
    mapping = Mapping.anonymous(nbytes, reserve=True)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapping.advise("nohugepage")
    return mapping


def status(field: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def touch(mapping: Mapping) -> int:
    """Write to each page once, by plain stores, and return what it cost in page faults."""
    pages = np.frombuffer(mapping.view(), np.uint8)[::PAGE_SIZE]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pages[:] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize(("mode", "flag"), [("async", 1), ("invalidate", 2), ("sync", 4)])
def test_flush_asks_the_kernel_in_its_mode(
    mode: Any, flag: int, path: Path, record: Record
) -> None:
    """Each mode is one msync(2) with its flag, and read(2) then has the bytes."""
    calls = record("msync")
    with Mapping.file(path) as mapping:
        mapping[:5] = b"hello"
        mapping.flush(mode=mode)
        assert calls == [(mapping.address, len(mapping), flag)]
    with path.open("rb") as file:
        assert os.read(file.fileno(), 5) == b"hello"


def test_flush_is_sync_and_covers_the_pages_of_its_range(path: Path, record: Record) -> None:
    """A range is widened to where its first page begins, and never past its own end."""
    calls, end = record("msync"), 3 * PAGE_SIZE + 10
    with Mapping.file(path, end) as mapping:
        for offset, nbytes in [(0, 1), (PAGE_SIZE + 7, 5), (end - 1, 1), (end, 0)]:
            mapping.flush(offset, nbytes)
        widened = [(0, 1), (PAGE_SIZE, 12), (3 * PAGE_SIZE, 10), (3 * PAGE_SIZE, 10)]
        assert calls == [(mapping.address + offset, nbytes, 4) for offset, nbytes in widened]


@pytest.mark.parametrize("word", ["SYNC", "NORMAL", "populate_read", "", None, 4])
def test_unknown_flush_mode_or_advice_is_an_error(word: Any) -> None:
    """The error repeats the word and lists those there are."""
    mapping = Mapping.anonymous(10)
    with pytest.raises(ValueError, match=rf"flush mode is unknown: mode={word!r}; .*'sync'\]"):
        mapping.flush(mode=word)
    with pytest.raises(ValueError, match=f"advice is unknown: {word!r}; .*'normal'"):
        mapping.advise(word)


@pytest.fixture(params=["this kernel", "kernel before 5.14"])
def populating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List what is asked of a kernel that knows how to populate, and of one that does not."""
    asked, real = list[int](), libc.madvise

    def madvise(address: int, nbytes: int, advice: int) -> Any:
        if advice in (POPULATE_READ, POPULATE_WRITE):
            asked.append(advice)
            if request.param != "this kernel":
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(address, nbytes, advice)

    monkeypatch.setattr(libc, "madvise", madvise)
    return asked


def test_populated_pages_cost_no_page_fault(populating: list[int]) -> None:
    """Without populate each page faults at its first touch; after it none does."""
    pages = 500
    with small_pages(pages * PAGE_SIZE) as cold, small_pages(pages * PAGE_SIZE) as warm:
        warm.populate()

        assert touch(cold) >= pages
        assert touch(warm) <= SLACK
        assert (populating, warm.resident_bytes()) == ([POPULATE_WRITE], len(warm))


@pytest.mark.parametrize("private", [False, True])
def test_populated_file_is_read_in_and_not_changed(
    populating: list[int], path: Path, private: bool
) -> None:
    """Every page is in memory afterwards, though none was written to."""
    os.truncate(path, 0)
    os.truncate(path, 500 * PAGE_SIZE)
    before = path.stat().st_mtime_ns
    with Mapping.file(path, private=private) as mapping:
        assert mapping.resident_bytes() == 0
        mapping.populate()
        assert mapping.resident_bytes() == len(mapping)
    assert (populating, path.stat().st_mtime_ns) == ([POPULATE_READ], before)


def test_kernel_takes_every_advice() -> None:
    """Each name is one that madvise(2) knows, and shared memory stays readable after it."""
    has_huge_pages = os.path.exists("/sys/kernel/mm/transparent_hugepage")
    with Mapping.anonymous(2 * HUGE_PAGE) as mapping:
        for advice in get_args(Advice):
            if has_huge_pages or not advice.endswith("hugepage"):
                mapping.advise(advice, PAGE_SIZE, PAGE_SIZE)
                mapping.advise(advice)
            else:
                with pytest.raises(OSError, match=f"kernel refuses advice '{advice}'"):
                    mapping.advise(advice)
            assert mapping[PAGE_SIZE] == 0


def test_remove_zeroes_for_every_process_and_gives_memory_back(fork: Fork) -> None:
    """A child removes a page: the parent reads zeros there, and holds a page less."""
    with small_pages(3 * PAGE_SIZE) as mapping:
        mapping[:] = b"x" * len(mapping)
        assert mapping.resident_bytes() == 3 * PAGE_SIZE

        assert fork(mapping.advise, "remove", PAGE_SIZE, PAGE_SIZE).wait() == 0

        assert mapping.resident_bytes() == 2 * PAGE_SIZE
        assert mapping[PAGE_SIZE - 1 : 2 * PAGE_SIZE + 1] == b"x" + bytes(PAGE_SIZE) + b"x"


def test_remove_spares_what_a_file_holds_past_the_window(path: Path) -> None:
    """A window that ends within a page may not remove that page: the rest is not its own."""
    with Mapping.file(path, PAGE_SIZE + 10) as mapping:
        with pytest.raises(ValueError, match="acts on whole pages"):
            mapping.advise("remove")
        mapping.advise("remove", 0, PAGE_SIZE)
    assert path.read_bytes() == bytes(PAGE_SIZE) + b"x" * 3 * PAGE_SIZE


def test_dontneed_drops_private_changes(path: Path) -> None:
    """The private copy goes, and the file shows through again; the last page may be a part."""
    with Mapping.file(path, PAGE_SIZE + 10, private=True) as mapping:
        mapping[:] = bytes(len(mapping))
        mapping.advise("dontneed", PAGE_SIZE)
        assert (mapping[PAGE_SIZE - 1], mapping[PAGE_SIZE:]) == (0, b"x" * 10)
        with pytest.raises(OSError, match=f"kernel refuses advice 'remove': .*{path}"):
            mapping.advise("remove", 0, PAGE_SIZE)


@pytest.mark.parametrize("advice", ["remove", "dontneed"])
def test_destructive_advice_refuses_part_pages(advice: Any) -> None:
    """Nothing outside the range is thrown away with it; the mapping's own end is no part."""
    with Mapping.anonymous(2 * PAGE_SIZE + 10) as mapping:
        mapping[0] = mapping[PAGE_SIZE] = 7
        for offset, nbytes in [(1, None), (0, 1), (PAGE_SIZE, PAGE_SIZE - 1)]:
            with pytest.raises(
                ValueError, match=f"'{advice}' acts on whole pages: offset={offset}"
            ):
                mapping.advise(advice, offset, nbytes)
        assert (mapping[0], mapping[PAGE_SIZE]) == (7, 7)
        mapping.advise(advice, 2 * PAGE_SIZE)


def test_lock_holds_every_page_until_unlock_or_close(fork: Fork) -> None:
    """The kernel counts the pages as locked in this process, and not in a child."""
    before = status("VmLck:")
    with Mapping.anonymous(9 * PAGE_SIZE + 1) as mapping:
        mapping.lock()

        def child() -> None:
            assert status("VmLck:") == 0

        assert fork(child).wait() == 0
        assert status("VmLck:") - before == mapping.resident_bytes() == 10 * PAGE_SIZE
        mapping.unlock()
        mapping.unlock()
        assert status("VmLck:") == before
        mapping.lock()
    assert status("VmLck:") == before


def test_lock_over_the_limit_names_the_limit(fork: Fork) -> None:
    """An ordinary user who locks too much reads how much is allowed, and holds nothing locked."""
    limit = 4 * PAGE_SIZE

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        text = f"nbytes={limit + 1}, RLIMIT_MEMLOCK={limit} bytes, .*ulimit -l"
        with pytest.raises(OSError, match=text) as refused:
            Mapping.anonymous(limit + 1).lock()
        assert (refused.value.errno, status("VmLck:")) == (errno.ENOMEM, 0)
        Mapping.anonymous(limit).lock()

    assert fork(child).wait() == 0


def test_lock_that_fails_half_way_locks_nothing(path: Path, fork: Fork) -> None:
    """Pages that a shortened file no longer has cannot be locked, and the others are let go."""
    before = status("VmLck:")
    with Mapping.file(path) as mapping:
        assert fork(os.truncate, path, PAGE_SIZE).wait() == 0
        with pytest.raises(OSError, match="pages cannot be locked"):
            mapping.lock()
        assert status("VmLck:") == before


def test_protected_memory_is_read_only_here_alone(fork: Fork) -> None:
    """Writing raises and views are read-only, until protect(False); a child has its own say."""
    with small_pages(100) as mapping:
        mapping.protect(True)
        assert not mapping.writable
        with pytest.raises(TypeError, match=r"read-only: .*protect\(readonly=False\)"):
            mapping[0] = 1
        with pytest.raises(TypeError, match="mapping is read-only"):
            mapping.advise("remove")
        with mapping.view() as view:
            assert view.readonly
            mapping.protect(True)
        mapping.populate()

        def child() -> None:
            mapping.protect(False)
            mapping[0] = 7

        assert fork(child).wait() == 0
        assert (mapping[0], mapping.resident_bytes()) == (7, PAGE_SIZE)
        mapping.protect(False)
        mapping[0] = 8
        assert (mapping.writable, mapping[0]) == (True, 8)


def test_protect_is_refused_under_a_writable_view() -> None:
    """A store through the view would end the process, so the view must go first."""
    with Mapping.anonymous(100) as mapping:
        array = np.frombuffer(mapping.view(), dtype=np.uint8)[5:]
        with pytest.raises(BusyError, match="read-only under its views: 1 alive, anonymous"):
            mapping.protect(True)
        array[0] = 1
        assert (mapping.writable, mapping[5]) == (True, 1)
        del array
        mapping.protect(True)


def test_file_not_opened_for_writing_stays_read_only(path: Path) -> None:
    """protect(False) cannot give what the file was not opened for; a private mapping needs none."""
    with Mapping.file(path, writable=False) as mapping:
        with pytest.raises(PermissionError, match=r"not opened for.*writable=True") as it:
            mapping.protect(False)
        assert (it.value.filename, mapping.writable) == (str(path), False)
    with Mapping.file(path, writable=False, private=True) as mapping:
        mapping.protect(False)
        mapping[0] = 0
    assert path.read_bytes()[:1] == b"x"


def test_protect_in_another_thread_never_kills_a_writer(fork: Fork) -> None:
    """A write is done or refused with TypeError; protect is done or refused with BusyError."""
    mapping, refused = Mapping.anonymous(100), set[object]()

    def write(stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                mapping.write(0, b"x")
                mapping.view()[0] = 1
            except Exception as error:
                refused.add(type(error))

    def child() -> None:
        sys.setswitchinterval(1e-6)
        thread = threading.Thread(target=write, args=(stop := threading.Event(),))
        thread.start()
        for _ in range(5000):
            with contextlib.suppress(BusyError):
                mapping.protect(True)
            mapping.protect(False)
        stop.set()
        thread.join()
        assert refused <= {TypeError}

    assert fork(child).wait() == 0


def pool(monkeypatch: pytest.MonkeyPatch, *, pages: int) -> list[bool]:
    """Stand in for a hugetlb pool; return whether each mmap(2) asked for it, as they come."""
    real, asked = libc.mmap, list[bool]()

    def fake(address: None, nbytes: int, protection: int, flags: int, *file: int) -> Any:
        asked.append(bool(flags & HUGETLB))
        if asked[-1] and (nbytes % HUGE_PAGE or nbytes > pages * HUGE_PAGE):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(address, nbytes, protection, flags & ~HUGETLB, *file)

    monkeypatch.setattr(libc, "mmap", fake)
    monkeypatch.setattr("ipcmap.pages.huge_page_size", lambda: HUGE_PAGE)
    return asked


def mapped_nbytes() -> int:
    """Return how much shared memory without a file is mapped, by the kernel's own list."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        ranges = [line.split()[0].split("-") for line in lines if "/dev/zero" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def test_huge_pages_come_from_the_pool(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    """Where the pool has enough, whole huge pages are mapped, protected and unmapped."""
    asked, calls, before = pool(monkeypatch, pages=2), record("mprotect"), mapped_nbytes()
    with Mapping.anonymous(HUGE_PAGE + 1, huge_pages=True) as mapping:
        assert (mapping.huge_pages, len(mapping), asked) == (True, HUGE_PAGE + 1, [True])
        assert mapped_nbytes() - before == 2 * HUGE_PAGE
        mapping.protect(True)
        assert calls == [(mapping.address, 2 * HUGE_PAGE, mmap.PROT_READ)]
    assert mapped_nbytes() == before


@pytest.mark.parametrize("reserve", [False, True])
def test_huge_pages_fall_back_to_ordinary_ones(
    reserve: bool, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    """With an empty pool, or without a reservation, the kernel is advised to join pages."""
    asked, calls = pool(monkeypatch, pages=0), record("madvise")
    with Mapping.anonymous(HUGE_PAGE + 1, huge_pages=True, reserve=reserve) as mapping:
        mapping[HUGE_PAGE] = 1
        assert (mapping.huge_pages, len(mapping)) == (False, HUGE_PAGE + 1)
        assert asked == ([False] if reserve else [True, False])
        assert calls == [(mapping.address, HUGE_PAGE + 1, mmap.MADV_HUGEPAGE)]


def test_resident_bytes_counts_touched_pages() -> None:
    """Whole pages count, once they are touched; the count is asked for in steps of 1 GiB."""
    step = 1 << 30
    with small_pages(3 * step + 5) as mapping:
        assert mapping.resident_bytes() == 0
        for pages, offset in enumerate((0, step - 1, step, 3 * step, 3 * step + 4)):
            mapping[offset] = 1
            assert mapping.resident_bytes() == min(pages + 1, 4) * PAGE_SIZE


def test_kernel_accounts_what_is_touched_as_shared_memory() -> None:
    """A tebibyte costs what is touched of it, which RssShmem shows (some kernels round it)."""
    before, touched = status("RssShmem:"), 32 << 20
    with small_pages(1 << 40) as mapping:
        mapping[: touched // 2] = mapping[-touched // 2 :] = bytes(touched // 2)
        assert touched * 3 // 4 < status("RssShmem:") - before < touched * 5 // 4
