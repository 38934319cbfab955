"""Every behaviour on every engine, through one fixture."""

from __future__ import annotations

import errno
import gc
import importlib
import importlib.util
import math
import os
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

import ipcmap
from ipcmap._core import liveness, processors, reference_monitor, reference_rooms

# Programs that tests start take the installed package, and not what lies in their folder.
os.environ["PYTHONSAFEPATH"] = "1"
# A job in the background begins with it ignored, and what waits for a Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "pytester",
    "lanes",
    "leftovers",
    "watchdog",
    "children",
    "executors",
    "families",
    "households",
    "listening",
    "pipe_ends",
]

ENGINES = [*reversed(ipcmap._core.engines)]

collect_ignore_glob = [] if "native" in ENGINES else ["test_native_*.py"]
for library, test in (
    ("joblib", "joblib"),
    ("sklearn", "scikit_learn"),
    ("distributed", "dask"),
):
    if importlib.util.find_spec(library) is None:
        collect_ignore_glob.append(f"integrations/test_{test}.py")
# CPython's own tests are a package of their own, and not everywhere with all that is in it.
if importlib.util.find_spec("test") is None:
    collect_ignore_glob.append("conformance/*")
elif importlib.util.find_spec("test.test_concurrent_futures") is None:
    collect_ignore_glob.append("conformance/*futures*")


def pytest_lane_start() -> None:
    """Be a family of one's own: what other lanes have in their default arena is not to be counted."""
    ipcmap.arena._default = ipcmap.Arena()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=ENGINES, help="run on this engine alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        only = metafunc.config.getoption("engine")
        metafunc.parametrize("engine", [only] if only else ENGINES)


@pytest.fixture
def native_arena() -> Iterator[ipcmap.Arena]:
    """An arena of the native engine; that it can be closed shows that no ring is left."""
    arena = ipcmap.Arena(1 << 30, backend="native")
    yield arena
    gc.collect()
    arena.close()


@pytest.fixture
def endless_slices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no wait for a lock look by itself: what is not woken sleeps for ever."""
    usual = reference_monitor.FIRST_SLICE
    monkeypatch.setattr(reference_monitor, "FIRST_SLICE", 3600.0)
    monkeypatch.setattr(reference_monitor, "LONGEST_SLICE", 3600.0)
    if "native" in ENGINES:
        native = importlib.import_module("ipcmap._core.native")
        native.slice_guards(3600.0)
        yield
        native.slice_guards(usual)
    else:
        yield


@pytest.fixture
def known_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no wait read what cgroups grant: a handler that raises would leave the file open."""
    processors.may_spin()
    monkeypatch.setattr(processors._Hint, "quota_until", math.inf)


@pytest.fixture
def endless_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody in a room look by itself: what is not woken sleeps for ever."""
    monkeypatch.setattr(reference_rooms, "FIRST_SLICE", 3600.0)
    monkeypatch.setattr(reference_rooms, "LONGEST_SLICE", 3600.0)


def of_engine(public: type[Any], engine: str, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """Return a class as an engine has it, whatever the engine of the arena."""
    if engine == "native":
        return public._accelerated[public, engine]  # type: ignore[no-any-return]
    # Subclasses aside, what it makes would be the native engine's otherwise.
    monkeypatch.setattr(public, "_accelerated", {})
    return public


@pytest.fixture
def lock_type(engine: str, monkeypatch: pytest.MonkeyPatch) -> type[ipcmap.Lock]:
    """The engine's lock class."""
    return of_engine(ipcmap.Lock, engine, monkeypatch)


@pytest.fixture
def semaphore_type(engine: str, monkeypatch: pytest.MonkeyPatch) -> type[ipcmap.Semaphore]:
    """The engine's semaphore class."""
    return of_engine(ipcmap.Semaphore, engine, monkeypatch)


@pytest.fixture
def ring_type(engine: str, monkeypatch: pytest.MonkeyPatch) -> type[ipcmap.Ring]:
    """The engine's ring class."""
    return of_engine(ipcmap.Ring, engine, monkeypatch)


@pytest.fixture
def ring(ring_type: type[ipcmap.Ring], arena: ipcmap.Arena) -> ipcmap.Ring:
    """A ring of 4 KiB: records of more than 2040 bytes travel in blocks."""
    return ring_type(4096, arena=arena)


@pytest.fixture
def no_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel before 5.3, which has none."""

    def pidfd_open(pid: int) -> NoReturn:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(liveness, "pidfd_open", pidfd_open)


@pytest.fixture(params=["pidfd", "no pidfd"])
def kernel(request: pytest.FixtureRequest) -> None:
    """A kernel with pidfds, and one without."""
    if request.param == "no pidfd":
        request.getfixturevalue("no_pidfds")


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
