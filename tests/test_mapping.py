"""Mapped memory: who shares it, what an access may be, and when it ends."""

from __future__ import annotations

import array
import copy
import ctypes
import functools
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from children import Fork
from ipcmap import PAGE_SIZE, BusyError, ClosedError, Mapping


@pytest.fixture(params=[Mapping.anonymous, Mapping.zero_device], ids=["anonymous", "zero_device"])
def shared(request: pytest.FixtureRequest) -> Iterator[Mapping]:
    """A mapping of one page and a bit, of either kind without a file."""
    with request.param(PAGE_SIZE + 100) as mapping:
        yield mapping


@pytest.fixture
def mapping() -> Iterator[Mapping]:
    """An anonymous mapping of 100 bytes."""
    with Mapping.anonymous(100) as mapping:
        yield mapping


def mapped() -> list[str]:
    """Return where shared memory without a file is mapped, by the kernel's own list."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return [line.split("-")[0] for line in lines if "/dev/zero" in line]


# Shared by the family


def test_mapping_is_shared_by_a_child_and_variables_are_not(shared: Mapping, fork: Fork) -> None:
    """What a child writes the parent sees, at one address; ordinary variables stay private."""
    variable, address = bytearray(b"parent"), shared.address
    shared[:6] = b"before"

    def child() -> None:
        variable[:] = b"child!"
        assert address == shared.address
        assert shared[:6] == b"before"
        shared[PAGE_SIZE : PAGE_SIZE + 5] = b"after"

    assert fork(child).wait() == 0
    assert shared[PAGE_SIZE : PAGE_SIZE + 5] == b"after"
    assert variable == b"parent"


def test_new_mapping_is_zeros_of_exactly_the_length(shared: Mapping) -> None:
    """The length is what was asked for, not rounded to pages; every byte is 0."""
    assert len(shared) == PAGE_SIZE + 100
    assert shared[:] == bytes(PAGE_SIZE + 100)
    assert (shared.writable, shared.huge_pages) == (True, False)


def test_child_that_closes_or_is_killed_takes_nothing_away(mapping: Mapping, fork: Fork) -> None:
    """Each process closes its own copy, and what a killed one wrote stays."""

    def child(offset: int, *, close: bool) -> None:
        mapping[offset] = 7
        if close:
            mapping.close()
            assert mapping.closed
        os.kill(os.getpid(), signal.SIGKILL)

    for offset, close in enumerate((True, False)):
        assert fork(functools.partial(child, offset, close=close)).wait() == -signal.SIGKILL
    assert (mapping.closed, mapping[:2]) == (False, b"\7\7")


# Bytes in and out


@pytest.mark.parametrize(
    "data",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"0123456789")[1:9],
        array.array("i", [1, 2]),
        (ctypes.c_uint16 * 4)(1, 2, 3, 4),
        np.arange(4, dtype=">u2"),
        np.ones((2, 1), dtype=np.float32),
        np.zeros((0, 3)),
        np.array(1.5),
    ],
    ids=lambda data: f"{type(data).__name__}-{memoryview(data).format}",
)
def test_any_contiguous_buffer_can_be_written(mapping: Mapping, data: Any) -> None:
    """What counts is the buffer's bytes, whatever their type, shape and byte order."""
    expected = memoryview(data).tobytes()

    mapping.write(3, data)
    mapping[50 : 50 + len(expected)] = data

    assert expected == mapping.read(3, len(expected)) == mapping.read(50, len(expected))


@pytest.mark.parametrize("make", [Mapping.anonymous, lambda n: Mapping.file("/dev/zero", n)])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_write_from_an_overlapping_view_moves_the_bytes(
    make: Callable[[int], Mapping], source: int, target: int
) -> None:
    """Source and target may overlap, either way round."""
    mapping, before = make(100), bytes(range(100))
    mapping[:] = before

    mapping.write(target, mapping.view(source, 99))

    assert before[source : source + 99] == mapping.read(target, 99)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.read(90, 11), ValueError, "outside the mapping: offset=90, nbytes=11, len"),
        (lambda m: m.read(-1, 1), ValueError, "offset=-1, nbytes=1, length=100"),
        (lambda m: m.read(0, -1), ValueError, "outside the mapping"),
        (lambda m: m.read(2**64, 1), ValueError, "outside the mapping"),
        (lambda m: m.read(0, 1.5), TypeError, "nbytes must be an integer, in bytes: nbytes=1.5"),
        (lambda m: m.read(True, 1), TypeError, "offset=True"),
        (lambda m: m.write(99, b"ab"), ValueError, "offset=99, nbytes=2, length=100"),
        (lambda m: m.view(101), ValueError, "outside the mapping"),
        (lambda m: m.flush(1, 100), ValueError, "outside the mapping"),
        (lambda m: m.advise("cold", 101), ValueError, "outside the mapping"),
        (lambda m: m[100], IndexError, "index lies outside the mapping: 100, length=100"),
        (lambda m: m[-101], IndexError, "-101, length=100"),
        (lambda m: m["a"], TypeError, "'str'"),
        (lambda m: m.__setitem__(0, 256), ValueError, "range"),
        (lambda m: m.__setitem__(0, b"x"), TypeError, "'bytes'"),
        (lambda m: m[::2], ValueError, "no step: step=2; slice its view(), which has"),
        (lambda m: m.__setitem__(slice(None, None, -1), b""), ValueError, "step=-1"),
        (lambda m: m.__setitem__(slice(0, 2), b"abc"), ValueError, "slice=2 bytes, data=3 bytes"),
        (lambda m: m.__setitem__(slice(0, 2), b""), ValueError, "data=0 bytes"),
        (lambda m: m.write(0, "abc"), TypeError, "a bytes-like object is required, not 'str'"),
        (lambda m: m.write(0, np.zeros(6)[::2]), TypeError, "must be contiguous: shape=(3,)"),
        (lambda m: m.write(0, np.zeros((2, 3)).T), TypeError, "numpy.ascontiguousarray(data)"),
    ],
)
def test_bad_access_is_an_error_and_changes_nothing(
    call: Callable[[Any], object], error: type[Exception], text: str
) -> None:
    """A wrong range, index or value raises with the figures, and leaves no view behind."""
    with Mapping.anonymous(100) as mapping, pytest.raises(error, match=re.escape(text)) as kept:
        call(mapping)
    assert kept.value


