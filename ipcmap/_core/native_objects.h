/* native_objects.h -- plain objects as records, and back; codec.py says which, and how. */
#ifndef IPCMAP_NATIVE_OBJECTS_H
#define IPCMAP_NATIVE_OBJECTS_H

#include "native_core.h"

enum { SHARED_MOST = 64 }; /* texts and containers in one record; a byte names each */

/* A record in the making, and what is in it already. */
typedef struct {
    unsigned char *bytes, few[1024];
    size_t length, room;
    const PyObject *shared[SHARED_MOST];
    unsigned count;
    uint64_t open; /* of these, one bit each: containers that are not complete */
} draft_t;

bool native_draft(draft_t *, PyObject *obj);
void native_drop(draft_t *);
PyObject *native_plain(const unsigned char *record, size_t length);

/* Functions of the module. */
PyObject *native_dump(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *native_load(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* Methods of a ring. */
PyObject *native_put_object(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *native_get_object(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

#endif
