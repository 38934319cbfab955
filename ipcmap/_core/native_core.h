/* native_core.h -- the Python side of the native engine: what native.c and the native_call files share. */
#ifndef IPCMAP_NATIVE_CORE_H
#define IPCMAP_NATIVE_CORE_H

/* The stable ABI from here on (pyproject.toml defines Py_LIMITED_API): one binary for all. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native.h"
#include "native_cells.h"

/* A ring as a handle has it, in its slot `_native`. */
typedef struct {
    PyObject_HEAD
    ring_t ring;
    Py_buffer memory, words; /* of the ring, and of its arena; keep the region mapped */
    const shm_word_t *shm_tag; /* of the ring's block */
    uint64_t tag;              /* what it is, but for the owner, while the handle is good */
    cells_object_t *allocator; /* of the arena; NULL = not of this engine */
} core_t;

extern PyTypeObject *native_core_type;
extern PyMethodDef native_ring_methods[];

Py_ssize_t native_find_slot(PyObject *type, PyObject *slot);

#ifdef IPCMAP_SYNC_POINTS
int native_add_sync_points(PyObject *module);
#endif

/* What native.bind() is given: the class, where its handles keep the core, and the
 * methods of the reference engine that do what is unusual, and who says whether to
 * spin. Bound once, so that no error
 * is judged by an import, which may fail, or run a signal handler. */
extern struct native_bound {
    PyTypeObject *type;
    Py_ssize_t core_offset;
    Py_ssize_t bytes_offset; /* of the bytes in a bytes object */
    PyObject *put, *get, *put_many, *put_rest, *get_many, *idle, *free, *may_spin, *call, *return_all;
    PyObject *for_next_call; /* a tuple of errors that say why nothing more was taken */
} native_bound;

/* PyBytes_AsString, which the stable ABI has as a function. */
static inline unsigned char *bytes_of(PyObject *record)
{
    return (unsigned char *)record + native_bound.bytes_offset;
}

#endif
