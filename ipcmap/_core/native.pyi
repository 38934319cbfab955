"""The native engine: the hot paths of ring, allocator and locks."""

from collections.abc import Callable, Iterable
from types import MemberDescriptorType, TracebackType
from typing import Any, SupportsIndex, final

from ipcmap._core.reference_cells import Cell
from ipcmap._deadline import Deadline

layout: dict[str, int]

@final
class Core:
    def __new__(
        cls,
        memory: memoryview,
        capacity: int,
        inline_limit: int,
        words: memoryview,
        tag_at: int,
        tag: int,
        allocator: Cells | None,
    ) -> Core: ...
    @property
    def patience(self) -> tuple[int, int]: ...

@final
class Words:
    def __new__(cls, memory: memoryview, *, signed: bool = False) -> Words: ...
    def load(self, index: int, /) -> int: ...
    def store(self, index: int, number: int, /) -> None: ...
    def add(self, index: int, number: int, /) -> int: ...
    def compare_exchange(self, index: int, expected: int, number: int, /) -> bool: ...

@final
class Guard:
    def __new__(
        cls,
        kind: str,
        memory: memoryview,
        words: memoryview,
        tag_at: int,
        tag: int,
        own: memoryview,
        family: Any,
        initial: int = 0,
        entries: int = 0,
        maximum: int = 0,
    ) -> Guard: ...

class GuardMethods:
    def acquire(self, block: bool = True, timeout: float | None = None) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

class Cells:
    def places(
        self,
        words: memoryview,
        limit: int,
        keep: int,
        max_processes: int,
        owner: Callable[[], int],
        classes: tuple[tuple[int, int, int, int, int, int], ...],
        /,
    ) -> None: ...
    def allocate(self, nbytes: int, kind: int = 0, deadline: Deadline = ...) -> Cell: ...
    def free(self, cell: Cell, deadline: Deadline = ...) -> None: ...
    def retag(self, cell: Cell, owner: int, kind: int | None = None) -> Cell: ...
    def pass_on(self, cell: Cell, owner: int, kind: int) -> Cell | None: ...
    def check(self, cell: Cell) -> None: ...

class RingMethods:
    def put(self, data: Any, timeout: float | None = None) -> None: ...
    def get(self, timeout: float | None = None) -> bytes: ...
    def put_many(self, records: Iterable[Any], timeout: float | None = None) -> None: ...
    def get_many(
        self, max_records: SupportsIndex | None = None, timeout: float | None = None
    ) -> list[bytes]: ...
    def _put_object(
        self, dumps: Callable[[Any], Any], obj: Any, timeout: float | None, /
    ) -> Any: ...
    def _get_object(self, loads: Callable[[bytes], Any], timeout: float | None, /) -> Any: ...

def dump(dumps: Callable[[Any], Any], obj: Any, /) -> Any: ...
def load(loads: Callable[[bytes], Any], record: bytes, /) -> Any: ...
def bind(
    handle: type[RingMethods],
    slot: MemberDescriptorType,
    put: Callable[..., None],
    get: Callable[..., bytes],
    put_many: Callable[..., None],
    put_rest: Callable[..., None],
    get_many: Callable[..., list[bytes]],
    idle: Callable[..., None],
    free: Callable[..., object],
    may_spin: Callable[[], bool],
    call: Callable[..., None],
    return_all: Callable[..., None],
    for_next_call: tuple[type[Exception], ...],
) -> None: ...
def bind_cells(
    cell: type[Cell],
    allocate: Callable[..., Cell],
    free: Callable[..., None],
    retag: Callable[..., Cell],
    pass_on: Callable[..., Cell | None],
    check: Callable[..., None],
    trim: Callable[..., None],
) -> None: ...
def bind_guards(
    handle: type[GuardMethods],
    slot: MemberDescriptorType,
    acquire: Callable[..., bool],
    release: Callable[..., None],
    call: Callable[..., None],
    may_spin: Callable[[], bool],
    page: Any,
    mark: memoryview,
    slice: float,
    usual: tuple[type[GuardMethods], ...],
) -> None: ...
def slice_guards(seconds: float, /) -> None: ...
