"""Agreement: who may do something now, of all threads of all processes of a family.

The calls are those of multiprocessing's classes of the same names. What is added: they
travel by pickle to children that already run, and what a killed process held comes back.
A file for each noun; this one has all the names.
"""

from __future__ import annotations

from ipcmap.barrier import Barrier, BrokenBarrierError
from ipcmap.condition import Condition
from ipcmap.event import Event
from ipcmap.locks import Lock, RLock
from ipcmap.rwlock import RWLock
from ipcmap.semaphores import BoundedSemaphore, Semaphore

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "Condition",
    "Event",
    "Lock",
    "RLock",
    "RWLock",
    "Semaphore",
]
