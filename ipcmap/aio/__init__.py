"""What waits in asyncio instead of blocking its loop: faces of rings, queues, locks and such.

A face has the calls that wait, as coroutines, under the names that asyncio gives them;
all else is the object's own. No thread, and no polling: a loop waits for the descriptor
of a :class:`ipcmap.Listener` as it does for a socket.

Who waits in one loop for one thing stands in a line. The first of it tries; what it takes
it returns in the same step, without an ``await`` in between. So a cancel, and a timeout
is one, always finds a task with nothing in hand, and there is nothing to give back. Whoever
leaves the line, served or not, lets the next one try.

The rule is that of all waiting here: announce, look again, sleep. An attempt that finds
nothing arms the listener, in the section that guards what is waited for; from there on
any change makes its descriptor readable. Until it is armed the descriptor is readable, and
the first in the line tries again. Where others were killed between a change and its
telling, a timer does that within a second (``_core/reference_listeners.py``).

A line has one listener, opened when its first task has to wait. It belongs to the faces
that use it and to the tasks in it, and closes with the last of them, loop or no loop. A
child has none of its parent's.
"""

from __future__ import annotations

from ipcmap.aio.connections import Connection
from ipcmap.aio.events import Event
from ipcmap.aio.guards import Lock, Semaphore
from ipcmap.aio.queues import Queue, Ring

__all__ = ["Connection", "Event", "Lock", "Queue", "Ring", "Semaphore"]
