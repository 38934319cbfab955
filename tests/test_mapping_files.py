"""Files as memory: what reaches the file, who else sees it, and what a file cannot be."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from children import Fork
from ipcmap import PAGE_SIZE, BrokenError, Mapping

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two pages and a half: a page of ``a``, one of ``b``, half a one of ``c``."""
    path = tmp_path / "a,b"
    path.write_bytes(b"a" * PAGE_SIZE + b"b" * PAGE_SIZE + b"c" * (PAGE_SIZE // 2))
    return path


def become_nobody(directory: Path) -> None:
    """Give up root's rights, in a child, in a directory where all may look."""
    os.chdir(directory)
    if os.geteuid() == 0:
        directory.chmod(0o755)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def test_unrelated_programs_share_a_file_at_once(path: Path) -> None:
    """A program that is no relative sees every write without a flush, and its own come back."""
    program = """if True:
        import sys
        from ipcmap import Mapping
        with Mapping.file(sys.argv[1]) as mapping:
            print(mapping[:5].decode(), flush=True)
            assert "go" == input()
            print(mapping[:5].decode(), flush=True)
            mapping[-3:] = b"end"
        """
    with (
        Mapping.file(path) as mapping,
        subprocess.Popen(
            [sys.executable, "-c", program, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "aaaaa\n"
        mapping[:5] = b"hello"
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "hello\n"
        assert other.wait() == 0
        assert mapping[-3:] == b"end"
    assert (path.read_bytes()[:5], path.read_bytes()[-3:]) == (b"hello", b"end")


def test_private_mapping_never_changes_the_file(path: Path, fork: Fork) -> None:
    """Copy on write: what is written stays in this process, and a child has its own copy."""
    before = path.read_bytes()
    with Mapping.file(path, private=True) as mapping:
        mapping[:4] = b"mine"

        def child() -> None:
            assert mapping[:4] == b"mine"
            mapping[:4] = b"hers"

        assert fork(child).wait() == 0
        assert mapping[:4] == b"mine"
        mapping.flush()
        with Mapping.file(path) as shared:
            assert shared[:4] == b"aaaa"
    assert path.read_bytes() == before


def test_read_only_mapping_refuses_writes(path: Path) -> None:
    """Nothing is written through a mapping made with writable=False, views included."""
    with Mapping.file(path, writable=False) as mapping:
        with pytest.raises(TypeError, match=r"read-only: .*map it with writable=True"):
            mapping[0] = 1
        with mapping.view() as view, pytest.raises(TypeError):
            view[0] = 1
        assert not mapping.writable


@pytest.mark.parametrize("make", [Mapping.file, lambda path: Mapping.anonymous(100)])
def test_write_overtaken_by_protect_is_refused(
    make: Callable[[Path], Mapping], path: Path, fork: Fork
) -> None:
    """Pages that become read-only while a write reads its arguments are not written to."""

    def child() -> None:
        mapping = make(path)

        class Offset:
            def __index__(self) -> int:
                mapping.protect(True)
                return 0

        with pytest.raises(TypeError, match="mapping is read-only") as kept:
            mapping.write(Offset(), b"x")  # type: ignore[arg-type]
        mapping.close()  # the error that is kept holds no view
        assert kept.value

    assert fork(child).wait() == 0


@pytest.mark.parametrize("kind", ["anonymous", "shared", "private"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_reads_writes_and_slices_act_as_on_a_bytearray(kind: str, data: st.DataObject) -> None:
    """Any run of legal operations leaves the same bytes as in a bytearray, in the file too."""
    nbytes = data.draw(st.sampled_from([1, 30, PAGE_SIZE, PAGE_SIZE + 10]))
    model, bounds = bytearray(nbytes), st.none() | st.integers(-nbytes - 2, nbytes + 2)
    with tempfile.TemporaryFile() as file:
        file.truncate(nbytes)
        fd, private = file.fileno(), kind == "private"
        make = functools.partial(Mapping.file, fd, private=private)
        with Mapping.anonymous(nbytes) if kind == "anonymous" else make() as mapping:
            for _ in range(data.draw(st.integers(1, 10))):
                where = slice(data.draw(bounds), data.draw(bounds))
                start, stop, _ = where.indices(nbytes)
                stop = max(start, stop)
                filler = (data.draw(st.binary(min_size=1, max_size=3)) * nbytes)[: stop - start]
                match data.draw(st.sampled_from(["write", "slice", "index", "view"])):
                    case "write":
                        mapping.write(start, filler)
                    case "slice":
                        mapping[where] = filler
                    case "index":
                        for index, byte in enumerate(filler):
                            mapping[start + index - nbytes] = byte
                    case "view":
                        mapping.view(start, len(filler))[:] = filler
                model[start:stop] = filler
                low, high = data.draw(bounds), data.draw(bounds)
                assert mapping[low:high] == model[low:high]
                assert mapping.read(start, stop - start) == filler
            assert list(mapping.view()) == list(model)
        assert os.pread(fd, nbytes + 1, 0) == (model if kind == "shared" else bytes(nbytes))


# The window


def test_length_0_is_the_rest_of_the_file(path: Path) -> None:
    """Without a length the window ends where the file does."""
    with Mapping.file(path) as whole, Mapping.file(path, offset=2 * PAGE_SIZE) as rest:
        assert (len(whole), len(rest)) == (path.stat().st_size, PAGE_SIZE // 2)
        assert (whole[:], rest[:]) == (path.read_bytes(), b"c" * (PAGE_SIZE // 2))


def test_window_may_begin_and_end_in_the_middle(path: Path) -> None:
    """A window reaches no further than it was asked to, though pages do."""
    with Mapping.file(path, 10, offset=PAGE_SIZE) as window:
        window[:] = b"0123456789"
        assert len(window) == 10
        with pytest.raises(ValueError, match="outside the mapping"):
            window.read(0, 11)
    assert path.read_bytes()[PAGE_SIZE - 1 : PAGE_SIZE + 11] == b"a0123456789b"


def test_last_page_past_the_end_is_zeros_and_never_written_back(path: Path) -> None:
    """The window may end in the file's last page; what lies past the end stays out of the file."""
    nbytes = path.stat().st_size
    with Mapping.file(path, 3 * PAGE_SIZE) as mapping:
        assert mapping[nbytes:] == bytes(PAGE_SIZE // 2)
        mapping[nbytes - 1 :] = b"z" * (PAGE_SIZE // 2 + 1)
        mapping.flush()

    assert path.stat().st_size == nbytes
    assert path.read_bytes()[-2:] == b"cz"


def test_descriptor_may_be_closed_and_none_is_kept(path: Path) -> None:
    """The mapping lives on without the descriptor, and opens none that stays."""
    before = os.listdir("/proc/self/fd")
    fd = os.open(path, os.O_RDWR)
    by_fd, by_path = Mapping.file(fd), Mapping.file(path)
    zeros, anonymous = Mapping.zero_device(1), Mapping.anonymous(1)
    os.close(fd)

    by_fd[0] = ord("z")

    assert by_path[0] == ord("z")
    assert os.listdir("/proc/self/fd") == before
    for mapping in (by_fd, by_path, zeros, anonymous):
        mapping.close()


def test_file_may_be_named_in_every_usual_way(path: Path) -> None:
    """A path is text, bytes or a path object; a descriptor is any integer."""
    one: Any = np.int64(1)
    with path.open("r+b") as file:
        fd: Any = np.int64(file.fileno())
        names = {str(path): path, bytes(path): path, path: path, fd: f"descriptor {fd}"}
        for name, shown in names.items():
            with Mapping.file(name, one, offset=one * PAGE_SIZE) as mapping:
                assert repr(mapping) == f"<ipcmap.Mapping of {shown}: 1 bytes>"
                mapping[one - 1] = one
                assert mapping.read(one - 1, one) == b"\1"


@pytest.mark.parametrize("border", [2**31, 2**32])
def test_bytes_beyond_2_and_4_gib_are_reached(tmp_path: Path, border: int) -> None:
    """No length or offset is cut to 31 or 32 bits; the file is sparse."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, border + PAGE_SIZE)
    with Mapping.file(path) as mapping, Mapping.file(path, offset=border) as beyond:
        mapping.write(border - 4, b"12345678")
        assert b"12345678" == mapping[border - 4 : border + 4] == mapping.read(border - 4, 8)
        assert beyond[:4] == b"5678"
        beyond[0] = ord("x")
        assert mapping[border] == mapping[border - len(mapping)] == ord("x")
        assert bytes(mapping.view(border - 4, 8)) == b"1234x678"
        assert len(mapping) == path.stat().st_size == border + PAGE_SIZE
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 8, border - 4) == b"1234x678"


# A file that another process shortens


@pytest.fixture(params=[False, True], ids=["shared", "private"])
def shortened(path: Path, fork: Fork, request: pytest.FixtureRequest) -> Iterator[Mapping]:
    """A mapping, written to, whose file another process has cut to its first page."""
    with Mapping.file(path, private=request.param) as mapping:
        mapping[:] = path.read_bytes()
        assert fork(os.truncate, path, PAGE_SIZE).wait() == 0
        yield mapping


@pytest.mark.parametrize(
    ("access", "offset"),
    [
        (lambda m: m.read(0, len(m)), PAGE_SIZE),
        (lambda m: m.read(len(m) - 1, 1), 2 * PAGE_SIZE + PAGE_SIZE // 2 - 1),
        (lambda m: m[PAGE_SIZE + 7], PAGE_SIZE + 7),
        (lambda m: m[PAGE_SIZE - 1 : PAGE_SIZE + 1], PAGE_SIZE),
        (lambda m: m.write(PAGE_SIZE + 5, b"x"), PAGE_SIZE + 5),
        (lambda m: m.__setitem__(-1, 0), 2 * PAGE_SIZE + PAGE_SIZE // 2 - 1),
        (lambda m: m.__setitem__(slice(None), bytes(len(m))), PAGE_SIZE),
        (lambda m: m.populate(), PAGE_SIZE),
    ],
)
def test_access_to_a_shortened_file_names_the_first_byte_that_is_gone(
    shortened: Mapping, access: Callable[[Mapping], object], offset: int
) -> None:
    """No access by a method dies of SIGBUS; the error says how far the file reaches."""
    with pytest.raises(BrokenError, match=rf"offset={offset} in the mapping; .*map it again") as it:
        access(shortened)
    assert it.value.deaths == ()


def test_write_to_a_shortened_file_keeps_what_still_fits(shortened: Mapping, path: Path) -> None:
    """What lies before the first byte that is gone is written, and reads go on there."""
    with pytest.raises(BrokenError):
        shortened.write(PAGE_SIZE - 3, b"kept lost")

    assert shortened.read(PAGE_SIZE - 4, 4) == b"akep"
    os.truncate(path, 3 * PAGE_SIZE)
    assert shortened.read(PAGE_SIZE, 4) == bytes(4)


def test_raw_view_of_a_shortened_file_is_a_sigbus(shortened: Mapping, fork: Fork) -> None:
    """Views are memory itself: the one access that the promise exempts."""

    def child() -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        shortened.view()[PAGE_SIZE]

    assert fork(child).wait() == -signal.SIGBUS


# What cannot be mapped


@pytest.mark.parametrize("offset", [1, PAGE_SIZE - 1, PAGE_SIZE + 1, -1, -PAGE_SIZE])
def test_offset_must_be_a_multiple_of_the_page_size(path: Path, offset: int) -> None:
    """The error names the page size and the two offsets that would do."""
    below = max(0, offset // PAGE_SIZE * PAGE_SIZE)
    text = (
        f"offset={offset}, page size={PAGE_SIZE}; the nearest are {below} and {below + PAGE_SIZE}"
    )
    with pytest.raises(ValueError, match=text):
        Mapping.file(path, offset=offset)


@pytest.mark.parametrize(
    ("window", "error", "text"),
    [
        ({"nbytes": -1}, ValueError, "length must not be negative: nbytes=-1; 0 = the file's"),
        ({"nbytes": 3 * PAGE_SIZE + 1}, ValueError, "window ends after the last page of the file"),
        ({"nbytes": 2**64 + 1}, ValueError, f"nbytes={2**64 + 1}, file={5 * PAGE_SIZE // 2} bytes"),
        ({"offset": 3 * PAGE_SIZE}, ValueError, "window begins at or after the end of the file"),
        ({"offset": 2**64}, ValueError, f"offset={2**64}, file={5 * PAGE_SIZE // 2} bytes; leng"),
        ({"nbytes": 1.0}, TypeError, "nbytes must be an integer, in bytes: nbytes=1.0"),
        ({"nbytes": True}, TypeError, "nbytes must be an integer, in bytes: nbytes=True"),
        ({"offset": float(PAGE_SIZE)}, TypeError, "offset must be an integer, in bytes: offset=4"),
        ({"offset": None}, TypeError, "offset must be an integer, in bytes: offset=None"),
    ],
)
def test_window_that_the_file_cannot_have_is_an_error(
    path: Path, window: dict[str, Any], error: type[Exception], text: str
) -> None:
    """The error gives offset, length and the file's own length."""
    before = path.read_bytes()
    with pytest.raises(error, match=re.escape(text)):
        Mapping.file(path, **window)
    assert path.read_bytes() == before


@pytest.mark.parametrize("writable", [True, False])
def test_what_is_no_file_cannot_be_mapped(tmp_path: Path, writable: bool) -> None:
    """A directory, nothing, an empty file and a pipe by name each say so, and none waits."""
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        Mapping.file(tmp_path, writable=writable)
    with pytest.raises(FileNotFoundError, match="missing"):
        Mapping.file(tmp_path / "missing", writable=writable)
    with pytest.raises(ValueError, match=r"end of the file: .*empty, offset=0, file=0 bytes"):
        Mapping.file(tmp_path / "empty", writable=writable)
    with pytest.raises(OSError, match=r"pipe or socket has no pages to map; read it.*fifo"):
        Mapping.file(tmp_path / "fifo", writable=writable)


def test_descriptor_of_what_is_no_file_cannot_be_mapped(tmp_path: Path) -> None:
    """A pipe, a socket, a directory and a closed descriptor each say which one it was."""
    with contextlib.ExitStack() as stack:
        pipe = os.pipe()
        directory = os.open(tmp_path, os.O_RDONLY)
        for fd in (*pipe, directory):
            stack.callback(os.close, fd)
        sockets = [stack.enter_context(end) for end in socket.socketpair()]

        for fd in (*pipe, sockets[0].fileno()):
            with pytest.raises(OSError, match=f"pipe or socket has no pages.*descriptor {fd}"):
                Mapping.file(fd, 10)
        with pytest.raises(IsADirectoryError, match="a directory cannot be mapped"):
            Mapping.file(directory)
    for fd in (directory, -1):
        with pytest.raises(OSError, match=rf"Errno 9\] .*descriptor {fd}"):
            Mapping.file(fd)


def test_descriptor_must_allow_what_the_mapping_asks(path: Path) -> None:
    """One open for reading gives no shared writable mapping; one for writing gives none."""
    with path.open("rb") as reads, path.open("ab") as writes:
        with pytest.raises(PermissionError, match="pass writable=False or private=True"):
            Mapping.file(reads.fileno())
        with pytest.raises(PermissionError, match="any other for reading"):
            Mapping.file(writes.fileno(), private=True)
        for way in ({"writable": False}, {"private": True}):
            Mapping.file(reads.fileno(), **way).close()


def test_file_without_write_permission_says_the_way_out(path: Path, fork: Fork) -> None:
    """It cannot be mapped shared for writing, and can be mapped both ways that the note names."""
    path.chmod(0o444)

    def child() -> None:
        become_nobody(path.parent)
        with pytest.raises(PermissionError, match=path.name) as refused:
            Mapping.file(path.name)
        (note,) = refused.value.__notes__
        assert "without write permission, pass writable=False or private=True" in note
        with Mapping.file(path.name, private=True) as private:
            private[0] = 1
        with Mapping.file(path.name, writable=False) as mapping:
            assert mapping[0] == ord("a")

    assert fork(child).wait() == 0
