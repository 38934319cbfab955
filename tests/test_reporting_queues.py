"""The queues of the context: what cannot be pickled is reported, and not raised."""

from __future__ import annotations

import pickle
import queue
from typing import Any

import pytest

from children import Fork
from ipcmap import Arena, ShutDown
from ipcmap.reporting_queues import ReportingJoinableQueue, ReportingQueue

pytestmark = pytest.mark.usefixtures("ring_type")  # on both engines


@pytest.fixture(params=[ReportingQueue, ReportingJoinableQueue])
def objects(request: pytest.FixtureRequest, arena: Arena) -> ReportingQueue[Any]:
    """A queue of each class, for one object."""
    made: ReportingQueue[Any] = request.param(1, arena=arena)
    return made


def test_what_cannot_be_pickled_is_reported(
    objects: ReportingQueue[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """With its type and its error; it takes no room, and the next is put."""
    objects.put(lambda: None)
    said = capsys.readouterr().err
    assert "type=function" in said
    assert "Traceback" in said
    objects.put(7, block=False)
    assert objects.qsize() == 1
    assert objects.get(timeout=0) == 7


def test_a_subclass_is_told_instead(arena: Arena) -> None:
    """By the method that multiprocessing's queue has for it."""
    told: list[tuple[Exception, Any]] = []

    class Telling(ReportingQueue[Any]):
        def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:  # type: ignore[override]
            told.append((e, obj))

    class Refusing:
        def __reduce__(self) -> Any:
            raise LookupError

    objects, obj = Telling(arena=arena), Refusing()
    objects.put(obj)
    assert [(type(error), one) for error, one in told] == [(LookupError, obj)]


def test_all_else_is_a_queue(objects: ReportingQueue[Any], fork: Fork) -> None:
    """Full, closed and shut down are raised; a copy is one of its kind."""
    copy = pickle.loads(pickle.dumps(objects))
    assert type(copy) is type(objects)
    assert fork(copy.put, [1]).wait() == 0
    with pytest.raises(queue.Full):
        objects.put(2, timeout=0.001)
    with pytest.raises(pickle.PicklingError):
        objects.put_many([make_local()])
    assert objects.get() == [1]
    objects.shutdown()
    with pytest.raises(ShutDown):
        objects.put(3)
    objects.close()
    with pytest.raises(ValueError, match="closed"):
        objects.put(lambda: None)


def make_local() -> Any:
    """Return an object whose class says that it is elsewhere."""
    return type("Local", (), {"__module__": "elsewhere"})()


def test_an_interrupt_is_no_report(objects: ReportingQueue[Any]) -> None:
    """What is no Exception comes out."""

    class Interrupting:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objects.put(Interrupting())
