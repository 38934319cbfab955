/* native.c -- the module ipcmap._core.native: the hot paths of ring, allocator and locks, in C11.
 *
 *   RingMethods   what the class of native handles inherits: put, get, put_many, get_many
 *   Core          a ring as one handle has it; the methods find it in the handle's slot
 *   bind          says which class that is, and what does the rest
 *   Cells         what the class of native allocators inherits (native_cells.c)
 *   bind_cells    says what does the rest there
 *   GuardMethods  what the classes of native locks and semaphores inherit (native_guards.c)
 *   Guard         one of these as one handle has it
 *   bind_guards   says which class that is, and what does the rest
 *   dump, load    plain objects as records, and back (native_objects.c)
 *   Words         atomic cells (native_atomics.c)
 *   layout        the offsets of native_layout.h, for a test to compare
 *
 * The methods are those of a base class without a layout of its own, and not of an
 * object in each handle, so that handle and core make no cycle: a ring that nobody
 * else has is freed with its handle, at once. */
#include "native_atomics.h"
#include "native_cells.h"
#include "native_core.h"
#include "native_guards.h"
#include "native_objects.h"

PyTypeObject *native_core_type;

/* Core */

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "capacity", "inline_limit", "words", "tag_at", "tag", "allocator", NULL};
    PyObject *memory, *words, *allocator;
    unsigned long long capacity, inline_limit, tag_at, tag;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKKOKKO", names, &memory, &capacity, &inline_limit,
                                     &words, &tag_at, &tag, &allocator))
        return NULL;
    core_t *self = (core_t *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(words, &self->words, PyBUF_WRITABLE)) {
        Py_DECREF(self);
        return NULL;
    }
    if (capacity < MIN_CAPACITY || capacity > MAX_CAPACITY || capacity & (capacity - 1) ||
        (uint64_t)self->memory.len < RECORDS + capacity || (uintptr_t)self->memory.buf % 64 ||
        inline_limit > capacity / 2 - HEADER || 
        (allocator != Py_None && !native_is_of(allocator, self->words.buf)) || tag_at >= (uint64_t)self->words.len / 8 ||
        (uintptr_t)self->words.buf % 64) {
        PyErr_Format(PyExc_ValueError,
                     "no ring has such figures: nbytes=%zd, capacity=%llu, inline_limit=%llu",
                     self->memory.len, capacity, inline_limit);
        Py_DECREF(self);
        return NULL;
    }
    self->shm_tag = (shm_word_t *)self->words.buf + tag_at;
    self->tag = tag;
    self->allocator = allocator == Py_None ? NULL : (cells_object_t *)Py_NewRef(allocator);
    ring_open(&self->ring, self->memory.buf, capacity, inline_limit);
    return (PyObject *)self;
}

