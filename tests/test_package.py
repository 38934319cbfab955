"""The package as it is installed: the right one, on the right platform, with its engine."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import ipcmap

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_readme_prints_what_it_says(example: str) -> None:
    """Each is a whole program, and a comment behind each print says what comes."""
    result = run(example)

    assert result.stderr == ""
    assert result.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", example) != []


def test_the_installed_package_is_under_test() -> None:
    """Tests run against what pip installed, not against the source tree."""
    source_tree = Path(__file__).parent.parent / "ipcmap"

    assert Path(ipcmap.__file__).parent != source_tree
    assert metadata.version("ipcmap") == ipcmap.__version__


def test_the_package_says_that_it_is_typed() -> None:
    """Type checkers find its annotations."""
    assert (Path(ipcmap.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("change", ["sys.platform = 'darwin'", "sys.maxsize = 2**31 - 1"])
def test_elsewhere_than_on_64_bit_linux_the_import_says_so(change: str) -> None:
    """The error names the rule and what was found."""
    result = run(f"import sys; {change}; import ipcmap")

    assert result.returncode == 1
    assert "ImportError: ipcmap runs on 64-bit Linux only" in result.stderr
    assert "platform=" in result.stderr


def test_the_reference_engine_can_be_asked_for_by_name() -> None:
    """IPCMAP_BACKEND chooses, and ipcmap.backend tells."""
    result = run("import ipcmap; print(ipcmap.backend)", IPCMAP_BACKEND="reference")

    assert result.stdout == "reference\n"


def test_an_engine_that_cannot_load_is_an_error_and_no_fallback() -> None:
    """A name that is not built here is refused, with the names that are."""
    result = run("import ipcmap", IPCMAP_BACKEND="imaginary")

    assert result.returncode == 1
    assert "IPCMAP_BACKEND='imaginary'" in result.stderr
    assert "reference" in result.stderr.split("built here")[1]


def test_every_public_name_is_there() -> None:
    """What __all__ promises can be had, in order and once."""
    assert len(set(ipcmap.__all__)) == len(ipcmap.__all__)
    assert all(hasattr(ipcmap, name) for name in ipcmap.__all__)
