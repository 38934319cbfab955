"""The ends of a pipe, closed with their test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipcmap import Connection, Pipe

Ends = tuple[Connection, Connection]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The two ends of a pipe."""
    first, second = Pipe()
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def one_way() -> Iterator[Ends]:
    """Who receives, and who sends."""
    reader, writer = Pipe(duplex=False)
    yield reader, writer
    reader.close()
    writer.close()
