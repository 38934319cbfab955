"""``ipcmap bench``: what it measures is received and looked at; how fast, no test asks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from glob import glob
from importlib import util
from pathlib import Path
from typing import Any

import pytest

WATCHDOG = 50  # seconds; ends a run that hangs, so that the test can say which

# A program that runs the command line with measurements of a few milliseconds, among ipcmap
# and the standard library alone. What a test changes comes between.
SMALL = """
import os, signal, sys, time
from dataclasses import replace
from importlib import util
from ipcmap.__main__ import main
from ipcmap.bench import channels, command, runner, rows
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
tiny = dict(repeats=2, sweep_repeats=1, seconds=0.003, wake_ups=5, idle_seconds=0.02,
            consumers=3, channels=2, deadline=30.0)
rows.QUICK = replace(rows.QUICK, **tiny)
rows.FULL = replace(rows.FULL, **tiny)
runner.INSTALLED, runner.POOLS = (), tuple(peer for peer in runner.POOLS if not peer.module)
parent = os.getpid()
"""
RUN = "sys.exit(main(['bench', *sys.argv[1:]]))"

Finished = subprocess.CompletedProcess[str]


def bench(*arguments: str | Path, change: str = "", **environment: str) -> Finished:
    """Run the command as a user does, after ``change``."""
    return subprocess.run(
        [sys.executable, "-c", f"{SMALL}\n{change}\n{RUN}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def measured(*arguments: str | Path, change: str = "", code: int = 0, **environment: str) -> Any:
    """Run it and return its JSON."""
    result = bench(*arguments, "--json", change=change, **environment)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, which is empty again after the run."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


BYTES = {
    "ipcmap.Ring",
    "ipcmap.Pipe",
    "multiprocessing.Queue",
    "multiprocessing.SimpleQueue",
    "multiprocessing.Pipe",
    "multiprocessing Manager().Queue",
}
PIPES = {"ipcmap.Pipe", "multiprocessing.Pipe"}
MANAGER = {"multiprocessing Manager().Queue"}
QUEUE = {"ipcmap.Queue"}
POOLS = {
    "ipcmap.ProcessPoolExecutor",
    "ipcmap.Pool",
    "concurrent.futures",
    "multiprocessing.Pool",
}


@pytest.mark.parametrize(
    ("row", "peers"),
    [
        ("bytes64", BYTES),
        ("bytes1m", BYTES),
        ("rtt", BYTES),
        ("rtt_idle", BYTES),
        ("batch64", {"ipcmap.Ring"}),
        ("objects", BYTES - {"ipcmap.Ring"} | QUEUE),
        ("fan", BYTES - PIPES),
        ("executor", POOLS),
        ("roundtrip_task", POOLS),
        ("idle", BYTES - PIPES | QUEUE),
        ("memory", BYTES - MANAGER | QUEUE),
    ],
)
def test_every_peer_that_can_do_a_row_is_in_it(row: str, peers: set[str], scratch: Path) -> None:
    """Each has its figures, ipcmap its ratio, and nothing is left in files."""
    report = measured(row, "--quick")
    (found,) = report["rows"]

    assert (found["name"], found["failures"], report["correct"]) == (row, [], True)
    for point in found["points"]:
        names = {result["peer"] for result in point["results"]} - {"ipcmap.Ring, lease"}
        assert names == peers
        for result in point["results"]:
            assert len(result["values"]) == found["repeats"]
            assert all(value >= 0 for value in result["figures"].values())
    assert list(scratch.iterdir()) == []


def test_the_reference_engine_is_measured_too() -> None:
    """IPCMAP_BACKEND chooses, and the result says which."""
    report = measured("bytes64", "fan", "--quick", IPCMAP_BACKEND="reference")

    assert (report["engine"], report["correct"]) == ("reference", True)


def test_the_json_has_the_fields_that_its_schema_says() -> None:
    """A program that reads it can rely on them."""
    report = measured("rtt", "--quick")
    (row,) = report["rows"]
    (point,) = row["points"]
    ours = next(result for result in point["results"] if result["ours"])

    assert report["schema"] == 1
    assert {*report} == {
        *("schema", "version", "engine", "quick", "machine", "peers", "missing", "rows", "correct")
    }
    assert {*report["machine"]} == {
        *("cpu", "cpus", "affinity", "cpu_limit", "load_average", "memory"),
        *("kernel", "libc", "python"),
    }
    assert {*row} == {
        *("name", "title", "axis", "figure", "more_is_better", "repeats", "seconds"),
        *("points", "failures"),
    }
    assert {*point} == {"x", "results", "best_peer"}
    assert {*ours} == {"peer", "ours", "figures", "values", "ratio"}
    assert {*ours["figures"]} == {"round_trips", "p50", "p99", "p999"}
    assert ours["figures"]["p50"] <= ours["figures"]["p99"] <= ours["figures"]["p999"]
    assert {*report["peers"]} >= BYTES | QUEUE | POOLS


def test_the_table_shows_each_peer_and_progress_is_a_line_a_row() -> None:
    """Results go to stdout and progress to stderr."""
    result = bench(
        "bytes64",
        "sizes",
        "--quick",
        change="rows.ROWS['sizes'] = "
        "command.ROWS['sizes'] = replace(rows.ROWS['sizes'], points=(64, 65536))",
    )

    assert result.returncode == 0, result.stderr
    for peer in BYTES:
        assert len(re.findall(rf"^{re.escape(peer)} +[\d,]+", result.stdout, re.MULTILINE)) == 2
    assert re.search(r"^ipcmap\.Ring .* [\d.]+x$", result.stdout, re.MULTILINE)
    assert re.search(
        r"^ipcmap\.Ring, to the best peer +[\d.]+x +[\d.]+x$", result.stdout, re.MULTILINE
    )
    progress = [line for line in result.stderr.splitlines() if "busy" not in line]
    assert progress == ["bytes64: 12 of 12 measurements", "sizes: 13 of 13 measurements"]


def test_a_row_named_twice_is_measured_once() -> None:
    """The order is that of the arguments."""
    report = measured("rtt", "bytes64", "rtt", "--quick")

    assert [row["name"] for row in report["rows"]] == ["rtt", "bytes64"]


# Usage


@pytest.mark.parametrize("arguments", [["bytes65"], ["--slow"], ["bytes64", "--plot"]])
def test_wrong_usage_says_how(arguments: list[str]) -> None:
    """Exit code 2, and the usage line; a wrong row is told the names that there are."""
    result = bench(*arguments)

    assert result.returncode == 2
    assert result.stderr.startswith("usage: ")
    assert ("bytes4k" in result.stderr.splitlines()[-1]) is (arguments == ["bytes65"])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("picture.pdf", "", ".svg or .png"),
        ("picture", "", ".svg or .png"),
        ("missing/picture.png", "", "there is no folder"),
        ("picture.svg", "sys.modules['matplotlib'] = None", "pip install 'ipcmap[bench]'"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    tmp_path: Path, name: str, change: str, said: str
) -> None:
    """One line says why, and the way out."""
    result = bench("bytes64", "--quick", "--plot", tmp_path / name, change=change)

    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


# Results that were saved


def test_saved_results_are_put_together_and_shown_without_measuring(tmp_path: Path) -> None:
    """Tables, JSON and rows are those of the files; a row that is in two is the later one's."""
    files = [tmp_path / name for name in ("one.json", "two.json")]
    parts = [measured(*rows, "--quick") for rows in (["rtt", "bytes64"], ["bytes64"])]
    for file, part in zip(files, parts, strict=True):
        file.write_text(json.dumps(part))
    change = "runner.run_row = None"  # who measures fails

    both = measured("--load", files[0], "--load", files[1], change=change)
    one = bench("bytes64", "--load", files[0], change=change)

    assert both["rows"] == [parts[0]["rows"][0], parts[1]["rows"][0]]
    assert (one.returncode, "bytes64: 64-byte records" in one.stdout) == (0, True)
    assert "rtt:" not in one.stdout


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("found['schema'] = 99", "has another form: schema=99"),
        ("found['machine']['cpu'] = 'another'", "cannot be compared: cpu="),
        ("found['version'] = '9.9'", "cannot be compared: version="),
        ("found = [found]", "is no result of ipcmap bench --json"),
        ("del found['rows'][0]['points'][0]['results'][0]['figures']['p99']", "is no result"),
        ("found['rows'][0]['name'] = 'another'", "is no result"),
        ("found['rows'] = []", "has no row rtt"),
    ],
)
def test_a_file_that_cannot_be_shown_is_refused_with_what_is_wrong(
    tmp_path: Path, spoil: str, said: str
) -> None:
    """One line, and exit code 2."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(SAVED))
    names = {"found": json.loads(json.dumps(SAVED))}
    exec(spoil, names)
    bad.write_text(json.dumps(names["found"]))
    files = [good, bad] if "compared" in said else [bad]

    result = bench("rtt", *(f"--load={file}" for file in files))

    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


SAVED: dict[str, Any] = {
    "schema": 1,
    "version": "0.1.0",
    "engine": "native",
    "quick": True,
    "machine": {
        "cpu": "some",
        "cpus": 2,
        "affinity": 2,
        "cpu_limit": None,
        "load_average": 0.1,
        "memory": 1 << 30,
        "kernel": "6",
        "libc": "glibc 2",
        "python": "CPython 3.11",
    },
    "peers": {"ipcmap.Ring": "0.1.0"},
    "missing": [],
    "rows": [
        {
            "name": "rtt",
            "title": "round trip",
            "axis": "bytes a record",
            "figure": "p50",
            "more_is_better": False,
            "repeats": 1,
            "seconds": 1.0,
            "failures": [],
            "points": [
                {
                    "x": 64,
                    "best_peer": None,
                    "results": [
                        {
                            "peer": "ipcmap.Ring",
                            "ours": True,
                            "values": [1e-6],
                            "ratio": None,
                            "figures": {"p50": 1e-6, "p99": 2e-6, "p999": 3e-6},
                        }
                    ],
                }
            ],
        }
    ],
    "correct": True,
}


# Peers that are missing, wrong, stuck, or dead


def test_peers_that_are_not_installed_are_named_with_what_installs_them() -> None:
    """The others are compared without them."""
    change = (
        "from ipcmap.bench import installed, pools\n"
        "runner.INSTALLED, runner.POOLS = installed.INSTALLED, pools.POOLS\n"
        "for peer in runner.INSTALLED + runner.POOLS:\n"
        "    if peer.module: sys.modules[peer.module] = None"
    )
    report = measured("bytes64", "--quick", change=change)
    shown = bench("bytes64", "--quick", change=change).stdout

    ways = {missing["module"]: missing["way_out"] for missing in report["missing"]}
    assert ways == {
        "faster_fifo": "pip install 'ipcmap[bench]'",
        "zmq": "pip install 'ipcmap[bench]'",
        "posix_ipc": "pip install 'ipcmap[bench]'",
        "iceoryx2": "pip install iceoryx2",
        "joblib": "pip install 'ipcmap[bench]'",
    }
    assert {result["peer"] for result in report["rows"][0]["points"][0]["results"]} == BYTES
    assert "left out: iceoryx2, polling cannot be imported; pip install iceoryx2" in shown


BAD_PEER = """
def spoilt(terms):
    good = channels._simple_queue(terms)
    sender = good.sender()
    def put(record, _sent=[0]):
        _sent[0] += 1
        {spoil}
        sender.put(record)
    return replace(good, sender=lambda: replace(sender, put=put))