@pytest.mark.parametrize(
    ("nbytes", "error", "text"),
    [
        (0, ValueError, "length must be at least 1 byte: nbytes=0"),
        (-1, ValueError, "length must be at least 1 byte: nbytes=-1"),
        (2**47, OSError, f"no room to map so much: nbytes={2**47}; the bounds are the address"),
        (2**64 + 1, OSError, f"no room to map so much: nbytes={2**64 + 1}"),
        (True, TypeError, "nbytes must be an integer, in bytes: nbytes=True"),
        (1.0, TypeError, "nbytes must be an integer, in bytes: nbytes=1.0"),
        ("4096", TypeError, "nbytes must be an integer, in bytes: nbytes='4096'"),
    ],
)
def test_bad_length_is_an_error(nbytes: Any, error: type[Exception], text: str) -> None:
    """No length is cut to what fits: it is an error that repeats the figure."""
    for make in (Mapping.anonymous, Mapping.zero_device):
        with pytest.raises(error, match=re.escape(text)):
            make(nbytes)


def test_mapping_is_made_by_its_kind_and_travels_by_fork(mapping: Mapping) -> None:
    """Neither the class itself, nor pickle, nor copy makes a mapping."""
    with pytest.raises(TypeError, match=r"call Mapping\.anonymous"):
        Mapping()
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="travels by fork, not by pickle"):
            duplicate(mapping)


# The end

AFTER_CLOSE: dict[str, Callable[[Mapping], object]] = {
    "__enter__": lambda m: m.__enter__(),
    "__getitem__": lambda m: m[:],
    "__len__": len,
    "__setitem__": lambda m: m.__setitem__(0, 1),
    "address": lambda m: m.address,
    "advise": lambda m: m.advise("normal"),
    "flush": lambda m: m.flush(),
    "lock": lambda m: m.lock(),
    "populate": lambda m: m.populate(),
    "protect": lambda m: m.protect(True),
    "read": lambda m: m.read(0, 0),
    "resident_bytes": lambda m: m.resident_bytes(),
    "unlock": lambda m: m.unlock(),
    "view": lambda m: m.view(),
    "write": lambda m: m.write(0, b""),
}
LEGAL_AFTER_CLOSE = {"__exit__", "__repr__", "close", "closed", "huge_pages", "writable"}
NO_ACCESS = {"__init__", "__reduce__", "anonymous", "file", "zero_device"}


@pytest.mark.parametrize("name", AFTER_CLOSE)
def test_access_after_close_is_an_error(name: str) -> None:
    """No method of a closed mapping reaches for memory that is gone; closing twice is once."""
    mapping = Mapping.anonymous(100)
    mapping.close()
    mapping.close()

    with pytest.raises(ClosedError, match="mapping is closed: anonymous, 100 bytes; map it again"):
        AFTER_CLOSE[name](mapping)
    assert (mapping.closed, repr(mapping)) == (True, "<ipcmap.Mapping of anonymous: closed>")


def test_every_member_is_tried_after_close() -> None:
    """The list above leaves out no method and no property."""
    members = {
        name
        for owner in Mapping.__mro__[:2]
        for name, member in vars(owner).items()
        if isinstance(member, (property, classmethod)) or callable(member)
        if name.startswith("__") or not name.startswith("_")
    }

    assert members == {*AFTER_CLOSE} | LEGAL_AFTER_CLOSE | NO_ACCESS


