/* native_put.c -- Ring.put and Ring.put_many. See native_call.h. */
#include "native_call.h"

#include <string.h>

/* What nearly every put comes to: there is known to be room, and nobody is in the section.
 * False = nothing was put. *sleepers is of the other side, as in an attempt_t. */
static inline __attribute__((always_inline)) bool
put_at_once(core_t *core, const unsigned char *data, uint64_t length, uint64_t *sleepers)
{
    ring_t *ring = &core->ring;
    if (length > ring->inline_limit || look(ring, ROOM_END) - look(ring, WRITE_POS) < TAKES(length) ||
        section_try(ring->shm_producers_section, &ring->shm_words[PRODUCERS_TAKEOVERS]) != DONE)
        return false;
    bool done = ring_append(ring, data, length);
    STEP("P5 look", *sleepers = look(ring, CONSUMERS_SLEEPING));
    section_leave(ring->shm_producers_section);
    return done;
}

/* Put the bytes of ``record``, or bytes of our own if that is NULL, as soon as it can be. */
static __attribute__((noinline)) PyObject *put_in_turn(PyObject *self, const unsigned char *data, uint64_t length,
                                                       PyObject *record, int64_t deadline)
{
    waiting_t waiting = {.slept = false};
    attempt_t attempt = {.data = data, .length = length};
    verdict_t verdict = GO_ON;
    PyObject *result = NULL;
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    if (length > core->ring.inline_limit) {
        verdict = put_large(self, core, data, length, deadline);
        goto done;
    }
    if (IPCMAP_LOOK_DIRECTLY && look(&core->ring, ROOM_END) - look(&core->ring, WRITE_POS) < TAKES(length))
        parking_fall_behind(&core->ring, &core->ring.producers);
    while (verdict == GO_ON) {
        outcome_t outcome = try_to(core, PUT, &attempt);
        if (outcome == DONE) {
            verdict = call_listeners(self, PUT, attempt.sleepers) ? GO_ON : FAILED;
            break;
        }
        verdict = outcome != NOTHING
            ? GIVE_UP
            : wait_for_other(self, core, &core->ring.producers, &attempt.seen, deadline, &waiting);
    }
done:
    Py_DECREF(core);
    if (verdict == GO_ON)
        Py_RETURN_NONE;
    if (verdict == FAILED)
        return NULL;
    PyObject *left = timeout_left(deadline);
    PyObject *given = record ? Py_NewRef(record) : PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length);
    if (left && given)
        result = PyObject_CallFunctionObjArgs(native_bound.put, self, given, left, NULL);
    Py_XDECREF(given);
    Py_XDECREF(left);
    return result;
}

static inline __attribute__((always_inline)) PyObject *
put_bytes(PyObject *self, core_t *core, const unsigned char *data, uint64_t length, PyObject *record, int64_t deadline)
{
    uint64_t sleepers;
    if (UNLIKELY(!put_at_once(core, data, length, &sleepers)))
        return put_in_turn(self, data, length, record, deadline);
    if (UNLIKELY(!tell_others(self, core, PUT, sleepers)))
        return NULL;
    Py_RETURN_NONE;
}

/* Put bytes that are no object. */
PyObject *native_put_bytes(PyObject *self, const unsigned char *data, uint64_t length, PyObject *timeout)
{
    int64_t deadline;
    bool plain = moment_of(timeout, &deadline);
    core_t *core = borrow_core(self);
    if (!core)
        return NULL;
    if (LIKELY(plain && is_good(core)))
        return put_bytes(self, core, data, length, NULL, deadline);
    PyObject *record = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length), *result = NULL;
    if (record)
        result = PyObject_CallFunctionObjArgs(native_bound.put, self, record, timeout, NULL);
    Py_XDECREF(record);
    return result;
}

/* Put what has a buffer; false = something for the reference engine, unless there is an error. */
static bool put_buffer(PyObject *self, PyObject *record, int64_t deadline, PyObject **result)
{
    Py_buffer view;
    if (PyObject_GetBuffer(record, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        /* What the reference engine explains; anything else is a signal handler's, or such. */
        if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
            !PyErr_ExceptionMatches(PyExc_BufferError))
            return true;
        PyErr_Clear();
        return false;
    }
    bool plain = !view.format || !strchr(view.format, 'O'); /* not perhaps Python objects */
    core_t *core = plain ? borrow_core(self) : NULL; /* once more: the object may have run Python */
    if (core) {
        plain = is_good(core);
        if (plain)
            *result = put_bytes(self, core, view.buf, (uint64_t)view.len, record, deadline);
    }
    PyBuffer_Release(&view);
    return plain;
}

PyObject *native_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"data", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *result = NULL;
    int64_t deadline = FOR_EVER;
    bool plain = sorted(args, nargs, kwnames, names, values) && values[0] && moment_of(values[1], &deadline);
    core_t *core = borrow_core(self);
    if (UNLIKELY(!core))
        return NULL;
    if (UNLIKELY(!plain || !is_good(core)))
        return as_called(native_bound.put, self, args, nargs, kwnames);
    if (LIKELY(PyBytes_CheckExact(values[0])))
        return put_bytes(self, core, bytes_of(values[0]), (uint64_t)Py_SIZE(values[0]), values[0], deadline);
    if (!put_buffer(self, values[0], deadline, &result))
        return as_called(native_bound.put, self, args, nargs, kwnames);
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

PyObject *native_put_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"records", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *batch = NULL, *result = NULL;
    record_t records[CHUNK];
    Py_ssize_t count, went_in = 0;
    int64_t deadline;
    waiting_t waiting = {.slept = false};
    attempt_t attempt = {.records = records};
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
    count = PyTuple_Size(batch);
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *record = PyTuple_GetItem(batch, index);
        if (!PyBytes_CheckExact(record) || (uint64_t)Py_SIZE(record) > core->ring.inline_limit)
            goto reference;
    }
    while (went_in < count) {
        for (attempt.count = 0; attempt.count < CHUNK && went_in + (Py_ssize_t)attempt.count < count; attempt.count++) {
            PyObject *record = PyTuple_GetItem(batch, went_in + (Py_ssize_t)attempt.count);
            records[attempt.count].data = bytes_of(record);
            records[attempt.count].length = (uint64_t)Py_SIZE(record);
        }
        outcome_t outcome = try_to(core, PUT_MANY, &attempt);
        if (outcome == DONE) {
            went_in += (Py_ssize_t)attempt.done;
            if (call_listeners(self, PUT_MANY, attempt.sleepers))
                continue;
            note_put(went_in);
            goto done;
        }
        if (outcome != NOTHING)
            goto reference;
        verdict_t verdict =
            wait_for_other(self, core, &core->ring.producers, &attempt.seen, deadline, &waiting);
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
    if (left && number)
        result = PyObject_CallFunctionObjArgs(native_bound.put_rest, self, batch, number, left, NULL);
    Py_XDECREF(left);
    Py_XDECREF(number);
}
done:
    Py_XDECREF(batch);
    Py_DECREF(core);
    return result;
}