runner.STANDARD = (*runner.STANDARD[:1], channels.Peer("spoilt", spoilt))
"""

LEAVE_A_NAME = (
    "open('/dev/shm/ipcmap_bench_' + os.path.basename(terms.folder) "
    f"+ '_{os.getpid()}', 'w').close()"
)


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        ("if _sent[0] == 2: return", "failed", "no result within 2 s"),
        ("if _sent[0] == 2: sender.put(record)", "wrong", "not the one that was sent"),
        ("if _sent[0] == 500: sender.put(record)", "wrong", "not the one that was sent"),
        ("record = record[:-1] + b'?'", "wrong", "came changed"),
        ("record = record[:3]", "wrong", "not the one that was sent"),
        ("raise RuntimeError('no more today')", "failed", "RuntimeError: no more today"),
        ("raise ImportError('half of it is missing')", "left out", "half of it is missing"),
        ("time.sleep(3600)", "failed", "no result within 2 s"),
        ("os.kill(os.getppid(), signal.SIGABRT)", "failed", "died of SIGABRT"),
    ],
)
def test_a_peer_that_goes_wrong_is_named_and_costs_its_own_figures_alone(
    spoil: str, kind: str, reason: str
) -> None:
    """Lost, doubled, changed, stuck, dead: the exit code is 1, and ipcmap's row is there."""
    change = BAD_PEER.format(spoil=spoil)
    if "2 s" in reason:
        change += "\nrows.QUICK = replace(rows.QUICK, deadline=2.0)"

    report = measured("bytes64", "--quick", change=change, code=0 if kind == "left out" else 1)
    (row,) = report["rows"]

    (failure,) = row["failures"]
    assert (failure["peer"], failure["kind"]) == ("spoilt", kind)
    assert reason in failure["reason"]
    assert [result["peer"] for result in row["points"][0]["results"]] == ["ipcmap.Ring"]
    assert row["points"][0]["results"][0]["ratio"] is None
    assert report["correct"] is (kind == "left out")


