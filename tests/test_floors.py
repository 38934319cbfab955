"""Who may import whom, as the design has it: downwards, or to the left on one floor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ipcmap

# Each floor from the ground up; names of one group are siblings and never import each other.
FLOORS: list[list[set[str]]] = [
    [{"errors"}, {"codec"}, {"_deadline"}, {"_core"}],
    [
        {"pages"},
        {"paging"},
        {"mapping"},
        {"memory_limits"},
        {"family"},
        {"block"},
        {"arena"},
        {"structure"},
        {"listener"},
    ],
    [
        {"guards", "rooms"},
        {"locks", "semaphores", "event", "barrier", "rwlock"},
        {"condition"},
        {"sync"},
        {"native_locks"},
    ],
    [{"loans"}, {"ring_handle"}, {"ring"}, {"native_ring"}],
    [
        {"queue_ends", "ended_pipes", "connection_handle"},
        {"objects"},
        {"queues", "connection", "values", "counter"},
        {"joinable_queue"},
        {"reporting_queues"},
    ],
    [
        {"last_words"},
        {"process"},
        {"forked_map", "restart_budget", "stop_flag", "stop_signals"},
        {"worker_place"},
        {"zygote_server"},
        {"zygote"},
        {"messages"},
        {"tasks"},
        {"chunks", "executor_statistics", "progress"},
        {"worker"},
        {"seats"},
        {"assignments"},
        {"workforce"},
        {"answers"},
        {"manager_thread"},
        {"dispatch"},
        {"supervisor", "executor"},
        {"pool_results"},
        {"pool_streams"},
        {"pool"},
        {"context"},
    ],
    [{"terminal"}, {"demo_crew"}, {"aio", "inspector", "metrics", "demo", "integrations", "bench"}],
    [{"__init__"}, {"__main__"}],
]
RANKS = {
    room: (floor, place)
    for floor, groups in enumerate(FLOORS)
    for place, group in enumerate(groups)
    for room in group
}
PACKAGE = Path(ipcmap.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(dotted: str) -> str:
    """Return the room of a module: ``ipcmap.mapping`` stands in ``mapping``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_rooms(source: str) -> set[str]:
    """Return the rooms of ipcmap that a source imports."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            rooms |= {room_of(name.name) for name in node.names if is_ours(name.name)}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within ipcmap are absolute"
            if node.module == "ipcmap":
                rooms |= {name.name if name.name in RANKS else "__init__" for name in node.names}
            elif node.module and is_ours(node.module):
                rooms.add(room_of(node.module))
    return rooms


def is_ours(dotted: str) -> bool:
    """Return whether a module is part of ipcmap."""
    return dotted.split(".", maxsplit=1)[0] == "ipcmap"


def violations(room: str, source: str) -> set[str]:
    """Return the rooms that ``room`` may not import and does."""
    return {
        other
        for other in imported_rooms(source) - {room}
        if RANKS[other] >= RANKS[room] and not (room == "__main__" and other == "__init__")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below_or_from_its_left(file: Path) -> None:
    """No file knows the floors above it."""
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")

    assert room in RANKS, "a new file needs a floor"
    assert set() == violations(room, file.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import ipcmap.demo",
        "from ipcmap.demo import run",
        "from ipcmap import demo",
        "from ipcmap import Mapping",
        "def late():\n    from ipcmap.ring import Ring",
    ],
)
def test_an_import_from_above_is_noticed(source: str) -> None:
    """The check sees every form of an import."""
    assert violations("mapping", source)
