/* native_methods.c -- Ring.put, get, put_many and get_many as Python calls them.
 *
 * Each makes attempts (native_ring.c) in its side's section and waits between them
 * (native_parking.c) as Ring promises. Whatever is unusual is left to the method of
 * the same name that the reference engine has, called outside of any section: other
 * arguments than these understand, errors, the end, a record in a block, a returned
 * lease, damage, a section that is not to be had for long, the end of the timeout.
 *
 * Python in its place: results are allocated before a section is entered, for a record
 * whose length was guessed from outside; inside, the guess is checked, and what does
 * not fit stays in the ring. Nothing that was taken can be lost for want of memory.
 * Signal handlers run between attempts, with no section held and no sleeper counted;
 * who had slept then wakes the next (P4), for the token may have been theirs. */
#include "native_core.h"

#include <math.h>
#include <string.h>

enum {
    CHUNK = 256,    /* records that are prepared for one section */
    MISFITS = 100,  /* guesses that others made wrong, before the reference engine is asked */
};

static const int64_t LOCK_SLICE = 20000000; /* nanoseconds in which a section is to be had */
static const int64_t FOR_EVER = INT64_MAX;

struct native_bound native_bound;

/* Arguments */

/* Return the core of a handle, as a new reference. */
static core_t *core_of(PyObject *self)
{
    if (LIKELY(native_bound.type && PyObject_TypeCheck(self, native_bound.type))) {
        PyObject *core = *(PyObject **)((char *)self + native_bound.core_offset);
        if (LIKELY(core && Py_TYPE(core) == &native_core_type)) {
            Py_INCREF(core);
            return (core_t *)core;
        }
    }
    PyErr_Format(PyExc_TypeError, "ring is not attached: type=%s", Py_TYPE(self)->tp_name);
    return NULL;
}

/* Whether the ring was not destroyed, as far as can be seen from outside. */
static inline bool is_good(const core_t *core)
{
    return (atomic_load_explicit(core->shm_tag, memory_order_relaxed) & ~OWNER) == core->tag;
}

/* Sort up to two arguments by place or name; false = something for the reference engine. */
static bool sorted(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                   const char *const names[2], PyObject *values[2])
{
    Py_ssize_t most = names[1] ? 2 : 1, named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs + named > most)
        return false;
    for (Py_ssize_t index = 0; index < nargs; index++)
        values[index] = args[index];
    for (Py_ssize_t index = 0; index < named; index++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, index);
        Py_ssize_t place = 0;
        while (place < most && PyUnicode_CompareWithASCIIString(name, names[place]))
            place++;
        if (place == most || values[place])
            return false;
        values[place] = args[nargs + index];
    }
    return true;
}

