"""What a child is born with: its signals, its streams, its random numbers, room for last words."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy
import pytest

from children import Fork
from ipcmap import Arena, Mapping, Process, default_arena, last_words
from ipcmap._core import libc
from ipcmap.last_words import LastWords


@pytest.fixture
def result() -> Iterator[Mapping]:
    """A page for a child to write into."""
    mapping = Mapping.anonymous(4096)
    yield mapping
    mapping.close()


def exitcode(target: Callable[..., object], *args: Any) -> int | None:
    """Run a function in a child and return its exit code."""
    process = Process(target=target, args=args)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return code


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Have SIGINT heeded, as it is not in a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_oneself() -> None:
    """Do what Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


# Signals


def test_a_child_does_nothing_at_ctrl_c() -> None:
    """It neither ends nor raises."""

    def be_interrupted() -> None:
        interrupt_oneself()
        os._exit(5)

    assert exitcode(be_interrupted) == 5


def test_a_program_that_a_child_starts_ends_at_ctrl_c() -> None:
    """A handler is not inherited through exec, as SIG_IGN would be."""

    def start_program() -> None:
        os._exit(-subprocess.call(["sh", "-c", "kill -INT $$; exit 0"]))

    assert exitcode(start_program) == signal.SIGINT


def test_ctrl_c_that_was_ignored_is_still_ignored() -> None:
    """As under nohup, where it is meant for all that is started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = exitcode(
            lambda: os._exit(subprocess.call(["sh", "-c", "kill -INT $$; exit 6"]) % 256)
        )
    finally:
        signal.signal(signal.SIGINT, before)

    assert code == 6


def test_ctrl_c_in_the_moment_of_the_fork_is_for_the_parent(fork: Fork) -> None:
    """The child has no handler yet, and the parent's would raise in it, up the parent's stack."""

    def be_parent() -> None:
        os.register_at_fork(after_in_child=interrupt_oneself, after_in_parent=interrupt_oneself)
        process = Process(target=os._exit, args=(7,))
        with pytest.raises(KeyboardInterrupt):
            process.start()
        process.join()
        assert process.exitcode == 7

    assert fork(be_parent).wait() == 0


def test_a_handler_of_the_parent_that_exits_ends_the_child_as_an_exit(fork: Fork) -> None:
    """It may run as soon as the child does."""

    def be_parent() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
        process = Process(target=signal.pause)
        process.start()
        process.join()
        assert process.exit_record
        assert (process.exitcode, process.exit_record.exception) == (9, None)

    assert fork(be_parent).wait() == 0


def test_the_child_has_the_signal_mask_of_its_parent() -> None:
    """What is blocked during the fork is let in again, and what was blocked before is not."""

    def look() -> None:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR1}

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        code = exitcode(look)
        after = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    assert (code, after) == (0, {signal.SIGUSR1})


def test_a_signal_of_the_child_does_not_wake_the_event_loop_of_the_parent() -> None:
    """Its loop would take it for a signal of its own."""
    loop, waker = socket.socketpair()
    for end in (loop, waker):
        end.setblocking(False)
    before = signal.set_wakeup_fd(waker.fileno())
    try:
        code = exitcode(interrupt_oneself)
    finally:
        signal.set_wakeup_fd(before)

    assert code == 0
    with pytest.raises(BlockingIOError):
        loop.recv(1)
    loop.close()
    waker.close()


def test_a_child_that_cannot_be_prepared_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where its thread that watches the parent cannot start; the target does not run."""

    def no_thread() -> NoReturn:
        raise RuntimeError("can't start new thread")

    def no_prctl(*_: int) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(libc, "prctl", no_prctl)
    monkeypatch.setattr(threading.Thread, "start", lambda _: no_thread())
    process = Process(target=os._exit, args=(10,))
    process.start()
    process.join()

    assert process.exit_record
    assert process.exit_record.exitcode == 1
    assert process.exit_record.exception == "RuntimeError: can't start new thread"
    assert "can't start new thread" in capfd.readouterr().err


# Streams


