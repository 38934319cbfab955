"""The engine: shared state and how it is guarded. Floor 0; imports nothing of ipcmap above it.

``IPCMAP_BACKEND`` names an engine. A named engine that cannot load is an error,
never a silent fallback. Where it names none, native is taken where it is built.
"""

from __future__ import annotations

import importlib
import os

__all__ = ["backend", "engines"]


def _is_built(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return True


engines: tuple[str, ...] = ("reference",)
if _is_built("ipcmap._core.native"):
    engines = ("native", "reference")

backend = os.environ.get("IPCMAP_BACKEND", "") or engines[0]
if backend not in engines:
    raise ImportError(
        f"engine cannot load: IPCMAP_BACKEND={backend!r}, built here: {[*engines]}; "
        "unset IPCMAP_BACKEND, or set it to one of these"
    )