/* Turn a timeout into a moment; false = no timeout. */
static bool moment_of(PyObject *timeout, int64_t *deadline)
{
    *deadline = FOR_EVER;
    if (!timeout || timeout == Py_None)
        return true;
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
static PyObject *timeout_left(int64_t deadline)
{
    if (deadline == FOR_EVER)
        Py_RETURN_NONE;
    int64_t left = deadline - monotonic_ns();
    return PyFloat_FromDouble(left > 0 ? (double)left * 1e-9 : 0.0);
}

/* Call a method of the reference engine as we were called. */
static PyObject *as_called(PyObject *method, PyObject *self, PyObject *const *args,
                           Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t count = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    PyObject **all = PyMem_New(PyObject *, count + 1);
    if (!all)
        return PyErr_NoMemory();
    all[0] = self;
    for (Py_ssize_t index = 0; index < count; index++)
        all[index + 1] = args[index];
    PyObject *result = PyObject_Vectorcall(method, all, (size_t)nargs + 1, kwnames);
    PyMem_Free(all);
    return result;
}

/* Attempts */

typedef struct {
    enum { PUT, PUT_MANY, GET, GET_MANY } what;
    const unsigned char *data;
    unsigned char *result;
    uint64_t length;
    const record_t *records;
    const result_t *results;
    size_t count, done;
    uint64_t seen;     /* the other side's position, by which the attempt went */
    uint64_t sleepers; /* of the other side */
} attempt_t;

/* Make an attempt, in the section, and leave it. */
static inline __attribute__((always_inline)) outcome_t
make(ring_t *ring, attempt_t *attempt, pthread_mutex_t *shm_section, const side_t *other)
{
    outcome_t outcome;
    switch (attempt->what) {
    case PUT:
        outcome = ring_put(ring, attempt->data, attempt->length, &attempt->seen);
        break;
    case PUT_MANY:
        outcome = ring_put_many(ring, attempt->records, attempt->count, &attempt->done, &attempt->seen);
        break;
    case GET:
        outcome = ring_get(ring, attempt->result, &attempt->length, &attempt->seen);
        break;
    default:
        outcome = ring_get_many(ring, attempt->results, attempt->count, &attempt->done, &attempt->seen);
    }
    attempt->sleepers = look(ring, other->sleepers); /* P5 look */
    section_leave(shm_section);
    return outcome;
}

/* Enter the section, make an attempt, and wake a sleeper of the other side. With the GIL,
 * which is let go where the section is not free: its holder may be waiting for it. */
static inline __attribute__((always_inline)) outcome_t try_to(core_t *core, attempt_t *attempt)
{
    ring_t *ring = &core->ring;
    bool puts = attempt->what == PUT || attempt->what == PUT_MANY;
    pthread_mutex_t *shm_section = puts ? ring->shm_producers_section : ring->shm_consumers_section;
    const side_t *other = puts ? &ring->consumers : &ring->producers;
    uint64_t takeovers = puts ? PRODUCERS_TAKEOVERS : CONSUMERS_TAKEOVERS;
    outcome_t outcome = section_try(ring, shm_section, takeovers);
    attempt->sleepers = 0;
    if (LIKELY(outcome == DONE)) {
        outcome = make(ring, attempt, shm_section, other);
    } else if (outcome == BUSY) {
        Py_BEGIN_ALLOW_THREADS
        outcome = section_wait(ring, shm_section, takeovers, LOCK_SLICE);
        if (outcome == DONE)
            outcome = make(ring, attempt, shm_section, other);
        Py_END_ALLOW_THREADS
    }
    if (UNLIKELY(attempt->sleepers))
        parking_wake(other->shm_parking); /* P6 post */
    return outcome;
}

/* Waiting */

typedef enum { FAILED = -1, GIVE_UP, GO_ON } verdict_t;

/* Wait until it is worth another attempt. FAILED = a signal handler raised; GIVE_UP = the
 * time is over, or the reference engine is to say what there is. */
static verdict_t wait_for_other(PyObject *self, core_t *core, side_t *side, uint64_t *seen,
                                int64_t deadline, bool *waited)
{
    ring_t *ring = &core->ring;
    outcome_t outcome = NOTHING;
    bool moved = false, slept = false;
    if (deadline != FOR_EVER && monotonic_ns() >= deadline)
        return GIVE_UP;
    if (PyErr_CheckSignals())
        return FAILED;
    bool may_spin = parking_may_spin();
    if (IPCMAP_LOOK_DIRECTLY && may_spin && parking_glance(ring, side, *seen))
        return GO_ON;
    Py_BEGIN_ALLOW_THREADS
    if (!IPCMAP_LOOK_DIRECTLY)
        outcome = parking_look(ring, side, seen);
    if (outcome == NOTHING && may_spin)
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
    outcome = parking_sleep(ring, side, seen, deadline, &slept);
    Py_END_ALLOW_THREADS
    *waited |= slept;
    if (PyErr_CheckSignals()) {
        if (slept)
            parking_wake_next(ring, side);
        return FAILED;
    }
    if (outcome != NOTHING)
        return outcome == MOVED ? GO_ON : GIVE_UP;
    if (deadline != FOR_EVER && monotonic_ns() >= deadline)
        return GIVE_UP;
    PyObject *nothing = PyObject_CallOneArg(native_bound.idle, self);
    Py_XDECREF(nothing);
    return nothing ? GO_ON : FAILED;
}

/* A consumer that had slept wakes the next, if it leaves anything behind. */
static void pass_on(const core_t *core, bool waited)
{
    const ring_t *ring = &core->ring;
    if (waited && (look(ring, READ_POS) != look(ring, WRITE_POS) || look(ring, RETURNED) || look(ring, CLOSED)))
        parking_wake_next(ring, &ring->consumers);
}

/* Producers */

static PyObject *put(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"data", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *result = NULL;
    Py_buffer view = {.obj = NULL};
    int64_t deadline;
    attempt_t attempt = {.what = PUT};
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    if (!sorted(args, nargs, kwnames, names, values) || !values[0] ||
        !moment_of(values[1], &deadline) || !is_good(core))
        goto reference;
    if (LIKELY(PyBytes_CheckExact(values[0]))) {
        attempt.data = (const unsigned char *)PyBytes_AS_STRING(values[0]);
        attempt.length = (uint64_t)PyBytes_GET_SIZE(values[0]);
    } else {
        if (PyObject_GetBuffer(values[0], &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
            if (!PyErr_ExceptionMatches(PyExc_Exception))
                goto done;
            PyErr_Clear();
            goto reference;
        }
        if (view.format && strchr(view.format, 'O'))
            goto reference; /* perhaps Python objects */
        attempt.data = view.buf;
        attempt.length = (uint64_t)view.len;
    }
    if (attempt.length > core->ring.inline_limit)
        goto reference;
    for (;;) {
        bool waited = false;
        outcome_t outcome = try_to(core, &attempt);
        if (LIKELY(outcome == DONE)) {
            result = Py_NewRef(Py_None);
            goto done;
        }
        if (outcome != NOTHING)
            break;
        verdict_t verdict =
            wait_for_other(self, core, &core->ring.producers, &attempt.seen, deadline, &waited);
        if (verdict == FAILED)
            goto done;
        if (verdict == GIVE_UP)
            break;
    }
    PyObject *left = timeout_left(deadline);
    if (left) {
        PyObject *again[3] = {self, values[0], left};
        result = PyObject_Vectorcall(native_bound.put, again, 3, NULL);
        Py_DECREF(left);
    }
    goto done;
reference:
    result = as_called(native_bound.put, self, args, nargs, kwnames);
done:
    if (view.obj)
        PyBuffer_Release(&view);
    Py_DECREF(core);
    return result;
}

/* Say in an error how many records went in. */
static void note_put(Py_ssize_t went_in)
{
    PyObject *type, *error, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *number = PyLong_FromSsize_t(went_in);
    if (!number || PyObject_SetAttrString(error, "put", number))
        PyErr_Clear();
    Py_XDECREF(number);
    PyErr_Restore(type, error, traceback);
}

static PyObject *put_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"records", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *batch = NULL, *result = NULL;
    record_t records[CHUNK];
    Py_ssize_t count, went_in = 0;
    int64_t deadline;
    attempt_t attempt = {.what = PUT_MANY, .records = records};
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    if (!sorted(args, nargs, kwnames, names, values) || !values[0] ||
        !moment_of(values[1], &deadline) || !is_good(core)) {
        result = as_called(native_bound.put_many, self, args, nargs, kwnames);
        goto done;
    }
    batch = PySequence_Tuple(values[0]); /* other threads may change a list meanwhile */
    if (!batch)
        goto done;
    count = PyTuple_GET_SIZE(batch);
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *record = PyTuple_GET_ITEM(batch, index);
        if (!PyBytes_CheckExact(record) || (uint64_t)PyBytes_GET_SIZE(record) > core->ring.inline_limit)
            goto reference;
    }
    while (went_in < count) {
        bool waited = false;
        for (attempt.count = 0; attempt.count < CHUNK && went_in + (Py_ssize_t)attempt.count < count; attempt.count++) {
            PyObject *record = PyTuple_GET_ITEM(batch, went_in + (Py_ssize_t)attempt.count);
            records[attempt.count].data = (const unsigned char *)PyBytes_AS_STRING(record);
            records[attempt.count].length = (uint64_t)PyBytes_GET_SIZE(record);
        }
        outcome_t outcome = try_to(core, &attempt);
        if (outcome == DONE) {
            went_in += (Py_ssize_t)attempt.done;
            continue;
        }
        if (outcome != NOTHING)
            goto reference;
        verdict_t verdict =
            wait_for_other(self, core, &core->ring.producers, &attempt.seen, deadline, &waited);
        if (verdict == GIVE_UP)
            goto reference;
        if (verdict == FAILED) {
            note_put(went_in);
            goto done;
        }
    }
    result = Py_NewRef(Py_None);
    goto done;
reference: {
    PyObject *left = timeout_left(deadline), *number = PyLong_FromSsize_t(went_in);
    PyObject *rest[4] = {self, batch, number, left};
    if (left && number)
        result = PyObject_Vectorcall(native_bound.put_rest, rest, 4, NULL);
    Py_XDECREF(left);
    Py_XDECREF(number);
}
done:
    Py_XDECREF(batch);
    Py_DECREF(core);
    return result;
}

