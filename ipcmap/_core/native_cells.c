/* native_cells.c -- Cells: the allocator's busiest methods, as Python calls them.
 *
 * A base of NativeAllocator, whose other base has all methods in Python. Each method
 * makes one attempt (native_allocator.c) and leaves whatever is unusual to the method
 * of the same name there, called with no section held: other arguments, errors, a
 * section that is not free, a journal, a full class. So a deadline, the last argument of
 * allocate and free, is for that method alone. What a call returns is allocated before it
 * enters the section.
 *
 * Who finds more warm cells than may be calls trim, which is the reference engine's. */
#include "native_call.h"

static struct {
    PyTypeObject *cell; /* reference_cells.Cell: offset, nbytes, generation, kind */
    PyObject *allocate, *free, *retag, *pass_on, *check, *trim;
} bound;

static PyTypeObject *cells_type; /* for as long as the process lives */

/* A number that a word can hold; false = it is for the reference engine. */
static bool number_of(PyObject *value, uint64_t *number)
{
    if (!PyLong_CheckExact(value))
        return false;
    *number = PyLong_AsUnsignedLongLong(value);
    if (*number != (uint64_t)-1 || !PyErr_Occurred())
        return true;
    PyErr_Clear();
    return false;
}

/* The numbers of a Cell. */
static bool cell_of(PyObject *value, uint64_t numbers[4])
{
    if (Py_TYPE(value) != bound.cell || PyTuple_Size(value) != 4)
        return false;
    for (int index = 0; index < 4; index++)
        if (!number_of(PyTuple_GetItem(value, index), &numbers[index]))
            return false;
    return true;
}

/* A Cell without its numbers, which set_cell puts in. */
static PyObject *new_cell(void)
{
    PyObject *cell = PyType_GenericAlloc(bound.cell, 4);
    for (int index = 0; cell && index < 4; index++)
        PyTuple_SetItem(cell, index, Py_NewRef(Py_None));
    return cell;
}

static bool set_cell(PyObject *cell, const uint64_t numbers[4])
{
    for (int index = 0; index < 4; index++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers[index]);
        if (!number)
            return false;
        PyTuple_SetItem(cell, index, number);
    }
    return true;
}

/* Whether an object is the allocator of the arena that begins here. */
bool native_is_of(PyObject *allocator, const void *words)
{
    return PyObject_TypeCheck(allocator, cells_type) && ((cells_object_t *)allocator)->cells.count &&
           ((cells_object_t *)allocator)->words.buf == words;
}

/* Return a handle; NULL = an exception. */
PyObject *native_cell(const uint64_t numbers[4])
{
    PyObject *cell = new_cell();
    if (cell && !set_cell(cell, numbers))
        Py_CLEAR(cell);
    return cell;
}

/* Ask for this process's slot; false = an exception. */
bool native_owner(const cells_object_t *self, uint64_t *owner)
{
    PyObject *slot = PyObject_CallObject(self->owner, NULL);
    *owner = slot ? PyLong_AsUnsignedLongLong(slot) : 0;
    Py_XDECREF(slot);
    return slot && !(*owner == (uint64_t)-1 && PyErr_Occurred());
}

/* Give back what is too much; false = an exception. */
bool native_trimmed(cells_object_t *self)
{
    if (LIKELY(!cells_excess(&self->cells)))
        return true;
    PyObject *nothing = PyObject_CallFunctionObjArgs(bound.trim, (PyObject *)self, NULL);
    Py_XDECREF(nothing);
    return nothing;
}

static PyObject *native_allocate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    cells_object_t *object = (cells_object_t *)self;
    uint64_t nbytes, kind = 0, owner;
    place_t taken;
    if (!object->cells.count || kwnames || nargs < 1 || nargs > 3 || !number_of(args[0], &nbytes) ||
        (nargs > 1 && !number_of(args[1], &kind)))
        return as_called(bound.allocate, self, args, nargs, kwnames);
    PyObject *cell = new_cell(); /* first, for it may collect garbage, and so run a handler that forks */
    if (!cell)
        return NULL;
    if (!native_owner(object, &owner)) {
        Py_DECREF(cell);
        return NULL;
    }
    if (cells_take(&object->cells, nbytes, kind, owner, &taken) != DONE) {
        Py_DECREF(cell);
        return as_called(bound.allocate, self, args, nargs, kwnames);
    }
    const uint64_t numbers[4] = {cells_offset(&taken), nbytes, taken.tag >> GENERATION_SHIFT, kind};
    if (!set_cell(cell, numbers)) {
        cells_free(&object->cells, &taken); /* want of memory */
        Py_DECREF(cell);
        return NULL;
    }
    if (!native_trimmed(object))
        Py_CLEAR(cell);
    return cell;
}

