/* native_sync_points.c -- what the hook build does at a point: note it, and strike.
 *
 * Built with -DIPCMAP_SYNC_POINTS alone, by tests/native_build.py. It adds to the module
 *   points    the names of all points, found by the linker
 *   arm       send the thread that passes a point for the n-th time from now a signal:
 *             SIGKILL and SIGSTOP act at once, a handler of Python's when C lets it
 *   disarm    forget what is armed, and the trace
 *   trace     the points passed since, in this order
 *
 * A child has what its parent had armed and traced before the fork. Points are passed
 * inside sections and without the GIL: nothing here allocates, waits, or calls Python
 * then. Arming takes the GIL, and is for one thread while no other passes points. */
#include "native_core.h"

#include <signal.h>
#include <stdio.h>

enum { MOST_ARMED = 8, MOST_TRACED = 1 << 14, LONGEST_NAME = 128 };

typedef struct {
    char name[LONGEST_NAME];
    _Atomic int64_t left; /* passes until it strikes; it has when below 1 */
    int signal;
} armed_t;

static armed_t armed[MOST_ARMED];
static _Atomic int armed_count;
static const sync_point_t *_Atomic traced[MOST_TRACED];
static _Atomic size_t traced_count;

/* From the linker: the section's begin and end. */
extern const sync_point_t *const __start_ipcmap_sync_points[] __attribute__((visibility("hidden")));
extern const sync_point_t *const __stop_ipcmap_sync_points[] __attribute__((visibility("hidden")));

static void write_name(char name[LONGEST_NAME], const sync_point_t *point)
{
    snprintf(name, LONGEST_NAME, "%s in %s, %s", point->name, point->function, point->moment);
}

void native_sync_point(const sync_point_t *point)
{
    char name[LONGEST_NAME] = "";
    size_t place = atomic_fetch_add(&traced_count, 1);
    if (place < MOST_TRACED)
        atomic_store(&traced[place], point);
    for (int i = 0; i < atomic_load(&armed_count); i++) {
        if (!*name)
            write_name(name, point);
        if (!strcmp(name, armed[i].name) && atomic_fetch_sub(&armed[i].left, 1) == 1)
            raise(armed[i].signal);
    }
}

static PyObject *name_of(const sync_point_t *point)
{
    char name[LONGEST_NAME];
    write_name(name, point);
    return PyUnicode_FromString(name);
}

static int append_name(PyObject *list, const sync_point_t *point)
{
    PyObject *name = name_of(point);
    int failed = !name || PyList_Append(list, name);
    Py_XDECREF(name);
    return failed;
}

static PyObject *points(PyObject *module, PyObject *ignored)
{
    PyObject *names = PySet_New(NULL);
    (void)module, (void)ignored;
    for (const sync_point_t *const *entry = __start_ipcmap_sync_points;
         names && entry < __stop_ipcmap_sync_points; entry++) {
        PyObject *name = name_of(*entry);
        if (!name || PySet_Add(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static bool is_point(const char *wanted)
{
    char name[LONGEST_NAME];
    for (const sync_point_t *const *entry = __start_ipcmap_sync_points; entry < __stop_ipcmap_sync_points; entry++) {
        write_name(name, *entry);
        if (!strcmp(name, wanted))
            return true;
    }
    return false;
}

static PyObject *arm(PyObject *module, PyObject *args)
{
    const char *name;
    long long passing;
    int signal, place = atomic_load(&armed_count);
    (void)module;
    if (!PyArg_ParseTuple(args, "sLi", &name, &passing, &signal))
        return NULL;
    if (place == MOST_ARMED || passing < 1 || !is_point(name)) {
        PyErr_Format(PyExc_ValueError, "no such point, or no more: name=%s, pass=%lld, armed=%d",
                     name, passing, place);
        return NULL;
    }
    snprintf(armed[place].name, LONGEST_NAME, "%s", name);
    atomic_store(&armed[place].left, passing);
    armed[place].signal = signal;
    atomic_store(&armed_count, place + 1);
    Py_RETURN_NONE;
}

static PyObject *disarm(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    atomic_store(&armed_count, 0);
    atomic_store(&traced_count, 0);
    Py_RETURN_NONE;
}

static PyObject *trace(PyObject *module, PyObject *ignored)
{
    size_t count = atomic_load(&traced_count);
    PyObject *names = PyList_New(0);
    (void)module, (void)ignored;
    if (count > MOST_TRACED) {
        PyErr_Format(PyExc_OverflowError, "the trace has no room: passed=%zu, room=%d", count, MOST_TRACED);
        Py_CLEAR(names);
    }
    for (size_t place = 0; names && place < count; place++)
        if (append_name(names, atomic_load(&traced[place])))
            Py_CLEAR(names);
    return names;
}

int native_add_sync_points(PyObject *module)
{
    static PyMethodDef functions[] = {
        {"points", points, METH_NOARGS, PyDoc_STR("Return the names of all points.")},
        {"arm", arm, METH_VARARGS, PyDoc_STR("Send a signal at the n-th pass of a point.")},
        {"disarm", disarm, METH_NOARGS, PyDoc_STR("Forget what is armed, and the trace.")},
        {"trace", trace, METH_NOARGS, PyDoc_STR("Return the points passed, in this order.")},
        {NULL, NULL, 0, NULL},
    };
    return PyModule_AddFunctions(module, functions);
}