/* Consumers */

/* Look from outside up to where there are records, for a guess. */
static uint64_t glimpse(const ring_t *ring, uint64_t read_pos, bool all)
{
    uint64_t end = look(ring, SEEN_WRITE_POS);
    return all || end == read_pos ? look_across(ring, WRITE_POS) : end;
}

static PyObject *get(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"timeout", NULL};
    PyObject *values[2] = {NULL, NULL}, *record = NULL;
    bool waited = false;
    int64_t deadline;
    attempt_t attempt = {.what = GET};
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    ring_t *ring = &core->ring;
    if (!sorted(args, nargs, kwnames, names, values) || !moment_of(values[0], &deadline) || !is_good(core)) {
        record = as_called(native_bound.get, self, args, nargs, kwnames);
        Py_DECREF(core);
        return record;
    }
    for (int misfits = 0; misfits < MISFITS;) {
        uint64_t pos = look(ring, READ_POS), end = glimpse(ring, pos, false);
        outcome_t outcome = ring_peek(ring, &pos, end, &attempt.length);
        if (outcome == UNUSUAL)
            attempt.length = 0; /* it may have changed by the time we are inside */
        if (outcome == NOTHING && IPCMAP_LOOK_DIRECTLY && pos == look(ring, READ_POS) && !look(ring, RETURNED)) {
            attempt.seen = end;
        } else {
            do {
                if (outcome == NOTHING || outcome == UNUSUAL)
                    attempt.length = 0;
                record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)attempt.length);
                if (!record)
                    goto done;
                attempt.result = (unsigned char *)PyBytes_AS_STRING(record);
                outcome = try_to(core, &attempt);
                if (LIKELY(outcome == DONE))
                    goto done;
                Py_CLEAR(record);
            } while (outcome == MISFIT && attempt.length <= ring->inline_limit && ++misfits < MISFITS);
        }
        if (outcome != NOTHING)
            break;
        verdict_t verdict =
            wait_for_other(self, core, &ring->consumers, &attempt.seen, deadline, &waited);
        if (verdict == FAILED)
            goto done;
        if (verdict == GIVE_UP)
            break;
    }
    PyObject *left = timeout_left(deadline);
    if (left) {
        PyObject *again[2] = {self, left};
        pass_on(core, waited);
        record = PyObject_Vectorcall(native_bound.get, again, 2, NULL);
        Py_DECREF(left);
    }
