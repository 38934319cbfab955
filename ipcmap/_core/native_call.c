/* native_call.c -- arguments, and waiting between attempts; native_call.h says what a call is. */
#include "native_call.h"
#include "native_objects.h"

#include <math.h>

struct native_bound native_bound;

/* Arguments */

/* Say that a handle has no core. */
core_t *no_core(PyObject *self)
{
    PyObject *name = PyType_GetName(Py_TYPE(self));
    if (name)
        PyErr_Format(PyExc_TypeError, "ring is not attached: type=%U", name);
    Py_XDECREF(name);
    return NULL;
}

/* The rest of `sorted`: more than one argument, or some by name. */
bool sort_named(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                const char *const names[2], PyObject *values[2])
{
    Py_ssize_t most = names[1] ? 2 : 1, named = kwnames ? PyTuple_Size(kwnames) : 0;
    if (nargs + named > most)
        return false;
    for (Py_ssize_t index = 0; index < nargs; index++)
        values[index] = args[index];
    for (Py_ssize_t index = 0; index < named; index++) {
        PyObject *name = PyTuple_GetItem(kwnames, index);
        Py_ssize_t place = 0;
        while (place < most && PyUnicode_CompareWithASCIIString(name, names[place]))
            place++;
        if (place == most || values[place])
            return false;
        values[place] = args[nargs + index];
    }
    return true;
}

/* The rest of `moment_of`: where there is a timeout. */
bool moment_after(PyObject *timeout, int64_t *deadline)
{
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    if (isnan(seconds))
        return false;
    if (seconds < 1e9)
        *deadline = monotonic_ns() + (seconds > 0 ? (int64_t)(seconds * 1e9) : 0);
    return true;
}

/* Return what is left of a timeout, for the reference engine. */
PyObject *timeout_left(int64_t deadline)
{
    if (deadline == FOR_EVER)
        Py_RETURN_NONE;
    int64_t left = deadline - monotonic_ns();
    return PyFloat_FromDouble(left > 0 ? (double)left * 1e-9 : 0.0);
}

/* Call a method of the reference engine as we were called. */
PyObject *as_called(PyObject *method, PyObject *self, PyObject *const *args,
                           Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t named = kwnames ? PyTuple_Size(kwnames) : 0;
    PyObject *plain = PyTuple_New(nargs + 1), *names = named ? PyDict_New() : NULL, *result = NULL;
    if (!plain || (named && !names))
        goto done;
    PyTuple_SetItem(plain, 0, Py_NewRef(self));
    for (Py_ssize_t index = 0; index < nargs; index++)
        PyTuple_SetItem(plain, index + 1, Py_NewRef(args[index]));
    for (Py_ssize_t index = 0; index < named; index++)
        if (PyDict_SetItem(names, PyTuple_GetItem(kwnames, index), args[nargs + index]))
            goto done;
    result = PyObject_Call(method, plain, names);
done:
    Py_XDECREF(plain);
    Py_XDECREF(names);
    return result;
}

/* Have the records of a get come again that an error breaks off, and raise that. A tuple or a
 * list of them, which is let go; NULL = none, for want of memory. */
void return_all(PyObject *self, PyObject *taken)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    if (taken)
        Py_XDECREF(PyObject_CallFunctionObjArgs(native_bound.return_all, self, taken, NULL));
    Py_XDECREF(taken);
    PyErr_Restore(type, error, traceback);
}

/* Waiting */

static const int64_t ASK_EVERY = 1000000000; /* nanoseconds */

/* Whether to look on before a sleep, as `ask` (processors.may_spin) has it: once a second, since
 * the answer takes a while. Any thread may ask: the figures are hints. -1 = a signal handler raised. */
int native_may_spin(PyObject *ask)
{
    static _Atomic int64_t asked_at = INT64_MIN / 2;
    static _Atomic bool several;
    int64_t now = monotonic_ns();
    if (now - atomic_load_explicit(&asked_at, memory_order_relaxed) > ASK_EVERY) {
        PyObject *answer = PyObject_CallNoArgs(ask);
        if (!answer)
            return -1;
        atomic_store_explicit(&several, answer == Py_True, memory_order_relaxed);
        atomic_store_explicit(&asked_at, now, memory_order_relaxed);
        Py_DECREF(answer);
    }
    return atomic_load_explicit(&several, memory_order_relaxed);
}

/* Wait until it is worth another attempt. FAILED = a signal handler raised; GIVE_UP = the
 * time is over, or the reference engine is to say what there is. */
verdict_t wait_for_other(PyObject *self, core_t *core, side_t *side, uint64_t *seen,
                                int64_t deadline, waiting_t *waiting)
{
    ring_t *ring = &core->ring;
    outcome_t outcome = NOTHING;
    bool moved = false;
    if (deadline != FOR_EVER && monotonic_ns() >= deadline)
        return GIVE_UP;
    if (PyErr_CheckSignals())
        return FAILED;
    int spin = native_may_spin(native_bound.may_spin);
    if (spin < 0)
        return FAILED;
    atomic_store_explicit(&side->spins, spin, memory_order_relaxed);
    if (IPCMAP_LOOK_DIRECTLY && spin && parking_glance(ring, side, *seen))
        return GO_ON;
    Py_BEGIN_ALLOW_THREADS
    if (!IPCMAP_LOOK_DIRECTLY)
        outcome = parking_look(ring, side, seen);
    if (outcome == NOTHING && spin)
        moved = parking_look_on(ring, side, *seen, deadline);
    if (moved && !IPCMAP_LOOK_DIRECTLY)
        outcome = parking_look(ring, side, seen);
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals())
        return FAILED;
    if (outcome != NOTHING)
        return outcome == MOVED ? GO_ON : GIVE_UP;
    if (moved)
        return GO_ON;
    Py_BEGIN_ALLOW_THREADS
    outcome = parking_sleep(ring, side, seen, deadline, waiting);
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals()) {
        if (waiting->slept)
            parking_wake_next(ring, side);
        return FAILED;
    }
    if (outcome != NOTHING)
        return outcome == MOVED ? GO_ON : GIVE_UP;
    if (deadline != FOR_EVER && monotonic_ns() >= deadline)
        return GIVE_UP;
    if (waiting->slice < LONGEST_SLICE)
        return GO_ON; /* the family is looked after once in a second */
    PyObject *nothing = PyObject_CallFunctionObjArgs(native_bound.idle, self, NULL);
    Py_XDECREF(nothing);
    return nothing ? GO_ON : FAILED;
}

#define METHOD(name)                                                                               \
    {#name, (PyCFunction)(void (*)(void))native_##name, METH_FASTCALL | METH_KEYWORDS,                     \
     PyDoc_STR("See ipcmap.Ring." #name ".")}

PyMethodDef native_ring_methods[] = {
    METHOD(put), METHOD(get), METHOD(put_many), METHOD(get_many),
    {"_put_object", (PyCFunction)(void (*)(void))native_put_object, METH_FASTCALL,
     PyDoc_STR("Put the record of an object; return one in parts, which is not put.")},
    {"_get_object", (PyCFunction)(void (*)(void))native_get_object, METH_FASTCALL,
     PyDoc_STR("Return the object of the oldest record.")},
    {NULL, NULL, 0, NULL},
};
