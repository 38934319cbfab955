"""Children made by plain fork, reaped with their test, and a seed that a failure shows."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest


class Child:
    """A forked process that runs one function and exits."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def wait(self) -> int:
        """Reap it and return its exit code, negative where a signal ended it."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def has_ended(self) -> bool:
        """Reap it if it has ended; return whether it has."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def kill(self) -> None:
        """End it by SIGKILL and reap it."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


Fork = Callable[..., Child]


def die() -> None:
    """End this process as an out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def chance() -> random.Random:
    """A generator whose seed a failure shows."""
    number = random.randrange(2**32)
    print(f"seed={number}")
    return random.Random(number)


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Run ``function(*args)`` in a child; exit code 0, or 1 with its traceback on stderr."""
    children: list[Child] = []

    def fork(function: Callable[..., object], *args: Any) -> Child:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                function(*args)
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        children.append(Child(pid))
        return children[-1]

    yield fork
    for child in children:
        child.kill()
