"""Every behaviour on every engine, through one fixture."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

import ipcmap
from ipcmap import sync
from ipcmap._core import reference_monitor, reference_rooms

# Programs that tests start take the installed package, and not what lies in their folder.
os.environ["PYTHONSAFEPATH"] = "1"

pytest_plugins = ["pytester", "leftovers", "watchdog", "children", "families", "listening"]

ENGINES = dict.fromkeys(reversed(ipcmap._core.engines), sync)  # locks are one for both

collect_ignore_glob = [] if "native" in ENGINES else ["test_native_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=[*ENGINES], help="run on this engine alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        only = metafunc.config.getoption("engine")
        metafunc.parametrize("engine", [only] if only else [*ENGINES])


@pytest.fixture
def native_arena() -> Iterator[ipcmap.Arena]:
    """An arena of the native engine; that it can be closed shows that no ring is left."""
    arena = ipcmap.Arena(1 << 30, backend="native")
    yield arena
    gc.collect()
    arena.close()


@pytest.fixture
def semaphore_type(engine: str) -> type[ipcmap.Semaphore]:
    """The engine's semaphore class."""
    semaphore: type[ipcmap.Semaphore] = ENGINES[engine].Semaphore
    return semaphore


@pytest.fixture
def endless_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no wait for a lock look by itself: what is not woken sleeps for ever."""
    monkeypatch.setattr(reference_monitor, "FIRST_SLICE", 3600.0)
    monkeypatch.setattr(reference_monitor, "LONGEST_SLICE", 3600.0)


@pytest.fixture
def endless_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody in a room look by itself: what is not woken sleeps for ever."""
    monkeypatch.setattr(reference_rooms, "FIRST_SLICE", 3600.0)
    monkeypatch.setattr(reference_rooms, "LONGEST_SLICE", 3600.0)


@pytest.fixture
def lock_type(engine: str) -> type[ipcmap.Lock]:
    """The engine's lock class."""
    lock: type[ipcmap.Lock] = ENGINES[engine].Lock
    return lock


@pytest.fixture
def ring_type(engine: str, monkeypatch: pytest.MonkeyPatch) -> type[ipcmap.Ring]:
    """The engine's ring class."""
    if engine == "native":
        from ipcmap.native_ring import NativeRing

        return NativeRing
    # Subclasses aside, what Ring makes would be the native engine's otherwise.
    monkeypatch.setattr(ipcmap.Ring, "_accelerated", {})
    return ipcmap.Ring


@pytest.fixture
def arena(request: pytest.FixtureRequest) -> ipcmap.Arena:
    """An arena of the test's own, of its engine, with 256 MiB to hand out."""
    engine = request.getfixturevalue("engine") if "engine" in request.fixturenames else None
    return ipcmap.Arena(256 << 20, backend=engine)


@pytest.fixture
def default_engine(
    engine: str, arena: ipcmap.Arena, monkeypatch: pytest.MonkeyPatch
) -> ipcmap.Arena:
    """A default arena of the engine, in which there is nothing yet."""
    monkeypatch.setattr("ipcmap.arena._default", arena)
    return arena


@pytest.fixture
def said(default_engine: ipcmap.Arena) -> Iterator[ipcmap.Ring]:
    """What workers say, through a ring of the default arena."""
    ring = ipcmap.Ring()
    yield ring
    ring.destroy()


@pytest.fixture
def collected() -> None:
    """What earlier tests left in cycles would be freed in the middle of a count."""
    gc.collect()
