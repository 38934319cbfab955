/* native_atomics.h -- the type of native_atomics.c, for native.c. */
#ifndef IPCMAP_NATIVE_ATOMICS_H
#define IPCMAP_NATIVE_ATOMICS_H

#include <Python.h>

int native_add_words(PyObject *module);

#endif
