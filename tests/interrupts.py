"""Exceptions of signal handlers, at each line of a call in turn."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

OF_AN_EXECUTOR = {  # the modules in which its callers go
    "ipcmap.dispatch",
    "ipcmap.manager_thread",
    "ipcmap.answers",
    "ipcmap.workforce",
    "ipcmap.assignments",
    "ipcmap.seats",
}


class Interrupted(BaseException):
    """What a signal handler raises."""


def interrupted(call: Callable[[], object], modules: set[str], at: int) -> bool:
    """Make a call, and raise before its line ``at`` in these modules; return whether it has so many.

    No handler is called between a block and the end of its ``with``, where a trace
    function is, nor after a step of C (reference_sections) until the next call: such a line is none.
    """
    lines, stepped = 0, False

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines, stepped
        if frame.f_globals.get("__name__") not in modules:
            return None
        code: CodeType = frame.f_code
        if event == "line":
            text = linecache.getline(code.co_filename, frame.f_lineno).lstrip()
            stepped = stepped and "(" not in text
            if not (stepped or text.startswith("with ")):
                lines += 1
                if lines == at:
                    raise Interrupted
            stepped = stepped or text.startswith("(value,) = map(")
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False
