/* native_objects.c -- plain objects as records, and back: the C twin of what codec.py has of them.
 *
 * A record is written while the GIL is held and no code of Python's runs: all types
 * are builtins, exactly. So nothing changes meanwhile. What is not plain, or too large,
 * or nested too deep, or in a cycle, is left to pickle, which has the same result.
 *
 * A record that is read may say anything. Each length is checked against the bytes that are
 * left before it is used, each item takes one byte or more, so there are no more of them
 * than bytes, and the depth is bounded. What is named by number is kept by a reference of
 * our own. What makes no sense is left to codec.py, which says what is wrong. */
#include "native_objects.h"

#include "native_call.h"

#include <string.h>

enum {
    DEEPEST = 16,      /* containers within containers */
    LONGEST = 1 << 16, /* bytes of a record; what is longer takes a block in any case */
};

/* Writing */

static unsigned char *extend(draft_t *draft, size_t nbytes)
{
    if (UNLIKELY(draft->room - draft->length < nbytes)) {
        size_t room = draft->room;
        while (room - draft->length < nbytes)
            if ((room *= 2) > LONGEST || nbytes > LONGEST)
                return NULL;
        unsigned char *bytes = PyMem_Malloc(room);
        if (!bytes)
            return NULL;
        memcpy(bytes, draft->bytes, draft->length);
        native_drop(draft);
        draft->bytes = bytes;
        draft->room = room;
    }
    unsigned char *end = draft->bytes + draft->length;
    draft->length += nbytes;
    return end;
}

/* Give back what a draft has taken. */
void native_drop(draft_t *draft)
{
    if (draft->bytes != draft->few)
        PyMem_Free(draft->bytes);
    draft->bytes = draft->few;
}

static bool write_word(draft_t *draft, char kind, const void *word)
{
    unsigned char *to = extend(draft, 9);
    if (!to)
        return false;
    *to = (unsigned char)kind;
    memcpy(to + 1, word, 8);
    return true;
}

static bool write_count(draft_t *draft, char kind, Py_ssize_t count)
{
    uint32_t number = (uint32_t)count;
    unsigned char *to = count <= LONGEST ? extend(draft, 5) : NULL;
    if (!to)
        return false;
    *to = (unsigned char)kind;
    memcpy(to + 1, &number, 4);
    return true;
}

static bool write_bytes(draft_t *draft, const char *bytes, Py_ssize_t nbytes)
{
    unsigned char *to = extend(draft, (size_t)nbytes);
    if (to)
        memcpy(to, bytes, (size_t)nbytes);
    return to;
}

/* Write what has no parts that it shares with others. -1 = it is not one of these. */
static int write_scalar(draft_t *draft, PyObject *obj)
{
    if (PyLong_CheckExact(obj)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(obj, &overflow);
        return !overflow && write_word(draft, 'i', &number);
    }
    if (PyFloat_CheckExact(obj)) {
        double number = PyFloat_AsDouble(obj);
        return write_word(draft, 'f', &number);
    }
    if (obj == Py_None || obj == Py_True || obj == Py_False)
        return write_bytes(draft, obj == Py_None ? "N" : obj == Py_True ? "T" : "F", 1);
    return -1;
}

/* Find the bytes of a text or of bytes; false = it is none, too long, or has no UTF-8. */
static bool text_of(PyObject *obj, char *kind, const char **bytes, Py_ssize_t *nbytes)
{
    if (PyUnicode_CheckExact(obj)) {
        *kind = 's';
        if (PyUnicode_GetLength(obj) > LONGEST)
            return false; /* its UTF-8 would be kept with it */
        *bytes = PyUnicode_AsUTF8AndSize(obj, nbytes);
        if (!*bytes)
            PyErr_Clear();
        return *bytes;
    }
    if (!PyBytes_CheckExact(obj))
        return false;
    *kind = 'b';
    *bytes = PyBytes_AsString(obj);
    *nbytes = PyBytes_Size(obj);
    return true;
}

static bool write_item(draft_t *, PyObject *obj, int depth);

