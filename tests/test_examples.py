"""The examples run as programs, say what is true, and leave nothing behind."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
WATCHDOG = 50  # seconds; ends a program that hangs, so that the test can say which

Finished = subprocess.CompletedProcess[str]

WRITER = "people_writer.py"
READER = "people_reader.py"


def command(name: str, *arguments: str | Path) -> list[str]:
    """Return the command line of an example, with every warning an error."""
    return [sys.executable, "-W", "error", str(FOLDER / name), *map(str, arguments)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is also the examples' folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *arguments: str | Path) -> Finished:
    """Run an example to its end."""
    return subprocess.run(
        command(name, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )


def numbers(line: str) -> list[int]:
    """Return the whole numbers of a line, thousands separated by commas."""
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", line)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_example_has_a_test_of_its_own(example: Path) -> None:
    """A new example cannot be added without a test that names it."""
    assert any(name.startswith(f"test_{example.stem}_") for name in globals())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_example_is_one_page_and_says_why(example: Path) -> None:
    """An example opens with a sentence that gives its reason, and is short enough to be read."""
    text = example.read_text()
    reason, *rest = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")

    assert reason.endswith(".")
    assert rest
    assert len(text.splitlines()) < 90


def test_race_and_semaphore_loses_additions_without_the_semaphore_alone(folder: Path) -> None:
    """Its figures add up: some are missing without the semaphore, none with it."""
    finished = run("race_and_semaphore.py")
    head, without, with_one = finished.stdout.splitlines()
    each, expected = numbers(head)
    racy_total, lost, _ = numbers(without)

    assert (finished.returncode, finished.stderr) == (0, "")
    assert 2 * each == expected
    assert lost > 0
    assert expected == racy_total + lost
    assert [expected, 0] == numbers(with_one)
    assert os.listdir(folder) == []


def test_scratch_copy_changes_the_mapping_and_not_the_file(folder: Path) -> None:
    """The edit shows in the private mapping, and the file is as it was."""
    finished = run("scratch_copy.py")
    facts = dict(line.split(":", 1) for line in finished.stdout.splitlines()[1:])

    assert (finished.returncode, finished.stderr) == (0, "")
    assert "**** **** **** 9012" in facts["in the mapping"]
    assert "4929 1234 5678 9012" in facts["in the file"]
    assert facts["file unchanged"] == " yes"
    assert facts["after the changes were dropped, mapping equals file"] == " yes"
    assert os.listdir(folder) == []


def test_people_writer_alone_leaves_no_table_behind(folder: Path) -> None:
    """Without a path it writes to a passing file, and says so."""
    finished = run(WRITER)
    *written, last = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert len(written) == 6
    assert "removed again" in last
    assert os.listdir(folder) == []


def test_people_writer_does_not_overwrite_a_table(folder: Path) -> None:
    """A file that exists is refused, and stays as it is."""
    table = folder / "people.table"
    table.write_bytes(b"mine")

    finished = run(WRITER, table)

    assert finished.returncode == 1
    assert "exists already" in finished.stderr
    assert table.read_bytes() == b"mine"


def test_people_reader_shows_what_an_unrelated_writer_wrote(folder: Path) -> None:
    """Two programs that share nothing but a path agree on every row."""
    table = folder / "people.table"
    writer = run(WRITER, table)
    reader = run(READER, table)

    written = re.findall(r"^wrote \d+: (.+), (\d{4}), (.+)$", writer.stdout, re.MULTILINE)
    shown = re.findall(r"^(.+?) +(\d{4}) +(.+)$", reader.stdout, re.MULTILINE)
    head = reader.stdout.splitlines()[0]

    assert (writer.returncode, writer.stderr, reader.returncode, reader.stderr) == (0, "", 0, "")
    assert numbers(head)[:1] == [6]
    assert len(written) == 6
    assert written == shown
    assert os.listdir(folder) == ["people.table"]


def test_people_reader_shows_the_rows_that_are_complete_while_the_writer_works(
    folder: Path,
) -> None:
    """After each row of a writer that runs step by step, a reader sees exactly those rows."""
    table = folder / "people.table"
    seen = []
    with subprocess.Popen(
        command(WRITER, table, "--step"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin
        assert writer.stdout
        for number in range(1, 4):
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert f"wrote {number}" in writer.stdout.readline()
            seen.append(len(run(READER, table).stdout.splitlines()) - 1)
        _, errors = writer.communicate()  # the end of its input ends it before the fourth

    assert seen == [1, 2, 3]
    assert (writer.returncode, errors) == (0, "")
    assert numbers(run(READER, table).stdout.splitlines()[0])[:1] == [3]


def test_people_reader_without_a_table_says_how_to_make_one(folder: Path) -> None:
    """A missing file is a sentence and exit code 1, not a traceback."""
    finished = run(READER)

    assert (finished.returncode, finished.stdout) == (1, "")
    assert "make it with people_writer.py" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"people", id="shorter than its header"),
        pytest.param(bytes(64), id="without its mark"),
        pytest.param(b"people 1" + b"\xff" * 8 + bytes(64), id="with a count beyond its end"),
    ],
)
def test_people_reader_refuses_a_file_that_is_no_table(folder: Path, content: bytes) -> None:
    """Bytes of another program are checked before they are used."""
    table = folder / "people.table"
    table.write_bytes(content)

    finished = run(READER, table)

    assert (finished.returncode, finished.stdout) == (1, "")
    assert "is no table of people" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_producer_consumer_adds_up_all_that_was_measured(folder: Path) -> None:
    """Every reading arrives, in order, and the end needs no sentinel."""
    finished = run("producer_consumer.py")

    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"10,000 readings, total {sum(range(10_000)) / 10:,.1f}\n"


def test_asyncio_consumer_takes_all_while_its_loop_goes_on(folder: Path) -> None:
    """Each record once, in its producer's order, and the end is the last producer's."""
    finished = run("asyncio_consumer.py")

    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == "10,000 records from 4 producers, while the loop went on: True\n"


def test_asyncio_gate_lets_in_all_though_one_process_is_killed_with_every_place(
    folder: Path,
) -> None:
    """Loops of several processes share the places, which come back."""
    finished = run("asyncio_gate.py")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "150 visits; places that are free again: 3 of 3\n"


@pytest.mark.parametrize(("producers", "consumers"), [(4, 3), (1, 5), (5, 1)])
def test_many_to_many_hands_each_number_to_one_consumer(
    folder: Path, producers: int, consumers: int
) -> None:
    """None is lost, none comes twice, however many there are at each end."""
    finished = run("many_to_many.py", str(producers), str(consumers))
    *shares, total = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert total == f"{2000 * producers:,} numbers from {producers} producers, each once: True"
    assert 1 <= len(shares) <= consumers
    assert sum(numbers(share)[1] for share in shares) == 2000 * producers


def test_large_frames_reach_the_second_viewer_when_the_first_is_killed(folder: Path) -> None:
    """The frame in its hand comes again, and no other is missing or doubled."""
    finished = run("large_frames.py")
    killed, seen = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert killed == "first viewer: signal 9, over frame 5"
    assert sorted(numbers(seen)[:12]) == list(range(12))


def test_prefork_server_counts_every_request_though_a_worker_is_killed(folder: Path) -> None:
    """The lock of the dead is taken over, and the counts add up."""
    finished = run("prefork_server.py", "40")
    died, last, counted = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert died == "no answer: the worker died"
    assert numbers(last)[0] == 40
    total, *by_worker = numbers(counted)
    assert (total, sum(by_worker), len(by_worker)) == (40, 40, 3)


def test_plain_fork_counts_the_lines_of_files(folder: Path) -> None:
    """Forty lines are enough for two workers."""
    for count in range(5):
        (folder / f"{count}.txt").write_text("line\n" * count)
    finished = run("plain_fork.py", *sorted(folder.iterdir()))

    assert (finished.returncode, finished.stderr) == (0, "")
    assert sorted(map(int, (line.split()[0] for line in finished.stdout.splitlines()))) == [
        *range(5)
    ]
    assert len((FOLDER / "plain_fork.py").read_text().splitlines()) <= 40


def test_log_from_workers_has_the_last_words_of_the_killed_worker(folder: Path) -> None:
    """And every other line of each."""
    finished = run("log_from_workers.py")
    error, counted = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert error == "ERROR of worker-0: something is wrong here"
    assert numbers(counted) == [300, 3, 9, 0, 0]
    assert os.listdir(folder) == []


def test_work_queue_does_the_task_that_the_killed_worker_had_in_hand(folder: Path) -> None:
    """All twenty, and the third at the second try."""
    finished = run("work_queue.py")
    done, again = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert numbers(done)[0] == 20
    assert numbers(again) == [2]
    assert os.listdir(folder) == []


def test_supervised_pipeline_is_right_though_each_stage_loses_a_worker(folder: Path) -> None:
    """The log names the three, and the table is full."""
    finished = run("supervised_pipeline.py")

    assert finished.returncode == 0
    assert finished.stdout == "3 restarts, every square is right: True\n"
    assert sorted(re.findall(r"name='([a-z]+).*signal=SIGKILL\n", finished.stderr)) == [
        "produce",
        "square",
        "store",
    ]
    assert len(finished.stderr.splitlines()) == 3


def test_talking_workers_are_heard_until_each_has_ended(folder: Path) -> None:
    """The killed one too, whose pipe ends; the others answer all."""
    finished = run("talking_workers.py")
    *ended, counted = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert sorted(int(line.rpartition(" ")[2]) for line in ended) == [-9, 0, 0]
    assert numbers(counted) == [12, 12]
    assert os.listdir(folder) == []


def test_pool_goes_on_after_each_death(folder: Path) -> None:
    """One item in a hundred is lost with its worker, and no item is taken too early."""
    finished = run("pool_goes_on.py")
    arrived, lost, after = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert numbers(arrived) == [990, 1000, 50]
    assert arrived.endswith("True")
    assert numbers(lost) == [*range(99, 1000, 100)]
    assert numbers(after) == [1, 2, 3]


def test_flaky_fan_out_loses_what_is_hopeless_alone(folder: Path) -> None:
    """One item crashes for good, one hangs for good, and all others arrive."""
    finished = run("flaky_fan_out.py")
    hopeless, endless, arrived = finished.stdout.splitlines()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert numbers(hopeless) == [13, 9]
    assert numbers(endless) == [42]
    assert numbers(arrived) == [98, 100, 5]
