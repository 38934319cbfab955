"""Build sdist and wheel, look at what is in them, and try the wheel in fresh environments.

    python .ci/wheels.py [--repair] [--pythons python3.11 python3.12 ...] [--to FOLDER]

The sdist is built from the tree, and the wheel from the sdist by the oldest Python that is found.
It is for the stable ABI, so that all the others can take it as well. ``--repair`` has auditwheel
compute its tag and write it anew.
Exit status: 0 good, 1 not.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
TRY = """
import ipcmap
assert ipcmap.backend == "native", ipcmap.backend
ring = ipcmap.Ring()

def put():
    for number in range(1000):
        ring.put(b"%d" % number)
    ring.close()

child = ipcmap.Process(target=put)
child.start()
taken = []
try:
    while True:
        taken += ring.get_many() if len(taken) % 2 else [ring.get()]
except ipcmap.ClosedError:
    child.join()
assert taken == [b"%d" % number for number in range(1000)], len(taken)
assert child.exitcode == 0, child.exitcode
"""


def run(*command: str | Path, folder: Path = TREE) -> str:
    """Run a command; return what it printed, or say all of it and end."""
    result = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def pythons() -> list[str]:
    """Return the interpreters that are found, where pyenv keeps them or on the path."""
    found = []
    for version in VERSIONS:
        kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        found += [str(kept[-1])] if kept else [shutil.which(f"python{version}") or ""]
    return [*filter(None, found)] or [sys.executable]


def complain(archive: Path, wrong: list[str], what: str) -> None:
    """End if anything is wrong with an archive."""
    if wrong:
        sys.exit(f"{archive.name} {what}: {', '.join(wrong)}")


def check_sdist(sdist: Path) -> None:
    """It has what git has, but for what is about git alone."""
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    if (TREE / ".git").exists():
        expected = set(run("git", "ls-files").split("\n")) - {"", ".gitignore"}
        complain(sdist, sorted(expected - inside), "lacks")
    strange = [name for name in inside if name.endswith((".so", ".pyc")) or "/_build/" in name]
    complain(sdist, strange, "has")


def check_wheel(wheel: Path) -> None:
    """It has the package and the engine, and no source of it, no test, no folder beside it."""
    inside = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    ours = [name for name in inside if name.startswith("ipcmap/")]
    engines = [name for name in ours if name.startswith("ipcmap/_core/native.") and ".so" in name]
    complain(wheel, [] if len(engines) == 1 else ["one native engine"], "lacks")
    complain(wheel, [] if "-cp311-abi3-" in wheel.name else ["the tag of the stable ABI"], "lacks")
    complain(
        wheel, [n for n in ("ipcmap/py.typed", "ipcmap/_core/native.pyi") if n not in ours], "lacks"
    )
    known = (".py", ".pyi", ".so", "py.typed")
    complain(wheel, [name for name in ours if not name.endswith(known)], "has")
    beside = {name.split("/")[0] for name in inside} - {"ipcmap"}
    complain(wheel, [name for name in beside if not name.endswith(".dist-info")], "has")


def build_wheel(python: str, sdist: Path, folder: Path) -> Path:
    """Build one from the sdist, with one interpreter."""
    run(python, "-m", "venv", folder / "builder")
    run(
        folder / "builder/bin/pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "-w",
        folder,
        sdist,
    )
    (wheel,) = folder.glob("*.whl")
    check_wheel(wheel)
    return wheel


def repair(wheel: Path) -> Path:
    """Have auditwheel give it the tag of all systems that it runs on."""
    repaired = wheel.parent / "repaired"
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", repaired, wheel)
    (result,) = repaired.glob("*.whl")
    check_wheel(result)
    return result


def try_wheel(python: str, wheel: Path, folder: Path) -> None:
    """Install it in a fresh environment, and send records through a ring."""
    run(python, "-m", "venv", folder / "fresh")
    run(folder / "fresh/bin/pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    run(folder / "fresh/bin/python", "-I", "-W", "error", "-c", TRY, folder=folder)


def main() -> None:
    """Build, check, try."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repair", action="store_true", help="with auditwheel and patchelf")
    parser.add_argument("--pythons", nargs="+", default=pythons(), help="instead of those found")
    parser.add_argument("--to", type=Path, help="keep what was built, in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        kept = (arguments.to or Path(name) / "dist").resolve()
        kept.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "build", "--sdist", "--outdir", kept)
        (sdist,) = kept.glob("*.tar.gz")
        check_sdist(sdist)
        print(sdist.name, flush=True)
        wheel = build_wheel(arguments.pythons[0], sdist, Path(name))
        if arguments.repair:
            wheel = repair(wheel)
        shutil.copy(wheel, kept)
        for number, python in enumerate(arguments.pythons):
            (folder := Path(name) / str(number)).mkdir()
            try_wheel(python, wheel, folder)
            print(f"{wheel.name}: put and get with {run(python, '--version').strip()}", flush=True)


if __name__ == "__main__":
    main()