static bool write_parts(draft_t *draft, PyObject *obj, int depth)
{
    Py_ssize_t count, place = 0;
    PyObject *key, *value;
    if (PyTuple_CheckExact(obj)) {
        count = PyTuple_Size(obj);
        if (!write_count(draft, 't', count))
            return false;
        for (; place < count; place++)
            if (!write_item(draft, PyTuple_GetItem(obj, place), depth))
                return false;
        return true;
    }
    if (PyList_CheckExact(obj)) {
        count = PyList_Size(obj);
        if (!write_count(draft, 'l', count))
            return false;
        for (; place < count; place++)
            if (!write_item(draft, PyList_GetItem(obj, place), depth))
                return false;
        return true;
    }
    if (!PyDict_CheckExact(obj) || !write_count(draft, 'd', PyDict_Size(obj)))
        return false;
    while (PyDict_Next(obj, &place, &key, &value))
        if (!write_item(draft, key, depth) || !write_item(draft, value, depth))
            return false;
    return true;
}

static bool write_item(draft_t *draft, PyObject *obj, int depth)
{
    char kind;
    const char *bytes;
    Py_ssize_t nbytes;
    int written = write_scalar(draft, obj);
    if (written >= 0)
        return written;
    for (unsigned number = 0; number < draft->count; number++) {
        if (draft->shared[number] != obj)
            continue;
        const char reference[2] = {'r', (char)number};
        return !(draft->open >> number & 1) && write_bytes(draft, reference, 2);
    }
    if (draft->count == SHARED_MOST || depth == DEEPEST)
        return false;
    unsigned number = draft->count++;
    draft->shared[number] = obj;
    if (text_of(obj, &kind, &bytes, &nbytes))
        return write_count(draft, kind, nbytes) && write_bytes(draft, bytes, nbytes);
    draft->open |= UINT64_C(1) << number;
    bool done = write_parts(draft, obj, depth + 1);
    draft->open &= ~(UINT64_C(1) << number);
    return done;
}

/* Write the record of an object, to be dropped; false = there is nothing to drop, and it is
 * pickle's. No exception is set. */
bool native_draft(draft_t *draft, PyObject *obj)
{
    char kind;
    const char *bytes;
    Py_ssize_t nbytes;
    draft->bytes = draft->few;
    draft->length = draft->count = 0;
    draft->room = sizeof draft->few;
    draft->open = 0;
    bool written = text_of(obj, &kind, &bytes, &nbytes)
        ? write_bytes(draft, &kind, 1) && write_bytes(draft, bytes, nbytes)
        : write_item(draft, obj, 0);
    if (!written)
        native_drop(draft);
    return written;
}

/* Reading */

typedef struct {
    const unsigned char *at, *end;
    PyObject *shared[SHARED_MOST]; /* NULL = not complete */
    unsigned count;
} reading_t;

static size_t left(const reading_t *reading)
{
    return (size_t)(reading->end - reading->at);
}

static PyObject *read_word(reading_t *reading, char kind)
{
    long long number;
    double real;
    if (left(reading) < 8)
        return NULL;
    memcpy(kind == 'i' ? (void *)&number : (void *)&real, reading->at, 8);
    reading->at += 8;
    return kind == 'i' ? PyLong_FromLongLong(number) : PyFloat_FromDouble(real);
}

static PyObject *read_text(reading_t *reading, char kind, size_t nbytes, const char *errors)
{
    const char *bytes = (const char *)reading->at;
    reading->at += nbytes;
    if (kind == 's')
        return PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)nbytes, errors);
    return PyBytes_FromStringAndSize(bytes, (Py_ssize_t)nbytes);
}

static PyObject *read_item(reading_t *, int depth);

static bool add_item(reading_t *reading, PyObject *parent, char kind, uint32_t place, int depth)
{
    PyObject *item = read_item(reading, depth), *value = NULL;
    if (!item)
        return false;
    if (kind == 't')
        return !PyTuple_SetItem(parent, (Py_ssize_t)place, item);
    if (kind == 'l')
        return !PyList_SetItem(parent, (Py_ssize_t)place, item);
    bool added = (value = read_item(reading, depth)) && !PyDict_SetItem(parent, item, value);
    Py_DECREF(item);
    Py_XDECREF(value);
    return added;
}