static PyObject *native_free(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    cells_object_t *object = (cells_object_t *)self;
    uint64_t cell[4];
    place_t place;
    if (!object->cells.count || kwnames || nargs < 1 || nargs > 2 || !cell_of(args[0], cell) ||
        cells_find(&object->cells, cell[0], cell[2], cell[3], &place) != DONE ||
        cells_free(&object->cells, &place) != DONE)
        return as_called(bound.free, self, args, nargs, kwnames);
    return native_trimmed(object) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *native_retag(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    cells_object_t *object = (cells_object_t *)self;
    uint64_t cell[4], owner;
    place_t place;
    if (!object->cells.count || kwnames || nargs != 2 || !cell_of(args[0], cell) ||
        !number_of(args[1], &owner) ||
        cells_find(&object->cells, cell[0], cell[2], cell[3], &place) != DONE ||
        cells_retag(&object->cells, &place, cell[3], owner) != DONE)
        return as_called(bound.retag, self, args, nargs, kwnames);
    return Py_NewRef(args[0]);
}

static PyObject *native_pass_on(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    cells_object_t *object = (cells_object_t *)self;
    uint64_t cell[4], owner, kind, nbytes;
    if (!object->cells.count || kwnames || nargs != 3 || !cell_of(args[0], cell) ||
        !number_of(args[1], &owner) || !number_of(args[2], &kind))
        return as_called(bound.pass_on, self, args, nargs, kwnames);
    PyObject *result = new_cell();
    if (!result)
        return NULL;
    if (cells_pass_on(&object->cells, cell[0], cell[2], kind, owner, &nbytes) != DONE) {
        Py_DECREF(result);
        return as_called(bound.pass_on, self, args, nargs, kwnames);
    }
    const uint64_t numbers[4] = {cell[0], nbytes, cell[2], kind};
    if (!set_cell(result, numbers))
        Py_CLEAR(result); /* want of memory: the caller's, as if it had been killed here */
    return result;
}

static PyObject *native_check(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    cells_object_t *object = (cells_object_t *)self;
    uint64_t cell[4];
    place_t place;
    if (!object->cells.count || kwnames || nargs != 1 || !cell_of(args[0], cell) ||
        cells_find(&object->cells, cell[0], cell[2], cell[3], &place) != DONE)
        return as_called(bound.check, self, args, nargs, kwnames);
    Py_RETURN_NONE;
}

/* Take over the places of an arena's layout: called once, by the constructor. */
static PyObject *cells_places(PyObject *self, PyObject *args)
{
    cells_object_t *object = (cells_object_t *)self;
    PyObject *words, *owner, *classes;
    unsigned long long limit, keep, max_processes;
    if (!PyArg_ParseTuple(args, "OKKKOO!", &words, &limit, &keep, &max_processes, &owner, &PyTuple_Type, &classes))
        return NULL;
    Py_ssize_t count = PyTuple_Size(classes);
    if (object->owner || count < 1 || count > MOST_CLASSES) {
        PyErr_SetString(PyExc_ValueError, "cells have 1 to 58 lengths, and are placed once");
        return NULL;
    }
    if (PyObject_GetBuffer(words, &object->words, PyBUF_WRITABLE))
        return NULL;
    object->owner = Py_NewRef(owner);
    uint64_t words_count = (uint64_t)object->words.len / 8;
    for (Py_ssize_t index = 0; index < count; index++) {
        class_t *class = &object->cells.classes[index];
        unsigned long long figures[6];
        if (!PyArg_ParseTuple(PyTuple_GetItem(classes, index), "KKKKKK", &figures[0], &figures[1],
                              &figures[2], &figures[3], &figures[4], &figures[5]))
            return NULL;
        *class = (class_t){figures[0], figures[1], figures[2], figures[3], figures[4], figures[5]};
        if (class->cell_nbytes != SMALLEST_CELL << index || class->capacity > words_count ||
            class->line + CLASS_WARM >= words_count || class->tags > words_count - class->capacity ||
            class->lengths > words_count - class->capacity) {
            PyErr_SetString(PyExc_ValueError, "no arena has such a layout");
            return NULL;
        }
    }
    object->cells.shm_words = object->words.buf;
    object->cells.shm_section = (pthread_mutex_t *)((unsigned char *)object->words.buf + ALLOCATOR_SECTION);
    object->cells.limit = limit;
    object->cells.keep = keep;
    object->cells.max_processes = max_processes;
    object->cells.count = (size_t)count;
    Py_RETURN_NONE;
}

static int cells_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((cells_object_t *)self)->owner);
    return 0;
}

static int cells_clear(PyObject *self)
{
    ((cells_object_t *)self)->cells.count = 0;
    Py_CLEAR(((cells_object_t *)self)->owner);
    return 0;
}

static void cells_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    cells_clear(self);
    if (((cells_object_t *)self)->words.obj)
        PyBuffer_Release(&((cells_object_t *)self)->words);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

#define METHOD(name)                                                                          \
    {#name, (PyCFunction)(void (*)(void))native_##name, METH_FASTCALL | METH_KEYWORDS,        \
     PyDoc_STR("See reference_allocator.Allocator." #name ".")}

static PyMethodDef methods[] = {
    METHOD(allocate), METHOD(free), METHOD(retag), METHOD(pass_on), METHOD(check),
    {"places", cells_places, METH_VARARGS, PyDoc_STR("Take over the places of a layout.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, PyDoc_STR("The methods of an allocator that are written in C.")},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, cells_traverse},
    {Py_tp_clear, cells_clear},
    {Py_tp_dealloc, cells_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "ipcmap._core.native.Cells",
    .basicsize = sizeof(cells_object_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int native_add_cells(PyObject *module)
{
    cells_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return cells_type ? PyModule_AddType(module, cells_type) : -1;
}

PyObject *native_bind_cells(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"cell", "allocate", "free", "retag", "pass_on", "check", "trim", NULL};
    PyObject *type, *reference[6];
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOOOO", names, &PyType_Type, &type, &reference[0],
                                     &reference[1], &reference[2], &reference[3], &reference[4],
                                     &reference[5]))
        return NULL;
    if (bound.cell || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_ValueError, "a class of tuples is bound once");
        return NULL;
    }
    bound.cell = (PyTypeObject *)Py_NewRef(type);
    bound.allocate = Py_NewRef(reference[0]);
    bound.free = Py_NewRef(reference[1]);
    bound.retag = Py_NewRef(reference[2]);
    bound.pass_on = Py_NewRef(reference[3]);
    bound.check = Py_NewRef(reference[4]);
    bound.trim = Py_NewRef(reference[5]);
    Py_RETURN_NONE;
}