done:
    pass_on(core, waited);
    Py_DECREF(core);
    return record;
}

/* Add records of the lengths that lie before us to a list, for an attempt to fill them. */
static bool prepare(const ring_t *ring, PyObject *list, Py_ssize_t most, uint64_t stop,
                    result_t *results, attempt_t *attempt, outcome_t *outcome)
{
    uint64_t pos = look(ring, READ_POS), total = 0, length;
    uint64_t end = glimpse(ring, pos, IPCMAP_LOOK_DIRECTLY);
    if (stop && end > stop)
        end = stop;
    if (pos > end)
        pos = end;
    uint64_t begin = pos;
    attempt->count = 0;
    *outcome = DONE;
    while (attempt->count < CHUNK && (Py_ssize_t)attempt->count < most && total < WINDOW) {
        if ((*outcome = ring_peek(ring, &pos, end, &length)) != DONE)
            break;
        PyObject *record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (!record)
            return false;
        results[attempt->count].result = (unsigned char *)PyBytes_AS_STRING(record);
        results[attempt->count++].length = length;
        total += TAKES(length);
        int failed = PyList_Append(list, record);
        Py_DECREF(record);
        if (failed)
            return false;
    }
    if (attempt->count || *outcome != NOTHING)
        return true;
    attempt->seen = end;
    if (pos == begin)
        return true;
    /* Padding alone, which a producer may be waiting for: an attempt at no bytes takes it. */
    PyObject *record = PyBytes_FromStringAndSize(NULL, 0);
    int failed = !record || PyList_Append(list, record);
    Py_XDECREF(record);
    results[attempt->count++] = (result_t){.result = (unsigned char *)"", .length = 0};
    return !failed;
}

