"""Programs that the pages show for other libraries, run as they stand there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOW_TO = Path(__file__).parent.parent / "docs" / "how-to"
NO_CHANGE = "true"


def programs_of(page: str) -> list[str]:
    """Return the programs on a page, in order."""
    text = (HOW_TO / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def program_of(page: str, library: str) -> str:
    """Return the program on a page that imports a library."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    (program,) = [program for program in programs_of(page) if f"import {library}\n" in program]
    return program


def run(program: str, engine: str, change: str = NO_CHANGE) -> subprocess.CompletedProcess[str]:
    """Run a program on an engine, after a change to the file systems that it alone sees."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", program]
    if change != NO_CHANGE:
        unshare = shutil.which("unshare")
        if not unshare:
            pytest.skip("unshare (util-linux) is not installed")
        command = [
            unshare, "--mount", "sh", "-c", f'{change} || exit 77; exec "$@"', "sh", *command
        ]  # fmt: skip
    environment = {**os.environ, "IPCMAP_BACKEND": engine}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode in (1, 77) and "Operation not permitted" in result.stderr:
        pytest.skip("a mount namespace is not permitted here: CAP_SYS_ADMIN")
    return result


def said(program: str) -> str:
    """Return what the page says that the program prints."""
    comments = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    return "".join(f"{comment}\n" for comment in comments)