static PyObject *read_shared(reading_t *reading, char kind, int depth)
{
    uint32_t count;
    unsigned number = reading->count;
    if (number == SHARED_MOST || depth == DEEPEST || left(reading) < 4)
        return NULL;
    memcpy(&count, reading->at, 4);
    reading->at += 4;
    if (count > left(reading))
        return NULL;
    reading->shared[reading->count++] = NULL;
    PyObject *obj;
    if (kind == 's' || kind == 'b') {
        obj = read_text(reading, kind, count, NULL);
    } else {
        obj = kind == 't' ? PyTuple_New((Py_ssize_t)count) : kind == 'l' ? PyList_New((Py_ssize_t)count) : PyDict_New();
        for (uint32_t place = 0; obj && place < count; place++)
            if (!add_item(reading, obj, kind, place, depth + 1))
                Py_CLEAR(obj);
    }
    if (obj)
        reading->shared[number] = Py_NewRef(obj);
    return obj;
}

/* Read one item; NULL = it makes no sense, or an exception is set. */
static PyObject *read_item(reading_t *reading, int depth)
{
    if (!left(reading))
        return NULL;
    char kind = (char)*reading->at++;
    switch (kind) {
    case 'i':
    case 'f':
        return read_word(reading, kind);
    case 'N':
        return Py_NewRef(Py_None);
    case 'T':
        return Py_NewRef(Py_True);
    case 'F':
        return Py_NewRef(Py_False);
    case 's':
    case 'b':
    case 't':
    case 'l':
    case 'd':
        return read_shared(reading, kind, depth);
    case 'r':
        if (left(reading) && *reading->at < reading->count && reading->shared[*reading->at])
            return Py_NewRef(reading->shared[*reading->at++]);
    }
    return NULL;
}

/* Return the object of a record; NULL, without an exception = codec.py is to read it. */
PyObject *native_plain(const unsigned char *record, size_t length)
{
    reading_t reading = {.at = record, .end = record + length, .count = 0};
    PyObject *obj;
    if (length && (*record == 's' || *record == 'b')) {
        reading.at++;
        obj = read_text(&reading, (char)*record, length - 1, "surrogatepass");
    } else {
        obj = read_item(&reading, 0);
    }
    if (obj && reading.at != reading.end)
        Py_CLEAR(obj);
    while (reading.count)
        Py_XDECREF(reading.shared[--reading.count]);
    if (!obj)
        PyErr_Clear();
    return obj;
}

/* Called by queues */

static PyObject *refuse(const char *name, Py_ssize_t nargs)
{
    return PyErr_Format(PyExc_TypeError, "%s() takes other arguments: %zd given", name, nargs);
}

PyObject *native_dump(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    draft_t draft;
    (void)module;
    if (nargs != 2)
        return refuse("dump", nargs);
    if (!native_draft(&draft, args[1]))
        return PyObject_CallFunctionObjArgs(args[0], args[1], NULL);
    PyObject *record = PyBytes_FromStringAndSize((char *)draft.bytes, (Py_ssize_t)draft.length);
    native_drop(&draft);
    return record;
}

static PyObject *load(PyObject *loads, PyObject *record)
{
    PyObject *obj = PyBytes_CheckExact(record)
        ? native_plain((unsigned char *)PyBytes_AsString(record), (size_t)PyBytes_Size(record))
        : NULL;
    return obj ? obj : PyObject_CallFunctionObjArgs(loads, record, NULL);
}

PyObject *native_load(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    return nargs == 2 ? load(args[0], args[1]) : refuse("load", nargs);
}

/* put_object(dumps, obj, timeout): the record of an object, by ``dumps`` if it is not plain;
 * one in parts is returned, and not put. */
PyObject *native_put_object(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    draft_t draft;
    if (nargs != 3)
        return refuse("put_object", nargs);
    if (native_draft(&draft, args[1])) {
        PyObject *result = native_put_bytes(self, draft.bytes, draft.length, args[2]);
        native_drop(&draft);
        return result;
    }
    PyObject *record = PyObject_CallFunctionObjArgs(args[0], args[1], NULL);
    if (!record || !PyBytes_CheckExact(record))
        return record;
    PyObject *const arguments[2] = {record, args[2]};
    PyObject *result = native_put(self, arguments, 2, NULL);
    Py_DECREF(record);
    return result;
}

/* get_object(loads, timeout): the object of the oldest record, by ``loads`` if it is not plain. */
PyObject *native_get_object(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2)
        return refuse("get_object", nargs);
    PyObject *record = native_get(self, args + 1, 1, NULL);
    PyObject *obj = record ? load(args[0], record) : NULL;
    Py_XDECREF(record);
    return obj;
}
