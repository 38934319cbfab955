"""What the how-to page says of other libraries is true, with the real ones."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integrations

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-with-other-libraries.md"
SHRUNK = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
NO_CHANGE = "true"


def program_of(library: str) -> str:
    """Return the program that the page shows for a library."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    programs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (program,) = [program for program in programs if f"import {library}\n" in program]
    return str(program)


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
    *_, comment = re.findall(r"^print\(.*\)  # (.*)$", program, re.MULTILINE)
    return f"{comment}\n"


@pytest.mark.parametrize("change", [NO_CHANGE, SHRUNK], ids=["/dev/shm", "1 MiB"])
def test_batches_of_a_torch_loader_arrive(engine: str, change: str) -> None:
    """With a /dev/shm that no batch would fit into, too."""
    program = program_of("torch")
    result = run(program, engine, change)
    assert (result.stdout, result.stderr, result.returncode) == (said(program), "", 0)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_torch_loader_ends_its_workers(engine: str, persistent: bool) -> None:
    """After each epoch or when it goes, and says of one that was killed."""
    program = program_of("torch").replace("num_workers=2", f"num_workers=2, {persistent=}")
    program = program.replace("persistent=", "persistent_workers=") + (
        "import os, signal\n"
        "seen = [int(batch[0, 0, 0, 0]) for batch in loader]\n"
        "print(seen, len(ipcmap.active_children()))\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "for child in ipcmap.active_children():\n"
        "    os.kill(child.pid, signal.SIGKILL)\n"
        "try:\n"
        "    list(batches)\n"
        "except RuntimeError as error:\n"
        "    print('DataLoader worker' in str(error))\n"
        "del batches, loader\n"
        "print(len(ipcmap.active_children()))\n"
    )
    result = run(program, engine)
    first, second, killed, left = result.stdout.splitlines()
    assert second == f"{first} {2 if persistent else 0}"
    assert (killed, left, result.returncode) == ("True", "0", 0)


def test_environments_of_gymnasium_step(engine: str) -> None:
    """And end."""
    program = program_of("gymnasium")
    result = run(program, engine)
    assert (result.stdout, result.stderr, result.returncode) == (said(program), "", 0)


def test_an_environment_of_gymnasium_that_dies_is_told(engine: str) -> None:
    """By an error in the parent, and no wait."""
    program = program_of("gymnasium").replace(
        "environments.close()",
        "import os, signal\n"
        "os.kill(environments.processes[1].pid, signal.SIGKILL)\n"
        "environments.processes[1].join()\n"
        "try:\n"
        "    environments.step(environments.action_space.sample())\n"
        "except (EOFError, BrokenPipeError, ConnectionError) as error:\n"
        "    print('told')\n"
        "environments.close(terminate=True)",
    )
    result = run(program, engine)
    assert result.stdout.startswith("told\n")
    assert result.returncode == 0