@pytest.mark.parametrize(
    "take",
    [
        lambda m: m.view(),
        lambda m: m.view(100, 0),
        lambda m: m.view()[10:20][1:2],
        lambda m: m.view().toreadonly(),
        lambda m: m.view(0, 96).cast("I"),
        lambda m: np.frombuffer(m.view(), dtype=np.uint8),
        lambda m: np.frombuffer(m.view(), dtype=np.uint8)[10:20].reshape(2, 5).T,
        lambda m: (ctypes.c_char * 10).from_buffer(m.view()),
    ],
)
def test_close_is_refused_while_a_view_is_alive(take: Callable[[Mapping], object]) -> None:
    """Whatever was made from a view counts, even after the view itself is deleted."""
    mapping = Mapping.anonymous(100)
    view = take(mapping)

    with pytest.raises(BusyError, match="under its views: 1 alive, anonymous, 100 bytes; release"):
        mapping.close()
    assert not mapping.closed

    del view
    mapping.close()


def test_close_counts_the_views() -> None:
    """The message says how many there are; a released one is not among them."""
    mapping = Mapping.anonymous(100)
    views = [mapping.view(), mapping.view(10, 5), mapping.view()]
    slices = [view[1:3] for view in views]

    for alive in (3, 2, 1):
        with pytest.raises(BusyError, match=f"{alive} alive"):
            mapping.close()
        views.pop().release()
        slices.pop().release()
    mapping.close()


def test_pages_go_with_the_last_reference() -> None:
    """A mapping without close is unmapped with the last of it and its views, at once."""
    before = mapped()
    mapping = Mapping.anonymous(PAGE_SIZE)
    view, address = mapping.view(), f"{mapping.address:x}"
    mapping[:4] = b"kept"
    gc.disable()  # no collector may be needed for it
    try:
        del mapping
        assert (bytes(view[:4]), address in mapped()) == (b"kept", True)
        del view
        assert mapped() == before
    finally:
        gc.enable()


def test_with_block_closes_after_an_exception(mapping: Mapping) -> None:
    """Leaving the block unmaps, and lets the exception through."""
    with pytest.raises(ZeroDivisionError), mapping:
        _ = 1 / 0
    assert mapping.closed


def test_finalizer_in_a_cycle_can_close() -> None:
    """A view released while the garbage collector runs is no longer counted."""
    outcomes: list[object] = []

    class Owner:
        def __init__(self) -> None:
            self.mapping = Mapping.anonymous(100)
            self.view, self.cycle = self.mapping.view(), self

        def __del__(self) -> None:
            self.view.release()
            outcomes.append(outcome(Mapping.close, self.mapping))

    Owner()
    gc.collect()

    assert outcomes == [None]


@pytest.mark.parametrize(
    "program",
    [
        "view = mapping.view()[3:]",
        "import builtins; builtins.keep = mapping.view()",
        "mapping.view(); cycle = [mapping]; cycle.append(cycle); del mapping",
        "import sys, numpy; sys.keep = numpy.frombuffer(mapping.view(), 'u1')[::2]; del mapping",
    ],
)
def test_interpreter_exits_in_silence(program: str) -> None:
    """A mapping left open, with or without views, is no message at exit."""
    program = "from ipcmap import Mapping; mapping = Mapping.anonymous(5000); " + program
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    ended = subprocess.run(command, capture_output=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


# Threads


def outcome(call: Callable[[Mapping], object], mapping: Mapping) -> object:
    """Return what the call returns, or which of the legal errors it raises."""
    try:
        return call(mapping)
    except (BusyError, ClosedError) as error:
        return type(error)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("make", [Mapping.anonymous, lambda n: Mapping.file("/dev/zero", n)])
@pytest.mark.parametrize(
    ("use", "result", "closings"),
    [
        (lambda m: m.read(0, 4), bytes(4), {None}),
        (lambda m: m[3], 0, {None}),
        (lambda m: m.write(0, bytes(4)), None, {None, BusyError}),
        (lambda m: bytes(m.view(0, 4)), bytes(4), {None, BusyError}),
        (lambda m: m.resident_bytes(), PAGE_SIZE, {None}),
    ],
    ids=["read", "index", "write", "view", "resident_bytes"],
)
def test_close_in_another_thread_never_takes_memory_from_under_a_use(
    make: Callable[[int], Mapping],
    use: Callable[[Any], object],
    result: object,
    closings: set[object],
    eager_switches: None,
) -> None:
    """A use gives its result or ClosedError; close succeeds, or says that it is in use."""

    def loop(mapping: Mapping, uses: set[object]) -> None:
        while ClosedError not in uses:
            uses.add(outcome(use, mapping))

    for _ in range(20):
        mapping, uses, closed = make(100), set[object](), set[object]()
        mapping[0] = 0
        thread = threading.Thread(target=loop, args=(mapping, uses))
        thread.start()
        while not uses or not mapping.closed:
            closed.add(outcome(Mapping.close, mapping) if uses else None)
        thread.join()

        assert uses <= {result, ClosedError}
        assert closed <= closings
