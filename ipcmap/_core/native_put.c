/* native_put.c -- Ring.put and Ring.put_many. See native_call.h. */
#include "native_call.h"

#include <string.h>

/* Put the bytes of ``record``, or bytes of our own if that is NULL. */
static PyObject *put_bytes(PyObject *self, core_t *core, const unsigned char *data, uint64_t length,
                           PyObject *record, int64_t deadline)
{
    waiting_t waiting = {.slept = false};
    attempt_t attempt = {.data = data, .length = length};
    if (length > core->ring.inline_limit) {
        verdict_t verdict = put_large(self, core, data, length, deadline);
        if (verdict == GO_ON)
            Py_RETURN_NONE;
        if (verdict == FAILED)
            return NULL;
        goto rest;
    }
    if (IPCMAP_LOOK_DIRECTLY && look(&core->ring, ROOM_END) - look(&core->ring, WRITE_POS) < TAKES(length))
        parking_fall_behind(&core->ring, &core->ring.producers);
    for (;;) {
        outcome_t outcome = try_to(core, PUT, &attempt);
        if (LIKELY(outcome == DONE)) {
            if (!call_listeners(self, PUT, &attempt))
                return NULL;
            Py_RETURN_NONE;
        }
        if (outcome != NOTHING)
            break;
        verdict_t verdict =
            wait_for_other(self, core, &core->ring.producers, &attempt.seen, deadline, &waiting);
        if (verdict == FAILED)
            return NULL;
        if (verdict == GIVE_UP)
            break;
    }
rest:;
    PyObject *left = timeout_left(deadline), *result = NULL;
    PyObject *given = record ? Py_NewRef(record) : PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length);
    if (left && given)
        result = PyObject_CallFunctionObjArgs(native_bound.put, self, given, left, NULL);
    Py_XDECREF(given);
    Py_XDECREF(left);
    return result;
}

/* Put bytes that are no object. */
PyObject *native_put_bytes(PyObject *self, const unsigned char *data, uint64_t length, PyObject *timeout)
{
    int64_t deadline;
    PyObject *result = NULL;
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    if (moment_of(timeout, &deadline) && is_good(core)) {
        result = put_bytes(self, core, data, length, NULL, deadline);
    } else {
        PyObject *record = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length);
        if (record)
            result = PyObject_CallFunctionObjArgs(native_bound.put, self, record, timeout, NULL);
        Py_XDECREF(record);
    }
    Py_DECREF(core);
    return result;
}

/* Put what has a buffer; false = something for the reference engine, unless there is an error. */
static bool put_buffer(PyObject *self, core_t *core, PyObject *record, int64_t deadline, PyObject **result)
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
    if (plain)
        *result = put_bytes(self, core, view.buf, (uint64_t)view.len, record, deadline);
    PyBuffer_Release(&view);
    return plain;
}

PyObject *native_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"data", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *result = NULL;
    int64_t deadline;
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    if (!sorted(args, nargs, kwnames, names, values) || !values[0] ||
        !moment_of(values[1], &deadline) || !is_good(core))
        result = as_called(native_bound.put, self, args, nargs, kwnames);
    else if (LIKELY(PyBytes_CheckExact(values[0])))
        result = put_bytes(self, core, (const unsigned char *)PyBytes_AsString(values[0]),
                           (uint64_t)PyBytes_Size(values[0]), values[0], deadline);
    else if (!put_buffer(self, core, values[0], deadline, &result))
        result = as_called(native_bound.put, self, args, nargs, kwnames);
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
        if (!PyBytes_CheckExact(record) || (uint64_t)PyBytes_Size(record) > core->ring.inline_limit)
            goto reference;
    }
    while (went_in < count) {
        for (attempt.count = 0; attempt.count < CHUNK && went_in + (Py_ssize_t)attempt.count < count; attempt.count++) {
            PyObject *record = PyTuple_GetItem(batch, went_in + (Py_ssize_t)attempt.count);
            records[attempt.count].data = (const unsigned char *)PyBytes_AsString(record);
            records[attempt.count].length = (uint64_t)PyBytes_Size(record);
        }
        outcome_t outcome = try_to(core, PUT_MANY, &attempt);
        if (outcome == DONE) {
            went_in += (Py_ssize_t)attempt.done;
            if (call_listeners(self, PUT_MANY, &attempt))
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
