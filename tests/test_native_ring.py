"""The native engine's ring: the reference engine's bytes and promises, in C."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

import pytest

from ipcmap import Arena, ClosedError, Ring
from ipcmap._core import (
    layout,
    monitor_layout,
    native,
    reference_slots,
    ring_layout,
    slot_layout,
)
from ipcmap.native_ring import NativeRing


def test_both_files_of_offsets_say_the_same() -> None:
    """native_layout.h mirrors ring_layout.py, layout.py, monitor_layout.py, slot_layout.py."""
    size_class = layout.Layout(1 << 30, 10).classes[3]
    line = 8 * size_class.number + 320 // 8
    in_python = {
        "CLASS_HIGH_WATER": size_class.high_water - line,
        "CLASS_CURSOR": size_class.cursor - line,
        "CLASS_USED": size_class.used - line,
        "CLASS_USED_NBYTES": size_class.used_nbytes - line,
        "CLASS_WARM": size_class.warm - line,
        "FIRST_OF_RING": layout.Kind.RECORD,
        "KIND_RECORD": layout.Kind.RECORD,
        "LAST_OF_RING": layout.Kind.LEAVING,
        "HOLDER_BITS": slot_layout.HOLDER_BITS,
        "OWN_NUMBER": reference_slots._NUMBER,
        "OWN_GENERATION": reference_slots._GENERATION,
    } | {
        f"M_{name}": value
        for name, value in vars(monitor_layout).items()
        if name[0].isupper() and name not in ("WORD", "KEPT", "LISTENERS", "CALLS")
    }
    for name in set(native.layout) - set(in_python):
        in_python[name] = getattr(layout if hasattr(layout, name) else ring_layout, name)

    assert in_python == native.layout
    shared = {name for name in vars(ring_layout) if name[0].isupper() and name.isupper()}
    assert shared - set(native.layout) == {
        "WORD_MASK", "B_ARMED", "B_PID", "B_FD", "B_DEVICE", "B_INODE", "B_BELL", "EXACT",
        "FIRST_LENGTH", "FIRST_NUMBER", "KIND_HALF", "NUMBER_HALF", "HALF_MASK",
    }  # fmt: skip


# Which engine


def test_each_arena_has_rings_of_its_engine() -> None:
    """Both in one process; each is an ipcmap.Ring, and stays what it is in a pickle."""
    for backend, expected in (("native", NativeRing), ("reference", Ring)):
        arena = Arena(1 << 24, backend=backend)
        ring = Ring(arena=arena)
        again = pickle.loads(pickle.dumps(ring))
        again.put(b"sent")

        assert (type(ring), type(again)) == (expected, expected)
        assert isinstance(ring, Ring)
        assert ring.get(0) == b"sent"
        ring.destroy()
        del ring, again
        arena.close()


def test_a_subclass_of_ring_has_its_own_methods(native_arena: Arena) -> None:
    """It uses the reference engine's, on the same bytes."""

    class Loud(Ring):
        __slots__ = ()

        def put(self, data: bytes, timeout: float | None = None) -> None:
            super().put(data.upper(), timeout)

    ring = Loud(arena=native_arena)
    ring.put(b"abc")

    assert ring.get() == b"ABC"


@pytest.mark.parametrize(("chosen", "expected"), [("", "native"), ("reference", "reference")])
def test_native_is_taken_where_it_is_built(chosen: str, expected: str) -> None:
    """Unless the environment says otherwise."""
    code = "import ipcmap; print(ipcmap.backend, type(ipcmap.Ring()).__name__)"
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], env=os.environ | {"IPCMAP_BACKEND": chosen}, capture_output=True, text=True, check=True
    )  # fmt: skip

    assert result.stdout.split()[0] == expected


