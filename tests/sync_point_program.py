"""Strike a process at every sync point that a call passes; a program for test_native_sync_points.

Usage: python sync_point_program.py BUILD FOLDER CALL MODE [everywhere]

BUILD is the extension with hooks. A first run of each scene says which points the call
passes there; then the scene is run again for each of them, several at a time, each in a
family of its own: ``everywhere``, or until the call was struck there once, for chance
has a say in who sleeps. MODE ``trace`` is the first run alone. One line of JSON says what
there was: all points, those that the call passes, those at which it was struck, how many
runs, and what failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import native_build

if TYPE_CHECKING:
    from sync_point_stage import Strike

STRUCK, MISSED = 0, 3  # exit codes of a run
AT_A_TIME = {"stop": 48}  # those are asleep most of the time
OTHERWISE = 6
ROUNDS = 3  # in each scene, for points that were missed

Job = tuple[str, str, "Strike | None"]  # scene, call, strike


def main(build: str, folder: str, call: str, mode: str, extent: str = "") -> None:
    native = native_build.load(build)
    from sync_point_stage import STREAMED, Strike

    scenes = company(call)[0]
    rehearsals: list[Job] = [(scene, call, None) for scene in scenes]
    failures = run(rehearsals, folder, OTHERWISE)[1]
    files = {scene: Path(folder, f"{scene}.trace") for scene in scenes}
    traces = {name: file.read_text().split("\n") for name, file in files.items() if file.exists()}
    passed = sorted(set().union(*traces.values()))
    if call.endswith(STREAMED):  # all other points are those of short records
        passed = [point for point in passed if " in fill, " in point]
    struck, runs = set[str](), 0
    for turn in range(ROUNDS * len(scenes) if mode != "trace" else 0):
        jobs = list[Job]()
        for point in passed:
            where = [scene for scene, trace in traces.items() if point in trace]
            if extent and not turn:
                jobs += (
                    (scene, call, Strike(point, passing, mode))
                    for scene in where
                    for passing in range(1, min(traces[scene].count(point), 2) + 1)
                )
            elif point not in struck:
                jobs.append((where[turn % len(where)], call, Strike(point, 1, mode)))
        done, failed = run(jobs, folder, AT_A_TIME.get(mode, OTHERWISE))
        struck |= {strike.point for _, _, strike in done if strike}
        runs, failures = runs + len(done), failures + failed
    facts = {
        "points": sorted(native.points()),
        "passed": passed,
        "struck": sorted(struck),
        "runs": runs,
        "failures": failures,
    }
    print(json.dumps(facts))


def run(jobs: list[Job], folder: str, most: int) -> tuple[list[Job], list[str]]:
    """Run each in a family of its own, so many at a time; return what came off, what failed."""
    waiting, running = list(enumerate(jobs)), dict[int, tuple[Job, Path]]()
    done, failures = list[Job](), list[str]()
    while waiting or running:
        while waiting and len(running) < most:
            index, job = waiting.pop(0)
            said = Path(folder, f"{index}.said")
            running[start(partial(play, *job, folder), said)] = job, said
        pid, status = os.wait()
        job, said = running.pop(pid)
        code, text = os.waitstatus_to_exitcode(status), said.read_text()
        if code == STRUCK and not text:
            done.append(job)
        elif code != MISSED or text:
            failures.append(f"{job}: exit code {code}\n{text}")
    return done, failures


def company(call: str) -> tuple[dict[str, Callable[[Any], None]], Any, Callable[[Any], bool]]:
    """Return what is played of a call: the scenes, the stage, and what ends it."""
    if call in ("allocate", "free", "retag"):
        import sync_point_blocks as of_blocks

        return of_blocks.SCENES, of_blocks.BlockStage, of_blocks.settle
    if call in ("lock", "rlock", "semaphore", "travels"):
        import sync_point_guards as of_guards

        return of_guards.SCENES, of_guards.GuardStage, of_guards.settle
    import sync_point_accounts
    import sync_point_scenes
    import sync_point_stage

    scenes: dict[str, Callable[[Any], None]] = sync_point_scenes.SCENES
    if call.endswith(sync_point_stage.STREAMED):
        scenes = sync_point_scenes.STREAMED_SCENES
    return scenes, sync_point_stage.Stage, sync_point_accounts.settle


def play(scene: str, call: str, strike: Strike | None, folder: str) -> int:
    """Play a scene to its end, and check the accounts."""
    scenes, stage_of, settle = company(call)
    stage = stage_of(call, strike)
    scenes[scene](stage)
    struck = settle(stage)
    if not strike:
        Path(folder, f"{scene}.trace").write_text("\n".join(stage.trace()))
    return STRUCK if struck else MISSED


def start(job: Callable[[], int], said: Path) -> int:
    """Fork a family's first process, with a file for what it has to say."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.setpgid(0, 0)
        try:
            os._exit(job())
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os.killpg(0, signal.SIGKILL)  # its survivors wait for what never comes
    return pid


if __name__ == "__main__":
    main(*sys.argv[1:])
