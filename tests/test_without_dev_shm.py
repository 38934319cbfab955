"""Everything works where /dev/shm is missing, full, or read-only, as in many containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What is done to /dev/shm, in a mount namespace of its own; $1 is a directory to work in.
ABSENT = """
for device in null zero random urandom; do
    : > "$1/$device"
    mount --bind "/dev/$device" "$1/$device"
done
ln -s /proc/self/fd "$1/fd"
mount --rbind "$1" /dev
test ! -e /dev/shm
"""
FULL = """
mount -t tmpfs -o size=4k tmpfs /dev/shm
head -c 4096 /dev/zero > /dev/shm/filler
"""
READ_ONLY = "mount -t tmpfs -o ro tmpfs /dev/shm"

PROGRAM = """
import multiprocessing, os, signal
try:
    multiprocessing.Lock()
except OSError:
    print("control: no lock of multiprocessing")

import ipcmap

lock, tokens, arena = ipcmap.Lock(), ipcmap.Semaphore(2), ipcmap.Arena(64 << 20)
ring, large = ipcmap.Ring(1 << 12), b"L" * (1 << 20)

def work(number):
    with lock, tokens:
        ring.put(b"%d" % number)
    ring.put(large)

workers = [ipcmap.Process(target=work, args=(number,)) for number in range(3)]
for worker in workers:
    worker.start()
records = sorted((ring.get(30) for _ in range(6)), key=len)
for worker in workers:
    worker.join()
assert sorted(records[:3]) == [b"0", b"1", b"2"] and records[3:] == [large] * 3

pid = os.fork()
if not pid:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
assert lock.acquire(timeout=30)

# What is made after the fork goes to one that runs already.
inbox = ipcmap.Ring()
child = ipcmap.Process(target=lambda: __import__("pickle").loads(inbox.get(30)).put(b"late"))
child.start()
late = ipcmap.Ring()
inbox.put(__import__("pickle").dumps(late))
assert late.get(30) == b"late"
child.join()

ours, theirs = ipcmap.Pipe()
level = ipcmap.Value("i", 20)

def answer():
    level.value += theirs.recv()
    theirs.send(large)

child = ipcmap.Process(target=answer)
child.start()
ours.send(1)
assert ours.recv() == large and level.value == 21
child.join()

block = arena.allocate(1 << 16)
block.view()[:] = b"b" * (1 << 16)
block.free()
with ipcmap.Mapping.anonymous(1 << 20) as mapping:
    mapping.write(0, b"mapped")
    assert mapping.read(0, 6) == b"mapped"
print("works:", ipcmap.backend)
"""


@pytest.mark.parametrize("change", [ABSENT, FULL, READ_ONLY], ids=["absent", "full", "read-only"])
def test_all_of_it_works_without_dev_shm(change: str, engine: str, tmp_path: Path) -> None:
    """Where multiprocessing's own lock, the control, cannot be made."""
    unshare = shutil.which("unshare")
    if not unshare:
        pytest.skip("unshare (util-linux) is not installed")
    probe = [unshare, "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$1"', "sh", str(tmp_path)]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace is not permitted here: CAP_SYS_ADMIN")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    room = tmp_path / "dev"
    room.mkdir()
    result = subprocess.run(
        [unshare, "--mount", "sh", "-c", f'set -e\n{change}\nexec "$2" "$3"', "sh",
         str(room), sys.executable, str(program)],
        env={**os.environ, "IPCMAP_BACKEND": engine},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert result.stderr == ""
    assert result.stdout == f"control: no lock of multiprocessing\nworks: {engine}\n"