def test_what_was_printed_is_there_once() -> None:
    """Neither does the child print again what the parent had, nor is its own left unsaid."""
    program = """
        import sys
        from ipcmap import Process
        print("parent", end=" ")
        print("parent", end=" ", file=sys.stderr)
        child = Process(target=print, args=("child",), kwargs={"end": "."})
        child.start()
        child.join()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)

    assert (run.stdout, run.stderr) == ("parent child.", "parent ")


# Random numbers


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.getrandbits(64),
        lambda: secrets.randbits(64),
        lambda: int(numpy.random.randint(2**62)),
    ],
    ids=["random", "secrets", "numpy"],
)
def test_two_children_draw_different_numbers(draw: Callable[[], int], result: Mapping) -> None:
    """Also where the parent was seeded, and whatever the parent draws."""
    view = result.view().cast("Q")

    def note(place: int) -> None:
        view[place] = draw()

    random.seed(1)
    numpy.random.seed(1)
    for place in range(2):
        assert exitcode(note, place) == 0

    assert len({view[0], view[1], draw()}) == 3
    view.release()


def test_a_generator_that_another_thread_holds_does_not_hold_up_the_child() -> None:
    """Nobody will let it go in the child, which starts all the same."""
    generator: Any = numpy.random
    with generator.get_bit_generator().lock:
        code = exitcode(os._exit, 8)

    assert code == 8


# Last words


@pytest.fixture
def words() -> Iterator[LastWords]:
    """The room for one child's."""
    room = LastWords()
    yield room
    room.take()


def an_error(*args: object) -> ValueError:
    """Return one that was raised, and caught two frames above."""

    def fail() -> NoReturn:
        raise ValueError(*args)

    try:
        fail()
    except ValueError as error:
        return error


def test_blocks_come_back_however_a_child_ends() -> None:
    """One is taken for each child, and freed when it is reaped."""
    before = default_arena().statistics().blocks
    process = Process(target=signal.pause)
    process.start()
    assert default_arena().statistics().blocks == before + 1
    process.kill()
    process.join()

    assert default_arena().statistics().blocks == before


def test_of_long_texts_the_message_keeps_its_beginning_and_the_traceback_its_end(
    words: LastWords,
) -> None:
    """Both say that they were cut, in the middle of a character too."""
    words.write(an_error("é" * 50_000 + "!"))
    exception, text = words.take()

    assert exception
    assert exception.startswith("ValueError: ééé")
    assert exception.endswith("…")
    assert text
    assert text.startswith("…")
    assert text.endswith("éé!\n")
    assert 12_000 < len((exception + text).encode()) < 16_384


def test_a_text_that_utf8_cannot_hold_is_escaped(words: LastWords) -> None:
    """As a file name that is not text may be."""
    words.write(an_error("\udcff"))

    assert words.take()[0] == "ValueError: \\udcff"


def test_an_exception_that_cannot_be_told_leaves_the_end_as_it_is() -> None:
    """The exit code is that of an exception."""

    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> NoReturn:
        raise Silent

    assert exitcode(fail) == 1


@pytest.mark.parametrize("full", [True, False])
def test_a_process_starts_where_there_is_no_room_for_last_words(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record has no text then, where the arena is full and where there is none."""

    def no_arena() -> NoReturn:
        raise OSError

    arena = Arena(0)
    monkeypatch.setattr(last_words, "default_arena", (lambda: arena) if full else no_arena)
    process = Process(target=sys.exit)
    failing = Process(target=an_error().with_traceback)  # without an argument: TypeError
    for one in (process, failing):
        one.start()
        one.join()

    assert process.exitcode == 0
    assert failing.exit_record
    assert (failing.exitcode, failing.exit_record.exception) == (1, None)
    arena.close()


@pytest.mark.parametrize("header", [(1 << 63, 1), (16_369, 1), (5, 6), (0, 5)])
def test_lengths_that_make_no_sense_are_no_last_words(
    words: LastWords, header: tuple[int, int]
) -> None:
    """They are input: what they would reach beyond the block is not read."""
    words.write(an_error("a text"))
    assert words._block
    with words._block.view() as view:
        view[:16] = struct.pack("=QQ", *header)

    assert words.take() == (None, None)


def test_a_child_that_is_killed_while_it_writes_left_no_word(
    words: LastWords, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length is stored last: until then there is none."""
    assert words._block
    block = words._block

    class Words:
        """Stores all but the first word, at which it dies."""

        def __setitem__(self, place: int, value: int) -> None:
            if place == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            block.view()[:16].cast("Q")[place] = value

    class View:
        """The block's bytes, but for its header."""

        def __getitem__(self, part: slice) -> Any:
            return self if part.start is None else block.view()[part]

        def cast(self, _: str) -> Words:
            return Words()

    class Broken:
        """A block whose writer dies at the last store."""

        def view(self) -> View:
            return View()

    def write() -> None:
        monkeypatch.setattr(words, "_block", Broken())
        words.write(an_error("a text"))

    assert fork(write).wait() == -signal.SIGKILL
    assert b"a text" in bytes(block.view())
    assert words.take() == (None, None)
