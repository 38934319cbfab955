"""The documentation is true: its examples print what it says, and what it names exists."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipcmap.bench.rows import ROWS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WATCHDOG = 50  # seconds; ends a page that hangs, so that the test can say which

# What Sphinx builds, and the notes and sources beside it that it does not.
TESTS = Path(__file__).parent
NO_PAGES = ("_build", "changes", "design/model")
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if not any(page.is_relative_to(DOCS / folder) for folder in NO_PAGES)
]

_fence = re.compile(r"^(?P<ticks>`{3,}|:{3,})(?P<language>.*)$")


def session(page: Path) -> str:
    """Return the page with everything blanked out but its Python sessions, lines kept."""
    lines, language, ticks = [], "", ""
    for line in page.read_text().splitlines():
        fence = _fence.match(line)
        if fence and not ticks:
            ticks, language = fence["ticks"], fence["language"]
            lines.append("")
        elif ticks and line == ticks:
            ticks, language = "", ""
            lines.append("")
        else:
            lines.append(line if language == "pycon" else "")
    return "\n".join(lines) + "\n"


def name_of(page: Path) -> str:
    """Return the page's path below the documentation's folder."""
    return str(page.relative_to(DOCS))


WITH_SESSIONS = [page for page in PAGES if ">>>" in page.read_text()]
LESSONS = [
    page for page in PAGES if page.parent.name in ("tutorial", "how-to") and page.name != "index.md"
]


@pytest.mark.parametrize("page", WITH_SESSIONS, ids=name_of)
def test_sessions_of_a_page_print_what_it_says(page: Path, tmp_path: Path) -> None:
    """Every Python session of a page runs, from top to bottom, in a process of its own."""
    text = tmp_path / page.name
    text.write_text(session(page))

    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "doctest", text.name],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )

    if finished.returncode or finished.stderr:
        pytest.fail(finished.stdout + finished.stderr, pytrace=False)


@pytest.mark.parametrize("page", LESSONS, ids=name_of)
def test_tutorials_and_how_to_guides_can_be_tried(page: Path) -> None:
    """A page that tells how shows a session, or programs that the tests of their library run."""
    assert doctest.DocTestParser().get_examples(session(page)) or any(
        page.name in test.read_text() for test in TESTS.glob("integrations/*.py")
    )


@pytest.mark.parametrize("page", WITH_SESSIONS, ids=name_of)
def test_no_session_stands_outside_a_block_that_is_run(page: Path) -> None:
    """A prompt in a block of another language would be shown and never tried."""
    prompts = [line for line in page.read_text().splitlines() if line.startswith(">>> ")]

    assert len(prompts) == session(page).count("\n>>> ")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_and_links_of_a_page_exist(page: Path) -> None:
    """No page sends its reader to a file that is not there."""
    text = page.read_text()
    examples = [ROOT / name for name in re.findall(r"examples/\w+\.py", text)]
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text)

    missing = [str(path) for path in examples if not path.exists()]
    missing += [link for link in links if not (page.parent / link).exists()]

    assert missing == []


def test_page_of_the_command_line_names_the_options_that_exist() -> None:
    """Its options are those of the program's own help, no more and no fewer; rows likewise."""
    shown = {
        command: subprocess.run(
            [sys.executable, "-m", "ipcmap", command, "--help"],
            capture_output=True,
            text=True,
            timeout=WATCHDOG,
            check=True,
        ).stdout
        for command in ("demo", "bench")
    }
    page = (DOCS / "reference" / "command-line.md").read_text()
    options = re.compile(r"--[a-z]+")
    table = page.partition("| Row | What is compared |")[2].partition("\n\n")[0]
    described = [
        row
        for line in table.splitlines()
        for row in re.findall(r"`(\w+)`", line[: line.find(" | ")])
    ]

    assert {*options.findall("".join(shown.values()))} == {*options.findall(page)} - {"--version"}
    assert described == [*ROWS]