def test_a_round_trip_and_a_wake_up_that_come_back_changed_are_noticed() -> None:
    """Not only streams of bytes are looked at."""
    change = BAD_PEER.format(spoil="record = b'?' * len(record) if type(record) is bytes else None")

    for row in ("rtt", "idle", "objects"):
        report = measured(row, "--quick", change=change, code=1)
        assert [failure["kind"] for failure in report["rows"][0]["failures"]] == ["wrong"]


def test_a_peer_that_the_machine_has_no_room_for_is_left_out() -> None:
    """A full or missing /dev/shm is nobody's mistake: the exit code is 0."""
    change = BAD_PEER.format(spoil="pass").replace(
        "good =", "raise OSError(28, 'No space'); good ="
    )

    report = measured("bytes64", "rtt", "idle", "memory", "--quick", change=change)

    for row in report["rows"]:
        (failure,) = row["failures"]
        assert failure["kind"] == "left out"
        assert "No space" in failure["reason"]


def test_what_a_peer_prints_does_not_reach_the_result() -> None:
    """Its last line is told where it failed, and the JSON stays JSON."""
    change = BAD_PEER.format(spoil="print('noise', flush=True); time.sleep(3600)")
    change += "\nrows.QUICK = replace(rows.QUICK, deadline=2.0)"

    report = measured("bytes64", "--quick", change=change, code=1)

    assert report["rows"][0]["failures"][0]["reason"] == "no result within 2 s: noise"


