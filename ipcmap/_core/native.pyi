"""The native engine: the hot path of the ring."""

from collections.abc import Callable, Iterable
from types import MemberDescriptorType
from typing import Any, SupportsIndex, final

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
    ) -> Core: ...

class RingMethods:
    def put(self, data: Any, timeout: float | None = None) -> None: ...
    def get(self, timeout: float | None = None) -> bytes: ...
    def put_many(self, records: Iterable[Any], timeout: float | None = None) -> None: ...
    def get_many(
        self, max_records: SupportsIndex | None = None, timeout: float | None = None
    ) -> list[bytes]: ...

def bind(
    handle: type[RingMethods],
    slot: MemberDescriptorType,
    put: Callable[..., None],
    get: Callable[..., bytes],
    put_many: Callable[..., None],
    put_rest: Callable[..., None],
    get_many: Callable[..., list[bytes]],
    idle: Callable[..., None],
    call: Callable[..., None],
) -> None: ...
