"""Which allocator an engine has."""

from __future__ import annotations

import importlib

from ipcmap._core import engines
from ipcmap._core.reference_allocator import Allocator

__all__ = ["allocators"]

allocators: dict[str, type[Allocator]] = {"reference": Allocator}
if "native" in engines:
    native = importlib.import_module("ipcmap._core.native_allocator")
    allocators["native"] = native.NativeAllocator