def test_where_it_is_not_built_the_reference_engine_is_taken_unless_native_was_named() -> None:
    """A compiler is no requirement."""
    code = (
        "import sys; sys.modules['ipcmap._core.native'] = None; import ipcmap; "
        "ring = ipcmap.Ring(); ring.put(b'x'); print(ipcmap.backend, ring.get())"
    )
    run = [sys.executable, "-I", "-c", code]

    unnamed = subprocess.run(
        run, env=os.environ | {"IPCMAP_BACKEND": ""}, capture_output=True, text=True, check=True
    )
    named = subprocess.run(
        run,
        env=os.environ | {"IPCMAP_BACKEND": "native"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert unnamed.stdout == "reference b'x'\n"
    assert "engine cannot load: IPCMAP_BACKEND='native'" in named.stderr


def test_an_unshared_ring_is_freed_with_its_handle(native_arena: Arena) -> None:
    """At once: handle and core make no cycle."""
    gc.disable()
    try:
        ring = Ring(arena=native_arena)
        ring.put(b"x")
        gone = weakref.ref(ring)
        del ring

        assert gone() is None
        assert native_arena.statistics().blocks == 0
    finally:
        gc.enable()


def test_a_handle_that_is_not_attached_is_an_error() -> None:
    """Never a crash."""
    broken = object.__new__(NativeRing)
    with pytest.raises(TypeError, match="not attached"):
        broken.put(b"x")
    with pytest.raises(TypeError, match="not attached"):
        broken.get_many()
    with pytest.raises(TypeError):
        native.RingMethods.put(object(), b"x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no ring has such figures"):
        native.Core(memoryview(bytearray(1000)), 1024, 10, memoryview(bytearray(8)), 0, 0, None)


# The same ring


LENGTHS = [0, 1, 7, 8, 9, 40, 63, 64, 100, 500, 2000, 70_000]


def test_both_engines_methods_work_on_the_same_ring(
    native_arena: Arena, chance: random.Random
) -> None:
    """Whoever does each step, all that is put comes out once, in order."""
    for capacity in (64, 256, 4096, 1 << 20):
        ring = Ring(capacity, arena=native_arena)
        expected: deque[bytes] = deque()
        for number in range(1500):
            kind: type[Ring] = chance.choice([NativeRing, Ring])
            data = [
                chance.randbytes(chance.choice(LENGTHS))[: chance.choice([100_000, capacity // 3])]
                for _ in range(chance.randrange(1, 9))
            ]
            match chance.randrange(6):
                case 0 | 1:
                    try:
                        kind.put(ring, data[0], 0)
                        expected.append(data[0])
                    except queue.Full:
                        assert expected, "what fits an empty ring is taken"
                case 2:
                    try:
                        kind.put_many(ring, data, 0)
                        expected += data
                    except queue.Full as full:
                        expected += data[: full.put]  # type: ignore[attr-defined]
                case 3 | 4:
                    try:
                        record = kind.get(ring, 0)
                    except queue.Empty:
                        assert not expected
                    else:
                        assert record == expected.popleft()
                case 5:
                    most = chance.choice([None, 1, 3])
                    try:
                        taken = kind.get_many(ring, most, 0)
                    except queue.Empty:
                        assert not expected
                    else:
                        assert len(taken) <= (most or len(taken))
                        assert taken == [expected.popleft() for _ in taken]
            if number % 50 == 0 and expected:
                with ring.lease() as view:
                    assert bytes(view) == expected.popleft()
            assert len(ring) == len(expected)
        assert len(expected) == len(ring)
        ring.destroy()


def test_what_it_refuses_it_refuses_as_the_reference_engine_does(native_arena: Arena) -> None:
    """The same classes and messages."""
    view = memoryview(b"0123456789")[::2]
    calls: list[tuple[str, list[object], dict[str, object]]] = [
        ("put", [], {}),
        ("put", ["text"], {}),
        ("put", [view], {}),
        ("put", [b"x", "soon"], {}),
        ("put", [b"x"], {"timeout": float("nan")}),
        ("put", [b"x"], {"deadline": 1}),
        ("put", [b"x", 0], {"data": b"x"}),
        ("put_many", [], {}),
        ("put_many", [5], {}),
        ("put_many", [[b"x", "y"]], {}),
        ("put_many", [[b"x"], "soon"], {}),
        ("get", ["soon"], {}),
        ("get", [0, 0], {}),
        ("get", [0], {}),
        ("get_many", [0], {}),
        ("get_many", ["many"], {}),
        ("get_many", [None, "soon"], {}),
        ("get_many", [], {"timeout": 0}),
    ]
    for name, arguments, keywords in calls:
        said = []
        for kind in (NativeRing, Ring):
            ring = Ring(arena=native_arena)
            with pytest.raises((TypeError, ValueError, queue.Empty)) as info:
                getattr(kind, name)(ring, *arguments, **keywords)
            said.append((info.type, str(info.value)))
            assert len(ring) == 0
        assert said[0] == said[1]


def test_records_are_whatever_has_a_buffer(native_arena: Arena) -> None:
    """None of them is held on to."""
    ring = Ring(arena=native_arena)
    data = bytearray(b"12345678")
    for record in (data, memoryview(data)[2:4], memoryview(data).cast("I"), b""):
        ring.put(record)
    data.append(0)

    assert ring.get_many() == [b"12345678", b"34", b"12345678", b""]


@pytest.mark.parametrize("timeout", [0, 0.0, -1, 0.05, 0.05 + 0])
def test_a_timeout_ends_the_wait(native_arena: Arena, timeout: float) -> None:
    """Empty and Full, not earlier."""
    ring = Ring(64, arena=native_arena)
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (queue.Empty, lambda: ring.get(timeout)),
        (queue.Empty, lambda: ring.get_many(timeout=timeout)),
        (queue.Full, lambda: [*map(ring.put, [b"x" * 20] * 9, [timeout] * 9)]),
        (queue.Full, lambda: ring.put_many([b"y" * 20] * 9, timeout)),
    ]
    for expected, call in calls:
        begin = time.monotonic()
        with pytest.raises(expected):
            call()
        assert time.monotonic() - begin >= timeout


def test_full_says_how_many_of_a_batch_went_in(native_arena: Arena) -> None:
    """Also where they went in by more than one commit."""
    ring = Ring(1 << 16, arena=native_arena)

    with pytest.raises(queue.Full) as info:
        ring.put_many((b"%d" % number for number in range(10_000)), 0)

    went_in = info.value.put  # type: ignore[attr-defined]
    assert len(ring) == went_in == (1 << 16) // 16 - 1
    assert ring.get_many() == [b"%d" % number for number in range(went_in)]


def test_the_end_comes_after_what_is_left(native_arena: Arena) -> None:
    """Also for who waits already."""
    ring = Ring(arena=native_arena)
    ends: list[str] = []

    def wait() -> None:
        try:
            ring.get()
        except ClosedError:
            ends.append("end")

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while ring.statistics().waiting_consumers < 3:
        time.sleep(0.001)
    ring.close()
    for thread in threads:
        thread.join()

    assert ends == ["end"] * 3
    with pytest.raises(ClosedError):
        ring.put(b"x")
    with pytest.raises(ClosedError):
        ring.put_many([b"x"])
    with pytest.raises(ClosedError):
        ring.get_many()


@pytest.mark.parametrize("full", [False, True])
def test_a_thread_that_is_both_sides_waits_for_nobody_to_get_ahead(
    native_arena: Arena, full: bool
) -> None:
    """Each side of the ring had to wait once; a pair costs what it costs in another ring."""

    def prepared(waits: bool) -> Ring:
        ring = Ring(4096, arena=native_arena)
        side = (lambda: ring.put(b"x")) if full else ring.get
        while full and ring._core.backlog() < ring.capacity - 16:
            ring.put(b"x")
        if waits:
            thread = threading.Thread(target=side)
            thread.start()
            while not sum(ring._core.glance()[1:3]):
                time.sleep(0.001)
            ring.get() if full else ring.put(b"x")
            thread.join()
        if not full:
            ring.put(b"x")
        return ring

    def pair(ring: Ring) -> int:
        """Return the nanoseconds of 100 pairs."""
        begin = time.perf_counter_ns()
        for _ in range(100):
            ring.get()
            ring.put(b"x")
        return time.perf_counter_ns() - begin

    rings = prepared(False), prepared(True)
    costs = [[pair(ring) for ring in rings] for _ in range(500)]
    usual, after_a_wait = (min(column) for column in zip(*costs, strict=True))
    assert after_a_wait < 2.5 * usual
