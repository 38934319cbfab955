"""What a block is to give back comes back, whatever a signal handler raises inside of it.

CPython 3.13 looks for signals where a loop goes back to its beginning, and has left that jump out
of what a ``with`` or a ``try`` around it covers (python/cpython#130279): what a handler raises
there goes past them. So a loop lies in a function of its own, whose call is covered.
"""

from __future__ import annotations

import ast
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import executors as work
import ipcmap
from ipcmap import Arena, ProcessPoolExecutor

ROOT = Path(ipcmap.__file__).parent
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)
# No handler runs in the manager's thread; and these loops end in their first round, or only read.
SPARED = {
    "manager_thread.py: _see_to_seats",
    "assignments.py: execute_the_condemned",  # the manager's
    "workforce.py: look_at_the_clock",  # likewise
    "_core/reference_allocator.py: _give_back",
    "_core/reference_ring.py: put",
    "_core/reference_ring.py: get",
    "demo.py: _text_size",
    "demo_crew.py: run",
}
FORGIVING = ("contextlib.suppress(", "self._telling(", "open(")  # which give nothing back


class Raised(BaseException):
    """What the handler raises."""


def loops_in(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the loops that lie in a block, and in no function of their own."""
    rest: list[ast.AST] = list(body)
    while rest:
        node = rest.pop()
        if isinstance(node, SCOPES):
            continue
        if isinstance(node, LOOPS):
            yield node
        rest.extend(ast.iter_child_nodes(node))


def blocks_in(function: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the blocks after which something is given back."""
    for node in ast.walk(function):
        if isinstance(node, ast.With):
            names = [ast.unparse(item.context_expr) for item in node.items]
            if not all(name.startswith(FORGIVING) for name in names):
                yield node.body
        elif isinstance(node, ast.Try):
            caught = [one.type and ast.unparse(one.type) for one in node.handlers]
            if node.finalbody or "BaseException" in caught or None in caught:
                yield node.body


def test_no_loop_lies_in_a_block_that_gives_something_back() -> None:
    """But for those where no handler runs, or the loop does not go round."""
    found = {
        f"{path.relative_to(ROOT)}: {function.name}"
        for path in ROOT.rglob("*.py")
        if path.parent.name != "bench"
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        if any(any(loops_in(body)) for body in blocks_in(function))
    }

    assert found == SPARED


@pytest.fixture
def interrupts() -> Iterator[Callable[[Callable[[], object], float], bool]]:
    """What has a call interrupted within so many seconds; it returns whether it was."""

    def interrupt(number: int, frame: object) -> None:
        raise Raised

    def interrupted(call: Callable[[], object], within: float) -> bool:
        try:
            signal.setitimer(signal.ITIMER_REAL, within)
            try:
                call()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Raised:
            return True
        return False

    before = signal.signal(signal.SIGALRM, interrupt)
    yield interrupted
    signal.signal(signal.SIGALRM, before)


# What a handler breaks off in a finalizer, or as a file is opened, Python tells of by a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_executor_goes_on_where_the_end_of_a_map_is_interrupted(
    engine: str,
    arena: Arena,
    chance: random.Random,
    interrupts: Callable[[Callable[[], object], float], bool],
) -> None:
    """Most of it is a loop over all tasks, for which a lock is held that all threads need."""
    broken_off = 0
    with ProcessPoolExecutor(1, arena=arena) as executor:
        for _ in range(60):
            results = executor.map(work.same, range(5000))
            next(results)
            broken_off += interrupts(results.close, chance.uniform(1e-5, 5e-4))  # type: ignore[attr-defined]
            assert not executor._dispatcher.lock._is_owned()

        assert list(executor.map(work.same, range(100))) == [*range(100)]
    assert broken_off > 10
