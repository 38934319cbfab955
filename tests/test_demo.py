"""``ipcmap demo``: real files, counted by forked workers, checked word by word."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ipcmap import demo
from ipcmap.__main__ import main

TEXTS = {
    "a.txt": "one two two three three three three\n",
    "deep/er/b.txt": "naïve café 42 two\n",
    "empty.txt": "",
    "many.txt": "".join(f"word{number} " for number in range(5000)),
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a few text files in it."""
    for name, text in TEXTS.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "texts"


def ipcmap(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "ipcmap", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def counted(*arguments: str | Path) -> dict[str, Any]:
    """Run the demo and return its JSON."""
    result = ipcmap("demo", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.parametrize("workers", ["1", "2", "16"])
def test_every_way_counts_the_same_words(texts: Path, workers: str) -> None:
    """Files, bytes, words and distinct words are those of the texts."""
    expected = Counter(re.findall(r"\w+", " ".join(TEXTS.values())))

    report = counted("--path", texts, "--workers", workers)

    assert report["correct"] is True
    assert report["files"] == len(TEXTS)
    assert report["nbytes"] == sum(len(text.encode()) for text in TEXTS.values())
    assert report["most_common"][0] == ["three", 4]
    assert len(report["runs"]) == 3
    for run in report["runs"]:
        assert run["correct"] is True
        assert run["words"] == expected.total()
        assert run["distinct_words"] == len(expected)


def test_the_table_shows_each_way_with_its_figures(texts: Path) -> None:
    """Results go to stdout and progress to stderr, plain where nobody watches."""
    result = ipcmap("demo", "--path", texts, "--workers", "2")

    assert result.returncode == 0
    for way in ("one process", "ipcmap, 2 forked", "multiprocessing.Pool(2)"):
        assert re.search(rf"^{re.escape(way)} .* right$", result.stdout, re.MULTILINE)
        assert f"{way}: 4 of 4 files" in result.stderr
    assert str(texts) in result.stdout


def test_by_default_it_counts_the_standard_library() -> None:
    """Every machine has something to count, and it is no toy."""
    corpus = demo.standard_library()

    assert len(corpus.files) > 100
    assert all("site-packages" not in path.parts for path in corpus.files)
    assert Path(os.__file__) in corpus.files


def test_largest_files_come_first(texts: Path) -> None:
    """The last file handed out is a small one, so that no worker finishes long after."""
    corpus = demo.find_files(texts)

    assert sorted(corpus.sizes, reverse=True) == corpus.sizes
    assert corpus.sizes == [path.stat().st_size for path in corpus.files]


def test_an_empty_folder_is_an_answer(tmp_path: Path) -> None:
    """Nothing to count is right, and said."""
    result = ipcmap("demo", "--path", tmp_path, "--workers", "16")

    assert result.returncode == 0
    assert "no text file" in result.stdout


def test_a_single_file_is_counted(texts: Path) -> None:
    """--path may name a file."""
    report = counted("--path", texts / "a.txt")

    assert [report["files"], report["runs"][1]["words"]] == [1, 7]


def test_binary_unreadable_and_special_files_are_passed_over(texts: Path) -> None:
    """They are counted as such; links and pipes are none of its business."""
    (texts / "binary").write_bytes(b"\x7fELF\0\0")
    (texts / "latin-1.txt").write_bytes("caf\xe9 noir".encode("latin-1"))
    (texts / "link.txt").symlink_to("a.txt")
    (texts / "nowhere").symlink_to("missing")
    os.mkfifo(texts / "pipe")

    report = counted("--path", texts)

    assert report["files"] == len(TEXTS) + 1
    assert report["skipped"] == {"binary": 1}
    assert report["correct"] is True


def test_a_file_that_may_not_be_read_is_passed_over(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One locked file does not end the count of the others."""
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    corpus = demo.find_files(texts)

    assert corpus.skipped == {"unreadable": 1}
    assert len(corpus.files) == len(TEXTS) - 1


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    """One line names it; there is no traceback."""
    result = ipcmap("demo", "--path", tmp_path / "missing")

    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"ipcmap demo: cannot count {tmp_path / 'missing'}: No such file or directory"
    ]


@pytest.mark.parametrize("arguments", [[], ["demo", "--workers", "0"], ["demo", "--workers", "x"]])
def test_wrong_usage_says_how(arguments: list[str]) -> None:
    """Exit code 2, and the usage line."""
    result = ipcmap(*arguments)

    assert result.returncode == 2
    assert result.stderr.startswith("usage: ipcmap")


def test_the_version_names_the_engine() -> None:
    """A report of a fault can say what ran."""
    assert re.fullmatch(r"ipcmap \d+\.\d+\.\d+ \(\w+ engine\)\n", ipcmap("--version").stdout)


def test_a_wrong_total_is_noticed(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a worker miscounts one word, the demo says WRONG and exits 1."""
    parent, count_words = os.getpid(), demo.count_words

    def miscount(path: Path) -> demo.Counts:
        counts = count_words(path)
        if os.getpid() != parent and path.name == "a.txt":
            counts["two"] += 1
        return counts

    monkeypatch.setattr(demo, "count_words", miscount)
    monkeypatch.setattr(demo, "_pooled", lambda corpus, workers: map(count_words, corpus.files))

    assert main(["demo", "--path", str(texts), "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^one process .* right$", out, re.MULTILINE)
    assert re.search(r"^ipcmap, 2 forked .* WRONG$", out, re.MULTILINE)


@pytest.mark.parametrize("workers", ["1", "2", "16"])
def test_a_worker_is_killed_at_half_way_and_its_file_counted_again(
    texts: Path, workers: str
) -> None:
    """The totals are right all the same, and the table says who died of what."""
    for number in range(40):
        (texts / f"more{number}.txt").write_text(f"more words {number} " * 2000)

    report = counted("--path", texts, "--workers", workers)
    table = ipcmap("demo", "--path", texts, "--workers", workers).stdout

    (death,) = report["deaths"]
    assert report["correct"] is True
    assert death["cause"] == "SIGKILL"
    assert Path(death["redone"]).parent.is_relative_to(texts)
    assert re.search(r"^pid \d+ +SIGKILL +[\w/]+\.txt$", table, re.MULTILINE)


def test_nobody_is_killed_who_was_not_to_be(texts: Path) -> None:
    """--no-kill counts in peace."""
    assert counted("--path", texts, "--no-kill")["deaths"] == []
    assert "died of" not in ipcmap("demo", "--path", texts, "--no-kill").stdout


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_that_is_killed_by_others_costs_nothing(
    texts: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who died, and of what; nothing hangs, whatever the dead one held."""
    parent, count_words, flag = os.getpid(), demo.count_words, tmp_path / "killed before"

    def killed(path: Path) -> demo.Counts:
        if os.getpid() != parent and path.name == "a.txt" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return count_words(path)

    monkeypatch.setattr(demo, "count_words", killed)
    monkeypatch.setattr(demo, "_pooled", lambda corpus, workers: map(count_words, corpus.files))
    report = demo.run(demo.find_files(texts), workers, lambda *_: None, kill=False)

    assert report.correct
    assert [(death.cause, death.redone) for death in report.deaths] == [
        ("SIGKILL", str(texts / "a.txt"))
    ]


def test_workers_that_are_killed_again_and_again_end_the_demo_with_an_error(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that kills whoever counts it is not counted for ever."""
    parent, count_words = os.getpid(), demo.count_words

    def killed(path: Path) -> demo.Counts:
        if os.getpid() != parent and path.name == "a.txt":
            os.kill(os.getpid(), signal.SIGKILL)
        return count_words(path)

    monkeypatch.setattr(demo, "count_words", killed)

    assert main(["demo", "--path", str(texts), "--workers", "2", "--no-kill"]) == 1
    assert re.search(r"worker died .* pid=\d+, signal=SIGKILL", capsys.readouterr().err)


def test_a_worker_that_fails_shows_its_traceback(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cause is on stderr before the error that it led to."""
    parent, count_words = os.getpid(), demo.count_words

    def fail(path: Path) -> demo.Counts:
        if os.getpid() != parent:
            raise RuntimeError("cannot count today")
        return count_words(path)

    monkeypatch.setattr(demo, "count_words", fail)

    assert main(["demo", "--path", str(texts)]) == 1
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert re.search(r"worker died .* pid=\d+, RuntimeError: cannot count today;", err)


def test_workers_die_with_a_killed_parent(texts: Path) -> None:
    """SIGKILL of the parent in the middle leaves no orphan; the leftovers check would see one."""
    code = (
        "import os, signal, sys; from ipcmap import demo; from ipcmap.__main__ import main\n"
        "parent, count = os.getpid(), demo.count_words\n"
        "def stuck(path):\n"
        "    if os.getpid() != parent: os.write(1, b'busy\\n'); signal.pause()\n"
        "    return count(path)\n"
        "demo.count_words = stuck\n"
        "main(['demo', '--workers', '2', '--path', sys.argv[1]])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(texts)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        busy = [process.stdout.readline(), process.stdout.readline()]
        process.kill()
        rest = process.stdout.read()  # ends when the last worker's end of the pipe is closed

    assert busy == [b"busy\n"] * 2
    assert rest == b""


def test_ctrl_c_ends_it_with_one_line(texts: Path) -> None:
    """Exit code 130, no traceback from parent or worker, no process left."""
    code = (
        "import os, signal, sys; from ipcmap import demo; from ipcmap.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "parent, count = os.getpid(), demo.count_words\n"
        "def interrupt(path):\n"
        "    if os.getpid() != parent: os.killpg(0, signal.SIGINT); signal.pause()\n"
        "    return count(path)\n"
        "demo.count_words = interrupt\n"
        "sys.exit(main(['demo', '--workers', '1', '--path', sys.argv[1]]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(texts)],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )

    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "ipcmap: interrupted"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("rich", [True, False])
def test_on_a_terminal_it_draws_a_bar_where_rich_is_installed(texts: Path, rich: bool) -> None:
    """With rich a bar and a framed table, without it plain lines; the same figures."""
    block = "" if rich else "import sys; sys.modules['rich'] = None; "
    code = f"{block}from ipcmap.__main__ import main; main(['demo', '--path', {str(texts)!r}])"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ):
        os.close(theirs)
        screen = b""
        try:
            while chunk := os.read(ours, 65536):
                screen += chunk
        except OSError:  # EIO: the last writer is gone
            pass
        finally:
            os.close(ours)
    text = screen.decode()

    assert ("━" in text) is rich
    assert ("one process: 4 of 4 files" in text) is not rich
    assert text.count("right") == 3
