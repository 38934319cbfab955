/* native_cells.h -- an allocator as Python has it: what native.c and native_cells.c share. */
#ifndef IPCMAP_NATIVE_CELLS_H
#define IPCMAP_NATIVE_CELLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native_allocator.h"

typedef struct {
    PyObject_HEAD
    cells_t cells;
    Py_buffer words; /* of the arena; keeps the region mapped */
    PyObject *owner; /* returns this process's slot */
} cells_object_t;

PyObject *native_cell(const uint64_t numbers[4]);
bool native_owner(const cells_object_t *, uint64_t *owner);
bool native_trimmed(cells_object_t *);
bool native_is_of(PyObject *allocator, const void *words);

int native_add_cells(PyObject *module);
PyObject *native_bind_cells(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
