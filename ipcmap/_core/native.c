/* native.c -- the module ipcmap._core.native: the hot path of the ring, in C11.
 *
 *   RingMethods   what the class of native handles inherits: put, get, put_many, get_many
 *   Core          a ring as one handle has it; the methods find it in the handle's slot
 *   bind          says which class that is, and what does the rest
 *   layout        the offsets of native_layout.h, for a test to compare
 *
 * The methods are those of a base class without a layout of its own, and not of an
 * object in each handle, so that handle and core make no cycle: a ring that nobody
 * else has is freed with its handle, at once. */
#include "native_core.h"

#include <structmember.h>

/* Core */

static void set_side(ring_t *ring, side_t *side, bool produces)
{
    unsigned char *shm = (unsigned char *)ring->shm_words;
    side->shm_other_section = produces ? ring->shm_consumers_section : ring->shm_producers_section;
    side->shm_parking = (sem_t *)(shm + (produces ? PRODUCERS_PARKING : CONSUMERS_PARKING));
    side->other_pos = produces ? READ_POS : WRITE_POS;
    side->other_ended = produces ? ENDED : CLOSED;
    side->other_takeovers = produces ? CONSUMERS_TAKEOVERS : PRODUCERS_TAKEOVERS;
    side->sleepers = produces ? PRODUCERS_SLEEPING : CONSUMERS_SLEEPING;
    atomic_init(&side->worth, 20000);
    atomic_init(&side->waits, 0);
}

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "capacity", "inline_limit", "words", "tag_at", "tag", NULL};
    PyObject *memory, *words;
    unsigned long long capacity, inline_limit, tag_at, tag;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKKOKK", names, &memory, &capacity,
                                     &inline_limit, &words, &tag_at, &tag))
        return NULL;
    core_t *self = (core_t *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(words, &self->words, PyBUF_WRITABLE)) {
        Py_DECREF(self);
        return NULL;
    }
    if (capacity < MIN_CAPACITY || capacity > MAX_CAPACITY || capacity & (capacity - 1) ||
        (uint64_t)self->memory.len < RECORDS + capacity || (uintptr_t)self->memory.buf % 64 ||
        inline_limit > capacity / 2 - HEADER || tag_at >= (uint64_t)self->words.len / 8 ||
        (uintptr_t)self->words.buf % 64) {
        PyErr_Format(PyExc_ValueError,
                     "no ring has such figures: nbytes=%zd, capacity=%llu, inline_limit=%llu",
                     self->memory.len, capacity, inline_limit);
        Py_DECREF(self);
        return NULL;
    }
    self->shm_tag = (shm_word_t *)self->words.buf + tag_at;
    self->tag = tag;
    ring_t *ring = &self->ring;
    unsigned char *shm = self->memory.buf;
    ring->shm_words = (shm_word_t *)self->memory.buf;
    ring->shm_producers_section = (pthread_mutex_t *)(shm + PRODUCERS_SECTION);
    ring->shm_consumers_section = (pthread_mutex_t *)(shm + CONSUMERS_SECTION);
    ring->capacity = capacity;
    ring->mask = capacity - 1;
    ring->window = capacity < WINDOW ? capacity : WINDOW;
    ring->inline_limit = inline_limit;
    set_side(ring, &ring->producers, true);
    set_side(ring, &ring->consumers, false);
    return (PyObject *)self;
}

static void core_dealloc(PyObject *self)
{
    if (((core_t *)self)->memory.obj)
        PyBuffer_Release(&((core_t *)self)->memory);
    if (((core_t *)self)->words.obj)
        PyBuffer_Release(&((core_t *)self)->words);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject native_core_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ipcmap._core.native.Core",
    .tp_doc = PyDoc_STR("A ring as one handle has it."),
    .tp_basicsize = sizeof(core_t),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = core_new,
    .tp_dealloc = core_dealloc,
};

static PyTypeObject ring_methods_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ipcmap._core.native.RingMethods",
    .tp_doc = PyDoc_STR("The methods of a ring that are written in C."),
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_methods = native_ring_methods,
};