static void core_dealloc(PyObject *self)
{
    if (((core_t *)self)->memory.obj)
        PyBuffer_Release(&((core_t *)self)->memory);
    if (((core_t *)self)->words.obj)
        PyBuffer_Release(&((core_t *)self)->words);
    Py_XDECREF((PyObject *)((core_t *)self)->allocator);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *core_patience(PyObject *self, void *closure)
{
    const ring_t *ring = &((core_t *)self)->ring;
    (void)closure;
    return Py_BuildValue("LL", (long long)atomic_load(&ring->producers.patience.worth),
                         (long long)atomic_load(&ring->consumers.patience.worth));
}

static PyGetSetDef core_facts[] = {
    {"patience", core_patience, NULL,
     PyDoc_STR("Nanoseconds for which producers and consumers look on before they sleep."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot core_slots[] = {
    {Py_tp_doc, PyDoc_STR("A ring as one handle has it.")},
    {Py_tp_new, core_new},
    {Py_tp_getset, core_facts},
    {Py_tp_dealloc, core_dealloc},
    {0, NULL},
};

static PyType_Spec core_spec = {
    .name = "ipcmap._core.native.Core",
    .basicsize = sizeof(core_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = core_slots,
};

static PyType_Slot ring_methods_slots[] = {
    {Py_tp_doc, PyDoc_STR("The methods of a ring that are written in C.")},
    {Py_tp_methods, native_ring_methods},
    {0, NULL},
};

static PyType_Spec ring_methods_spec = {
    .name = "ipcmap._core.native.RingMethods",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_methods_slots,
};

/* The module */

static Py_ssize_t basicsize_of(PyObject *type)
{
    PyObject *number = type ? PyObject_GetAttrString(type, "__basicsize__") : NULL;
    Py_ssize_t size = number ? PyLong_AsSsize_t(number) : -1;
    Py_XDECREF(number);
    return size;
}

/* Return where the one slot of a class lies in its handles, or -1. The stable ABI does not
 * say. It is behind all that the base has; a handle that is never used shows that it is so. */
Py_ssize_t native_find_slot(PyObject *type, PyObject *slot)
{
    PyObject *base = PyObject_GetAttrString(type, "__base__");
    Py_ssize_t offset = basicsize_of(base);
    bool one = offset >= 0 && basicsize_of(type) == offset + (Py_ssize_t)sizeof(PyObject *);
    Py_XDECREF(base);
    PyObject *handle = one ? PyType_GenericAlloc((PyTypeObject *)type, 0) : NULL;
    PyObject *set = handle ? PyObject_CallMethod(slot, "__set__", "OO", handle, handle) : NULL;
    bool right = set && *(PyObject **)((char *)handle + offset) == handle;
    PyObject *cleared = set ? PyObject_CallMethod(slot, "__delete__", "O", handle) : NULL;
    Py_XDECREF(cleared);
    Py_XDECREF(set);
    Py_XDECREF(handle);
    return right ? offset : -1;
}

static PyObject *bind(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"handle", "slot", "put", "get", "put_many", "put_rest", "get_many", "idle", "free", "may_spin", "call", "return_all", "for_next_call", NULL};
    PyObject *type, *slot, *methods[10], *errors;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOOOOOOOOOO!", names, &PyType_Type, &type, &slot,
                                     &methods[0], &methods[1], &methods[2], &methods[3],
                                     &methods[4], &methods[5], &methods[6], &methods[7],
                                     &methods[8], &methods[9], &PyTuple_Type, &errors))
        return NULL;
    Py_ssize_t offset = native_bound.type ? -1 : native_find_slot(type, slot);
    PyObject *record = PyBytes_FromStringAndSize(NULL, 1);
    if (!record)
        return NULL;
    Py_ssize_t bytes_offset = PyBytes_AsString(record) - (char *)record;
    Py_DECREF(record);
    if (offset < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a class is bound once, with a slot of its own, its only one");
        return NULL;
    }
    native_bound = (struct native_bound){
        .type = (PyTypeObject *)Py_NewRef(type),
        .core_offset = offset,
        .bytes_offset = bytes_offset,
        .put = Py_NewRef(methods[0]),
        .get = Py_NewRef(methods[1]),
        .put_many = Py_NewRef(methods[2]),
        .put_rest = Py_NewRef(methods[3]),
        .get_many = Py_NewRef(methods[4]),
        .idle = Py_NewRef(methods[5]),
        .free = Py_NewRef(methods[6]),
        .may_spin = Py_NewRef(methods[7]),
        .call = Py_NewRef(methods[8]),
        .return_all = Py_NewRef(methods[9]),
        .for_next_call = Py_NewRef(errors),
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
        ENTRY(ALLOCATOR_SECTION), ENTRY(JOURNAL), ENTRY(BYTES_IN_USE), ENTRY(SWEPT_AT),
        ENTRY(WARM_BYTES), ENTRY(SMALLEST_CELL), ENTRY(OWNER), ENTRY(USED), ENTRY(RETIRED),
        ENTRY(WARM), ENTRY(KIND_SHIFT), ENTRY(KINDS), ENTRY(GENERATION_SHIFT), ENTRY(STATE),
        ENTRY(CLASS_HIGH_WATER), ENTRY(CLASS_CURSOR), ENTRY(CLASS_USED), ENTRY(CLASS_USED_NBYTES),
        ENTRY(CLASS_WARM), ENTRY(FIRST_OF_RING), ENTRY(LAST_OF_RING),
        ENTRY(PRODUCERS_SECTION), ENTRY(CONSUMERS_PARKING), ENTRY(CONSUMERS_SECTION),
        ENTRY(PRODUCERS_PARKING), ENTRY(RECORDS), ENTRY(WRITE_POS), ENTRY(ROOM_END),
        ENTRY(SEEN_READ_POS), ENTRY(CLOSED), ENTRY(PUTS), ENTRY(PRODUCERS_TAKEOVERS),
        ENTRY(LISTENERS), ENTRY(CALLS), ENTRY(ROOM_LISTENERS), ENTRY(ROOM_CALLS), ENTRY(SLEEPING), ENTRY(LISTENING),
        ENTRY(CONSUMERS_SLEEPING), ENTRY(READ_POS), ENTRY(SEEN_WRITE_POS), ENTRY(ENDED),
        ENTRY(RETURNED), ENTRY(LEASE_OFFSET), ENTRY(LEASE_GENERATION),
        ENTRY(CONSUMERS_TAKEOVERS), ENTRY(JOINERS), ENTRY(PRODUCERS_SLEEPING), ENTRY(CAPACITY),
        ENTRY(FIRST_RECORD), ENTRY(HEADER), ENTRY(LENGTH_MASK), ENTRY(KIND_BITS), ENTRY(RECORD),
        ENTRY(PADDING), ENTRY(BLOCK), ENTRY(TAKEN), ENTRY(NUMBER_SHIFT), ENTRY(NUMBER_ONE),
        ENTRY(NUMBER_MASK), ENTRY(NUMBER_BITS), ENTRY(MIN_CAPACITY), ENTRY(MAX_CAPACITY),
        ENTRY(B_RING), ENTRY(B_RING_GENERATION), ENTRY(B_POS), ENTRY(B_NBYTES), ENTRY(B_CALL), ENTRY(B_AGAIN),
        ENTRY(BLOCK_HEADER), ENTRY(KIND_RECORD),
        ENTRY(M_SECTION), ENTRY(M_PARKING), ENTRY(M_SLEEPERS), ENTRY(M_HOLDER), ENTRY(M_THREAD),
        ENTRY(M_COUNT), ENTRY(M_RECOVERED), ENTRY(M_SINCE), ENTRY(M_LOCK_NBYTES),
        ENTRY(M_INITIAL), ENTRY(M_ENTRIES), ENTRY(M_VALUE), ENTRY(M_TRAVELS), ENTRY(M_RETURNED),
        ENTRY(M_LEFT), ENTRY(M_JOURNAL), ENTRY(M_NEXT_RETURNED), ENTRY(M_NEXT_LEFT),
        ENTRY(M_MAXIMUM), ENTRY(M_FIRST_ENTRY), ENTRY(M_ENTRY), ENTRY(M_MAX_VALUE),
        ENTRY(HOLDER_BITS), ENTRY(OWN_NUMBER), ENTRY(OWN_GENERATION),
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
    {"bind_cells", (PyCFunction)(void (*)(void))native_bind_cells, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("Say which class a cell's handle has, and what does what the methods leave.")},
    {"bind_guards", (PyCFunction)(void (*)(void))native_bind_guards, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("Say which class locks have, and what does what their methods leave.")},
    {"slice_guards", native_slice_guards, METH_O,
     PyDoc_STR("Say for how many seconds a lock's waiter sleeps before it looks around.")},
    {"dump", (PyCFunction)(void (*)(void))native_dump, METH_FASTCALL,
     PyDoc_STR("Return the record of an object, by the function given if it is not plain.")},
    {"load", (PyCFunction)(void (*)(void))native_load, METH_FASTCALL,
     PyDoc_STR("Return the object of a record, by the function given if it is not plain.")},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ipcmap._core.native",
    .m_doc = PyDoc_STR("The native engine: the hot paths of ring, allocator and locks."),
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_native(void)
{
    native_find_clock();
    PyObject *module = PyModule_Create(&definition);
    PyObject *core = PyType_FromSpec(&core_spec), *methods = PyType_FromSpec(&ring_methods_spec);
    if (!module || !core || !methods || PyModule_AddType(module, (PyTypeObject *)core) ||
        PyModule_AddType(module, (PyTypeObject *)methods) || native_add_cells(module) ||
        native_add_guards(module) || native_add_words(module) || add_layout(module)) {
        Py_CLEAR(module);
        Py_CLEAR(core);
    }
#ifdef IPCMAP_SYNC_POINTS
    if (module && native_add_sync_points(module))
        Py_CLEAR(module);
#endif
    native_core_type = (PyTypeObject *)core; /* for as long as the process lives, as static types */
    Py_XDECREF(methods);
    return module;
}
