"""Other builds of the native engine, from the sources beside these tests: never installed.

A build is for a program of its own, which loads it by ``load`` before it imports ipcmap;
the package around it is the installed one.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parent.parent
MODULE = "ipcmap._core.native"


def build(
    folder: Path,
    *,
    macros: Sequence[str] = (),
    sources: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Path:
    """Compile and link the engine with the interpreter's own compiler and settings.

    Args:
        folder: Where to; it is there already.
        macros: What to define besides, as ``NAME`` or ``NAME=VALUE``.
        sources: Further sources, relative to the repository.
        options: Of the compiler, after all others, for both steps: ``-fsanitize=thread``.

    Returns:
        The extension module's path.
    """
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (module,) = settings["tool"]["setuptools"]["ext-modules"]
    target = folder / f"native{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [
        *_words("CC"),
        *_words("CFLAGS"),
        *_words("CCSHARED"),
        *module["extra-compile-args"],
        "-Werror",
        *(f"-D{name}={value}" for name, value in module["define-macros"]),
        *(f"-D{macro}" for macro in macros),
        f"-I{sysconfig.get_path('include')}",
        f"-I{sysconfig.get_path('platinclude')}",
        "-shared",
        *(str(REPOSITORY / source) for source in [*module["sources"], *sources]),
        "-o",
        str(target),
        *module["extra-link-args"],
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return target


def build_hooks(folder: Path) -> Path:
    """Compile the engine with its sync points."""
    return build(
        folder,
        macros=["IPCMAP_SYNC_POINTS"],
        sources=["ipcmap/_core/native_sync_points.c"],
    )


def load(path: str) -> ModuleType:
    """Make a build the native engine of this program, which has not imported ipcmap yet."""
    assert "ipcmap" not in sys.modules, "ipcmap has its native engine already"
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec
    assert spec.loader
    native = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = native
    spec.loader.exec_module(native)
    return native


def _words(name: str) -> list[str]:
    """Return a setting of the interpreter's build as words of a command."""
    return shlex.split(sysconfig.get_config_var(name) or "")
