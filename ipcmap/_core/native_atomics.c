/* native_atomics.c -- Words: 64-bit words of a region that are changed in one step.
 *
 * The C twin of reference_atomics.py, whose header says what is promised. Every word is
 * an aligned u64 in shared memory, changed by whoever likes with sequentially consistent
 * instructions, and by nothing else. A process that is killed has changed it or has not.
 *
 * Numbers wrap around at 64 bits. Results are unsigned, or signed where the object is;
 * arguments may be either, from -2**63 to 2**64 - 1. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native.h"
#include "native_atomics.h"

typedef struct {
    PyObject_HEAD
    Py_buffer memory; /* keeps the region mapped */
    shm_word_t *shm_words;
    Py_ssize_t count;
    bool is_signed;
} words_t;

static PyObject *words_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "signed", NULL};
    PyObject *memory;
    int is_signed = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$p", names, &memory, &is_signed))
        return NULL;
    words_t *self = (words_t *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE)) {
        Py_DECREF(self);
        return NULL;
    }
    if ((uintptr_t)self->memory.buf % 8 || self->memory.len % 8) {
        PyErr_Format(PyExc_ValueError, "words are 8 bytes each, at multiples of 8: nbytes=%zd, address=%p",
                     self->memory.len, self->memory.buf);
        Py_DECREF(self);
        return NULL;
    }
    self->shm_words = self->memory.buf;
    self->count = self->memory.len / 8;
    self->is_signed = is_signed;
    return (PyObject *)self;
}

static void words_dealloc(PyObject *self)
{
    if (((words_t *)self)->memory.obj)
        PyBuffer_Release(&((words_t *)self)->memory);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static bool has(Py_ssize_t nargs, Py_ssize_t expected)
{
    if (nargs != expected)
        PyErr_Format(PyExc_TypeError, "takes %zd arguments: %zd given", expected, nargs);
    return nargs == expected;
}

static shm_word_t *word_of(PyObject *self, PyObject *index)
{
    Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
    if (at == -1 && PyErr_Occurred())
        return NULL;
    if (at < 0 || at >= ((words_t *)self)->count) {
        PyErr_Format(PyExc_IndexError, "no such word: index=%zd, words=%zd", at, ((words_t *)self)->count);
        return NULL;
    }
    return &((words_t *)self)->shm_words[at];
}

/* A number from -2**63 to 2**64 - 1, as the word that it is. */
static bool number_of(PyObject *value, uint64_t *number)
{
    int overflow;
    long long small = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (small == -1 && !overflow && PyErr_Occurred())
        return false;
    *number = (uint64_t)small;
    if (overflow > 0)
        *number = PyLong_AsUnsignedLongLong(value);
    if (overflow < 0 || (overflow > 0 && PyErr_Occurred())) {
        PyErr_Clear();
        PyErr_Format(PyExc_OverflowError, "number must be -2**63 to 2**64 - 1: number=%R", value);
        return false;
    }
    return true;
}

static PyObject *result_of(PyObject *self, uint64_t number)
{
    return ((words_t *)self)->is_signed ? PyLong_FromLongLong((int64_t)number)
                                        : PyLong_FromUnsignedLongLong(number);
}

static PyObject *words_load(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    shm_word_t *word = has(nargs, 1) ? word_of(self, args[0]) : NULL;
    return word ? result_of(self, atomic_load(word)) : NULL;
}

static PyObject *words_store(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t number;
    shm_word_t *word = has(nargs, 2) ? word_of(self, args[0]) : NULL;
    if (!word || !number_of(args[1], &number))
        return NULL;
    atomic_store(word, number);
    Py_RETURN_NONE;
}

static PyObject *words_add(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t number;
    shm_word_t *word = has(nargs, 2) ? word_of(self, args[0]) : NULL;
    if (!word || !number_of(args[1], &number))
        return NULL;
    return result_of(self, atomic_fetch_add(word, number) + number);
}

static PyObject *words_exchange(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t expected, number;
    shm_word_t *word = has(nargs, 3) ? word_of(self, args[0]) : NULL;
    if (!word || !number_of(args[1], &expected) || !number_of(args[2], &number))
        return NULL;
    return PyBool_FromLong(atomic_compare_exchange_strong(word, &expected, number));
}

#define METHOD(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, PyDoc_STR(doc)}

static PyMethodDef methods[] = {
    METHOD("load", words_load, "Return the word of this index."),
    METHOD("store", words_store, "Store a number in it."),
    METHOD("add", words_add, "Add a number to it; return the sum."),
    METHOD("compare_exchange", words_exchange, "Store the second number if the first is there; return whether."),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, PyDoc_STR("64-bit words of a region that are changed in one step.")},
    {Py_tp_new, words_new},
    {Py_tp_dealloc, words_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "ipcmap._core.native.Words",
    .basicsize = sizeof(words_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int native_add_words(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int failed = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return failed;
}
