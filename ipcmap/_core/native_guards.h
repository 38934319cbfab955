/* native_guards.h -- what native.c adds to the module of native_guards.c. */
#ifndef IPCMAP_NATIVE_GUARDS_H
#define IPCMAP_NATIVE_GUARDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int native_add_guards(PyObject *module);
PyObject *native_bind_guards(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *native_slice_guards(PyObject *module, PyObject *seconds);

#endif
