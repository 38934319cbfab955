"""What the how-to page says of other libraries is true, with the real ones."""

from __future__ import annotations

import pytest

from library_programs import NO_CHANGE, program_of, run, said

pytestmark = pytest.mark.integrations

PAGE = "use-with-other-libraries.md"
SHRUNK = "mount -t tmpfs -o size=1m tmpfs /dev/shm"


@pytest.mark.parametrize("change", [NO_CHANGE, SHRUNK], ids=["/dev/shm", "1 MiB"])
def test_batches_of_a_torch_loader_arrive(engine: str, change: str) -> None:
    """With a /dev/shm that no batch would fit into, too."""
    program = program_of(PAGE, "torch")
    result = run(program, engine, change)
    assert (result.stdout, result.stderr, result.returncode) == (said(program), "", 0)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_torch_loader_ends_its_workers(engine: str, persistent: bool) -> None:
    """After each epoch or when it goes, and says of one that was killed."""
    program = program_of(PAGE, "torch").replace("num_workers=2", f"num_workers=2, {persistent=}")
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
    program = program_of(PAGE, "gymnasium")
    result = run(program, engine)
    assert (result.stdout, result.stderr, result.returncode) == (said(program), "", 0)


def test_an_environment_of_gymnasium_that_dies_is_told(engine: str) -> None:
    """By an error in the parent, and no wait."""
    program = program_of(PAGE, "gymnasium").replace(
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
