"""Parent/child IPC over one shared mapping, for Linux.

General layout: bare names here are the interface. ``_core`` is the engine;
the other files build on it floor by floor (see the design notes in the docs).
"""

import sys

# Before any other import: the floors below fail elsewhere with errors that help nobody.
if sys.platform != "linux" or sys.maxsize < 2**63 - 1:
    raise ImportError(
        "ipcmap runs on 64-bit Linux only: it needs fork, futexes and a large address space; "
        f"platform={sys.platform}, pointer={sys.maxsize.bit_length() + 1} bits"
    )

from ipcmap._core import backend, engines
from ipcmap.arena import Arena, ArenaStatistics, ClassStatistics, default_arena
from ipcmap.block import Block
from ipcmap.connection import Connection, Pipe
from ipcmap.context import (
    Manager,
    active_children,
    cpu_count,
    current_process,
    freeze_support,
    get_context,
    get_logger,
    get_start_method,
    log_to_stderr,
    parent_process,
)
from ipcmap.counter import Counter
from ipcmap.errors import (
    ArenaFull,
    BrokenError,
    BusyError,
    ClosedError,
    CorruptError,
    FamilyFull,
    ForeignNamespace,
    IpcmapError,
    NotInherited,
    NotOwned,
    RecordTooLarge,
    StaleHandle,
    WorkerDied,
)
from ipcmap.executor import ProcessPoolExecutor
from ipcmap.executor_statistics import ExecutorStatistics, ExecutorWorker
from ipcmap.family import ExitRecord
from ipcmap.forked_map import fork_map
from ipcmap.integrations.cluster import ClusterExecutor, cluster_executor
from ipcmap.joinable_queue import JoinableQueue
from ipcmap.listener import Listener
from ipcmap.loans import Attachment, Claim, Lease
from ipcmap.mapping import PAGE_SIZE, Mapping
from ipcmap.objects import ShutDown, SimpleQueue
from ipcmap.pool import Pool
from ipcmap.pool_results import AsyncResult, MapResult
from ipcmap.pool_streams import IMapIterator
from ipcmap.process import Process
from ipcmap.queues import Queue
from ipcmap.ring import Ring, RingStatistics
from ipcmap.stop_flag import stopping
from ipcmap.supervisor import Supervisor, SupervisorStatistics
from ipcmap.sync import (
    Barrier,
    BoundedSemaphore,
    BrokenBarrierError,
    Condition,
    Event,
    Lock,
    RLock,
    RWLock,
    Semaphore,
)
from ipcmap.tasks import TaskName
from ipcmap.values import Array, RawArray, RawValue, Value
from ipcmap.worker_place import WorkerStatistics
from ipcmap.zygote import prefork

if "native" in engines:
    import ipcmap.native_locks  # what these classes make in an arena of that engine
    import ipcmap.native_ring  # noqa: F401

__all__ = [
    "PAGE_SIZE",
    "Arena",
    "ArenaFull",
    "ArenaStatistics",
    "Array",
    "AsyncResult",
    "Attachment",
    "Barrier",
    "Block",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "BrokenError",
    "BusyError",
    "Claim",
    "ClassStatistics",
    "ClosedError",
    "ClusterExecutor",
    "Condition",
    "Connection",
    "CorruptError",
    "Counter",
    "Event",
    "ExecutorStatistics",
    "ExecutorWorker",
    "ExitRecord",
    "FamilyFull",
    "ForeignNamespace",
    "IMapIterator",
    "IpcmapError",
    "JoinableQueue",
    "Lease",
    "Listener",
    "Lock",
    "Manager",
    "MapResult",
    "Mapping",
    "NotInherited",
    "NotOwned",
    "Pipe",
    "Pool",
    "Process",
    "ProcessPoolExecutor",
    "Queue",
    "RLock",
    "RWLock",
    "RawArray",
    "RawValue",
    "RecordTooLarge",
    "Ring",
    "RingStatistics",
    "Semaphore",
    "ShutDown",
    "SimpleQueue",
    "StaleHandle",
    "Supervisor",
    "SupervisorStatistics",
    "TaskName",
    "Value",
    "WorkerDied",
    "WorkerStatistics",
    "__version__",
    "active_children",
    "backend",
    "cluster_executor",
    "cpu_count",
    "current_process",
    "default_arena",
    "fork_map",
    "freeze_support",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "prefork",
    "stopping",
]

__version__ = "0.1.0"