/* The module */

static PyObject *bind(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"handle", "slot", "put", "get", "put_many", "put_rest", "get_many", "idle", "call", NULL};
    PyObject *type, *slot, *methods[7];
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OOOOOOO", names, &PyType_Type, &type,
                                     &PyMemberDescr_Type, &slot, &methods[0], &methods[1],
                                     &methods[2], &methods[3], &methods[4], &methods[5],
                                     &methods[6]))
        return NULL;
    PyMemberDef *member = ((PyMemberDescrObject *)slot)->d_member;
    if (native_bound.type || PyDescr_TYPE(slot) != (PyTypeObject *)type || member->type != T_OBJECT_EX) {
        PyErr_SetString(PyExc_ValueError, "a class is bound once, with a slot of its own");
        return NULL;
    }
    native_bound = (struct native_bound){
        .type = (PyTypeObject *)Py_NewRef(type),
        .core_offset = member->offset,
        .put = Py_NewRef(methods[0]),
        .get = Py_NewRef(methods[1]),
        .put_many = Py_NewRef(methods[2]),
        .put_rest = Py_NewRef(methods[3]),
        .get_many = Py_NewRef(methods[4]),
        .idle = Py_NewRef(methods[5]),
        .call = Py_NewRef(methods[6]),
    };
    Py_RETURN_NONE;
}

static int add_layout(PyObject *module)
{
#define ENTRY(name) {#name, name}
    static const struct {
        const char *name;
        uint64_t value;
    } entries[] = {
        ENTRY(OWNER), ENTRY(PRODUCERS_SECTION), ENTRY(CONSUMERS_PARKING), ENTRY(CONSUMERS_SECTION),
        ENTRY(PRODUCERS_PARKING), ENTRY(RECORDS), ENTRY(WRITE_POS), ENTRY(ROOM_END),
        ENTRY(SEEN_READ_POS), ENTRY(CLOSED), ENTRY(PUTS), ENTRY(PRODUCERS_TAKEOVERS),
        ENTRY(LISTENERS), ENTRY(CALLS), ENTRY(SLEEPING), ENTRY(LISTENING),
        ENTRY(CONSUMERS_SLEEPING), ENTRY(READ_POS), ENTRY(SEEN_WRITE_POS), ENTRY(ENDED),
        ENTRY(RETURNED), ENTRY(LEASE_OFFSET), ENTRY(LEASE_GENERATION),
        ENTRY(CONSUMERS_TAKEOVERS), ENTRY(PRODUCERS_SLEEPING), ENTRY(CAPACITY),
        ENTRY(FIRST_RECORD), ENTRY(HEADER), ENTRY(LENGTH_MASK), ENTRY(KIND_BITS), ENTRY(RECORD),
        ENTRY(PADDING), ENTRY(BLOCK), ENTRY(TAKEN), ENTRY(NUMBER_SHIFT), ENTRY(NUMBER_ONE),
        ENTRY(NUMBER_MASK), ENTRY(NUMBER_BITS), ENTRY(MIN_CAPACITY), ENTRY(MAX_CAPACITY),
    };
    PyObject *layout = PyDict_New();
    for (size_t index = 0; layout && index < sizeof entries / sizeof *entries; index++) {
        PyObject *value = PyLong_FromUnsignedLongLong(entries[index].value);
        if (!value || PyDict_SetItemString(layout, entries[index].name, value))
            Py_CLEAR(layout);
        Py_XDECREF(value);
    }
    int failed = !layout || PyModule_AddObjectRef(module, "layout", layout);
    Py_XDECREF(layout);
    return failed ? -1 : 0;
}

static PyMethodDef functions[] = {
    {"bind", (PyCFunction)(void (*)(void))bind, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("Say which class the methods are for, and what does what they leave.")},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ipcmap._core.native",
    .m_doc = PyDoc_STR("The native engine: the hot path of the ring."),
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_native(void)
{
    native_find_clock();
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    if (PyModule_AddType(module, &native_core_type) || PyModule_AddType(module, &ring_methods_type) ||
        add_layout(module)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