# Ends


def test_ctrl_c_ends_it_with_one_line_and_leaves_nothing(scratch: Path) -> None:
    """Exit code 130, no traceback from anybody, no process, no file."""
    change = BAD_PEER.format(spoil="os.killpg(0, signal.SIGINT); time.sleep(3600)")

    result = bench("bytes64", "--quick", "--json", change=change)

    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "ipcmap: interrupted"
    assert "Traceback" not in result.stderr
    assert list(scratch.iterdir()) == []


def test_sigterm_ends_it_and_leaves_nothing(scratch: Path) -> None:
    """A time limit that somebody else sets is kept as tidily; the exit code names the signal."""
    change = BAD_PEER.format(
        spoil=f"{LEAVE_A_NAME}; os.kill(parent, signal.SIGTERM); time.sleep(3600)"
    )

    result = bench("bytes64", "--quick", "--json", change=change)

    assert (result.returncode, result.stdout) == (128 + signal.SIGTERM, "")
    assert "Traceback" not in result.stderr
    assert list(scratch.iterdir()) == []
    assert glob(f"/dev/shm/*_{os.getpid()}") == []


def test_everybody_dies_with_a_killed_benchmark() -> None:
    """The measuring process, its producers, and a manager's server."""
    change = (
        "def stuck(peer, nbytes, place, **options):\n"
        "    channel = channels._manager_queue(channels.Terms(nbytes, place.folder))\n"
        "    with place.crew(3, lambda number, orders: (orders.send(number), signal.pause())) as crew:\n"
        "        crew.hear(); os.write(out, b'busy\\n'); signal.pause()\n"
        "out = os.dup(1); os.set_inheritable(out, True)\n"
        "command.ROWS['bytes64'] = replace(rows.ROWS['bytes64'], measure=stuck)\n"
    )
    command = [sys.executable, "-c", f"{SMALL}\n{change}\n{RUN}", "bytes64", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        busy = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()  # ends when the last of them is gone

    assert (busy, rest) == (b"busy\n", b"")


# Pictures


@pytest.mark.parametrize(
    ("suffix", "begins", "rows"),
    [
        (
            "svg",
            b"<?xml",
            ["bytes64", "bytes4k", "batch64", "rtt", "idle", "memory", "roundtrip_task"],
        ),
        ("png", b"\x89PNG", ["batch64"]),
    ],
    ids=["svg", "png"],
)
def test_the_plot_is_written(tmp_path: Path, suffix: str, begins: bytes, rows: list[str]) -> None:
    """One panel for each thing that was measured, with the names of the peers in it."""
    if util.find_spec("matplotlib") is None:  # not imported here: NumPy would start its threads
        pytest.skip("matplotlib is not installed")
    picture = tmp_path / f"picture.{suffix}"

    result = bench(*rows, "--plot", picture)

    assert result.returncode == 0, result.stderr
    content = picture.read_bytes()
    assert content.startswith(begins)
    if suffix == "svg":
        text = content.decode()
        for title in (
            *("Throughput by record size", "CPU time by record size", "64-byte records in batches"),
            *("Round trip of 64 bytes", "A task and its result", "consumers that wait"),
            "Memory of an unused channel of 16 MiB",
        ):
            assert title in text
        for peer in BYTES | QUEUE | POOLS:
            assert peer.replace("multiprocessing ", "mp ").replace("multiprocessing", "mp") in text


def test_nothing_is_left_in_shared_memory() -> None:
    """A peer that leaves files there is cleaned up after."""
    change = BAD_PEER.format(spoil=LEAVE_A_NAME)
    report = measured("bytes64", "--quick", change=change)

    assert report["rows"][0]["failures"] == []
    assert glob(f"/dev/shm/*_{os.getpid()}") == []


def test_a_wrong_result_of_a_task_is_noticed() -> None:
    """Of a map, and of one task."""
    change = """
from ipcmap.bench import pools
def spoilt(terms):
    good = pools._own(terms)
    return replace(good, map=lambda task, items: [*good.map(task, items)][1:], call=lambda *_: 7)
def late(terms):
    return replace(spoilt(terms), map=pools._own(terms).map)
runner.POOLS = tuple(
    replace(pools.POOLS[0], name=make.__name__, make=make) for make in (spoilt, late)
)
"""
    report = measured("roundtrip_task", "--quick", change=change, code=1)

    assert {failure["peer"]: failure["kind"] for failure in report["rows"][0]["failures"]} == {
        "spoilt": "wrong",
        "late": "wrong",
    }