/* Add what the reference engine takes, if the next record is one for it. Its errors are
 * for the next call, but for those that end more than a call. */
static bool add_unusual(PyObject *self, const ring_t *ring, PyObject *list, Py_ssize_t most, uint64_t stop)
{
    uint64_t pos = look(ring, READ_POS), length;
    if (ring_peek(ring, &pos, stop, &length) != UNUSUAL)
        return true;
    PyObject *more = PyObject_CallFunction(native_bound.get_many, "Oni", self, most, 0);
    bool added = more && !PyList_SetSlice(list, PyList_GET_SIZE(list), PyList_GET_SIZE(list), more);
    Py_XDECREF(more);
    if (!added && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
        return true;
    }
    return added;
}

static PyObject *get_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"max_records", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *list = NULL;
    Py_ssize_t most = PY_SSIZE_T_MAX, taken = 0;
    result_t results[CHUNK];
    bool waited = false;
    int64_t deadline;
    uint64_t stop = 0;
    attempt_t attempt = {.what = GET_MANY, .results = results};
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    ring_t *ring = &core->ring;
    bool plain = sorted(args, nargs, kwnames, names, values) && moment_of(values[1], &deadline) && is_good(core);
    if (plain && values[0] && values[0] != Py_None) {
        most = PyLong_CheckExact(values[0]) ? PyLong_AsSsize_t(values[0]) : -1;
        PyErr_Clear();
    }
    if (!plain || most < 1) {
        list = as_called(native_bound.get_many, self, args, nargs, kwnames);
        Py_DECREF(core);
        return list;
    }
    list = PyList_New(0);
    if (!list)
        goto done;
    for (int misfits = 0; misfits < MISFITS && taken < most;) {
        outcome_t outcome;
        if (!prepare(ring, list, most - taken, stop, results, &attempt, &outcome)) {
            if (!taken)
                goto failed;
            PyErr_Clear(); /* want of memory: what was taken is returned all the same */
            attempt.count = 0;
        }
        bool attempted = attempt.count;
        if (attempted) {
            if (!stop)
                stop = look_across(ring, WRITE_POS);
            outcome = try_to(core, &attempt);
            taken += outcome == DONE ? (Py_ssize_t)attempt.done : 0;
        }
        if (taken < PyList_GET_SIZE(list) && PyList_SetSlice(list, taken, PyList_GET_SIZE(list), NULL))
            goto failed;
        if (attempted && outcome == DONE && attempt.done == attempt.count && look(ring, READ_POS) < stop)
            continue;
        if (taken)
            break;
        stop = 0;
        if (attempted && outcome == MISFIT) {
            misfits++;
            continue;
        }
        if (outcome != NOTHING || look(ring, RETURNED))
            break;
        verdict_t verdict =
            wait_for_other(self, core, &ring->consumers, &attempt.seen, deadline, &waited);
        if (verdict == FAILED)
            goto failed;
        if (verdict == GIVE_UP)
            break;
    }
    if (taken) {
        if (taken < most && look(ring, READ_POS) < stop && !add_unusual(self, ring, list, most - taken, stop))
            goto failed;
        goto done;
    }
    PyObject *left = timeout_left(deadline), *number = PyLong_FromSsize_t(most);
    Py_CLEAR(list);
    if (left && number) {
        PyObject *again[3] = {self, number, left};
        pass_on(core, waited);
        list = PyObject_Vectorcall(native_bound.get_many, again, 3, NULL);
    }
    Py_XDECREF(left);
    Py_XDECREF(number);
    goto done;
failed:
    Py_CLEAR(list);
done:
    pass_on(core, waited);
    Py_DECREF(core);
    return list;
}

#define METHOD(name)                                                                               \
    {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL | METH_KEYWORDS,                     \
     PyDoc_STR("See ipcmap.Ring." #name ".")}

PyMethodDef native_ring_methods[] = {
    METHOD(put), METHOD(get), METHOD(put_many), METHOD(get_many), {NULL, NULL, 0, NULL},
};
