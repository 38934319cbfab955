"""The engine: shared state and how it is guarded. Floor 0; imports nothing of ipcmap above it.

``IPCMAP_BACKEND`` names an engine. A named engine that cannot load is an error,
never a silent fallback.
"""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["backend"]

_asked = os.environ.get("IPCMAP_BACKEND", "")
if _asked not in ("", "reference"):
    raise ImportError(
        f"engine cannot load: IPCMAP_BACKEND={_asked!r}, built here: ['reference']; "
        "unset IPCMAP_BACKEND, or set it to one of these"
    )

backend: Literal["reference"] = "reference"
