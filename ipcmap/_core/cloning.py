"""A fork whose child is a sibling: its parent is the caller's parent.

The kernel has it (CLONE_PARENT), the C library does not offer it. What the C library's
own fork does beside the system call, and the caller's, is done here:

* the child's thread id is stored where the C library keeps it (CLONE_CHILD_SETTID, at the
  address that it once gave to the kernel). Robust mutexes go by that number: with the
  parent's in its place a child would take the parent's locks for its own.
* the child has its robust list registered, which the kernel does not inherit: else nobody
  would be told that it died in a section.
* Python's own steps before and after a fork, which os.fork() would make.

On top of that the kernel stores the child's pid where it is told to (CLONE_PARENT_SETTID),
before the child runs: in shared memory it is known whoever dies next.

Handlers of pthread_atfork are not run, and locks of the C library not looked after: the
caller has one thread, so nobody else can hold one, and no handler has anything to do that
was not done when the caller was forked itself.

The GIL is held throughout (PyDLL), and signals are to be blocked: no Python code but this
may run between the steps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

__all__ = ["clone_sibling"]

_CLONE_PARENT, _CLONE_PARENT_SETTID = 0x8000, 0x100000
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x200000, 0x1000000
_SIGCHLD = 17
_PR_GET_TID_ADDRESS = 40
# clone, set_robust_list, get_robust_list; and which argument of clone says where the
# thread id goes.
_NUMBERS = {"x86_64": (56, 273, 274, 3), "aarch64": (220, 99, 100, 4)}

_library = ctypes.PyDLL(None, use_errno=True)
_syscall, _prctl = _library.syscall, _library.prctl
_syscall.restype = ctypes.c_long
_before, _in_parent, _in_child = (
    getattr(ctypes.pythonapi, f"PyOS_{name}")
    for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
)
for _step in (_before, _in_parent, _in_child):
    _step.argtypes, _step.restype = (), None


def clone_sibling(pid_address: int) -> int:
    """Fork, from the only thread of this process; return as os.fork() does.

    Args:
        pid_address: Where the kernel stores the child's pid, in four bytes.

    Raises:
        OSError: As the kernel has it; ``ENOSYS`` on a machine whose numbers are not known.
    """
    if platform.machine() not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"clone is not known for this machine: {platform.machine()}")
    clone, set_robust_list, get_robust_list, place = _NUMBERS[platform.machine()]
    thread_id, robust, length = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    _call(_prctl, _PR_GET_TID_ADDRESS, ctypes.byref(thread_id))
    _call(_syscall, get_robust_list, 0, ctypes.byref(robust), ctypes.byref(length))
    arguments = [ctypes.c_ulong(0)] * 5
    arguments[0] = ctypes.c_ulong(
        _CLONE_PARENT
        | _CLONE_PARENT_SETTID
        | _CLONE_CHILD_CLEARTID
        | _CLONE_CHILD_SETTID
        | _SIGCHLD
    )
    arguments[2] = ctypes.c_ulong(pid_address)
    arguments[place] = ctypes.c_ulong(thread_id.value or 0)
    number = ctypes.c_long(clone)
    register = (ctypes.c_long(set_robust_list), robust, length)
    _before()
    pid: int = _syscall(number, *arguments)
    if pid == 0:
        _syscall(*register)
        _in_child()
        return 0
    reason = ctypes.get_errno()
    _in_parent()
    if pid < 0:
        raise OSError(reason, os.strerror(reason))
    return pid


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments) == -1:
        reason = ctypes.get_errno()
        raise OSError(reason, os.strerror(reason))
