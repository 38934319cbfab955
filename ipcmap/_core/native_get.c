/* native_get.c -- Ring.get and Ring.get_many. See native_call.h.
 *
 * Results are allocated before a section is entered, for a record whose length was
 * guessed from outside; inside, the guess is checked, and what does not fit stays in
 * the ring. Nothing that was taken can be lost for want of memory. */
#include "native_call.h"

enum { MISFITS = 100 }; /* guesses that others made wrong, before the reference engine is asked */

/* A consumer that had slept wakes the next, if it leaves anything behind. */
static void pass_on(const core_t *core, bool waited)
{
    const ring_t *ring = &core->ring;
    if (waited && (look(ring, READ_POS) != look(ring, WRITE_POS) || look(ring, RETURNED) || look(ring, CLOSED)))
        parking_wake_next(ring, &ring->consumers);
}

/* What nearly every get comes to: a record that was seen before, and nobody in the section.
 * NULL = nothing was taken, without an error. *sleepers is of the other side, as in an attempt_t. */
static inline PyObject *get_at_once(core_t *core, uint64_t *sleepers)
{
    ring_t *ring = &core->ring;
    guess_t guess;
    if (!ring_guess(ring, &guess))
        return NULL;
    PyObject *record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)guess.length);
    if (UNLIKELY(!record)) {
        PyErr_Clear(); /* the next attempt says so */
        return NULL;
    }
    unsigned char *result = bytes_of(record);
    bool taken = false;
    if (LIKELY(section_try(ring->shm_consumers_section, &ring->shm_words[CONSUMERS_TAKEOVERS]) == DONE)) {
        taken = ring_take(ring, &guess, result);
        STEP("P5 look", *sleepers = look(ring, PRODUCERS_SLEEPING));
        section_leave(ring->shm_consumers_section);
    }
    if (UNLIKELY(!taken))
        Py_CLEAR(record);
    return record;
}

/* Get the oldest record as soon as there is one. */
static __attribute__((noinline)) PyObject *get_in_turn(PyObject *self, int64_t deadline)
{
    PyObject *record = NULL;
    waiting_t waiting = {.slept = false};
    attempt_t attempt = {.length = 0};
    bool waited = false;
    core_t *core = core_of(self);
    if (!core)
        return NULL;
    ring_t *ring = &core->ring;
    for (int misfits = 0; misfits < MISFITS;) {
        uint64_t pos = look(ring, READ_POS), end = look(ring, SEEN_WRITE_POS);
        if (end == pos) {
            /* Not after a wait: this may be the answer to what was put elsewhere. */
            if (IPCMAP_LOOK_DIRECTLY && !waited)
                parking_fall_behind(ring, &ring->consumers);
            end = look_across(ring, WRITE_POS);
        }
        outcome_t outcome = ring_peek(ring, &pos, end, &attempt.length);
        if (outcome == UNUSUAL) {
            attempt.length = 0; /* it may have changed by the time we are inside */
            verdict_t verdict = get_large(self, core, pos, attempt.seen, &record);
            if (verdict == FAILED || record)
                goto done;
            if (verdict == GO_ON && ++misfits < MISFITS)
                continue;
        }
        if (outcome == NOTHING && IPCMAP_LOOK_DIRECTLY && pos == look(ring, READ_POS) && !look(ring, RETURNED)) {
            attempt.seen = end;
        } else {
            do {
                if (outcome == NOTHING || outcome == UNUSUAL)
                    attempt.length = 0;
                record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)attempt.length);
                if (!record)
                    goto done;
                attempt.result = bytes_of(record);
                outcome = try_to(core, GET, &attempt);
                bool called = call_listeners(self, GET, attempt.sleepers);
                if (LIKELY(outcome == DONE && called))
                    goto done;
                if (outcome == DONE)
                    return_all(self, Py_BuildValue("(O)", record));
                Py_CLEAR(record);
                if (!called)
                    goto done;
            } while (outcome == MISFIT && attempt.length <= ring->inline_limit && ++misfits < MISFITS);
        }
        if (outcome != NOTHING)
            break;
        waited = true;
        verdict_t verdict =
            wait_for_other(self, core, &ring->consumers, &attempt.seen, deadline, &waiting);
        if (verdict == FAILED)
            goto done;
        if (verdict == GIVE_UP)
            break;
    }
    PyObject *left = timeout_left(deadline);
    if (left) {
        pass_on(core, waiting.slept);
        record = PyObject_CallFunctionObjArgs(native_bound.get, self, left, NULL);
        Py_DECREF(left);
    }
done:
    pass_on(core, waiting.slept);
    Py_DECREF(core);
    return record;
}

PyObject *native_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"timeout", NULL};
    PyObject *values[2] = {NULL, NULL};
    int64_t deadline = FOR_EVER;
    uint64_t sleepers;
    bool plain = sorted(args, nargs, kwnames, names, values) && moment_of(values[0], &deadline);
    core_t *core = borrow_core(self);
    if (UNLIKELY(!core))
        return NULL;
    if (UNLIKELY(!plain || !is_good(core)))
        return as_called(native_bound.get, self, args, nargs, kwnames);
    PyObject *record = get_at_once(core, &sleepers);
    if (UNLIKELY(!record))
        return get_in_turn(self, deadline);
    if (UNLIKELY(!tell_others(self, core, GET, sleepers))) {
        return_all(self, Py_BuildValue("(O)", record));
        Py_CLEAR(record);
    }
    return record;
}

/* Add records of the lengths that lie before us to a list, for an attempt to fill them. */
static bool prepare(const ring_t *ring, PyObject *list, Py_ssize_t most, uint64_t stop,
                    result_t *results, attempt_t *attempt, outcome_t *outcome)
{
    uint64_t pos = look(ring, READ_POS), total = 0, length;
    uint64_t end = look(ring, SEEN_WRITE_POS);
    if (IPCMAP_LOOK_DIRECTLY || end == pos)
        end = look_across(ring, WRITE_POS);
    if (stop && end > stop)
        end = stop;
    attempt->count = 0;
    *outcome = UNUSUAL;
    if (pos > end && !stop)
        return true; /* nothing that will ever be put could be waited for */
    if (pos > end)
        pos = end;
    uint64_t begin = pos;
    *outcome = DONE;
    while (attempt->count < CHUNK && (Py_ssize_t)attempt->count < most && total < WINDOW) {
        if ((*outcome = ring_peek(ring, &pos, end, &length)) != DONE)
            break;
        PyObject *record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (!record)
            return false;
        results[attempt->count].result = bytes_of(record);
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

/* Add what the reference engine takes, if the next record is one for it. Why it takes
 * nothing is for the next call. */
static bool add_unusual(PyObject *self, const ring_t *ring, PyObject *list, Py_ssize_t most, uint64_t stop)
{
    uint64_t pos = look(ring, READ_POS), length;
    if (ring_peek(ring, &pos, stop, &length) != UNUSUAL)
        return true;
    PyObject *more = PyObject_CallFunction(native_bound.get_many, "Oni", self, most, 0);
    bool added = more && !PyList_SetSlice(list, PyList_Size(list), PyList_Size(list), more);
    Py_XDECREF(more);
    /* No other error may be dropped, least of all what a signal handler raised. */
    if (!added && PyErr_ExceptionMatches(native_bound.for_next_call)) {
        PyErr_Clear();
        return true;
    }
    return added;
}

PyObject *native_get_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"max_records", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *list = NULL;
    Py_ssize_t most = PY_SSIZE_T_MAX, taken = 0;
    result_t results[CHUNK];
    waiting_t waiting = {.slept = false};
    int64_t deadline;
    uint64_t stop = 0;
    attempt_t attempt = {.results = results};
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
            outcome = try_to(core, GET_MANY, &attempt);
            taken += outcome == DONE ? (Py_ssize_t)attempt.done : 0;
            if (!call_listeners(self, GET_MANY, attempt.sleepers))
                goto failed;
        }
        if (taken < PyList_Size(list) && PyList_SetSlice(list, taken, PyList_Size(list), NULL))
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
            wait_for_other(self, core, &ring->consumers, &attempt.seen, deadline, &waiting);
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
        pass_on(core, waiting.slept);
        list = PyObject_CallFunctionObjArgs(native_bound.get_many, self, number, left, NULL);
    }
    Py_XDECREF(left);
    Py_XDECREF(number);
    goto done;
failed:
    if (taken)
        return_all(self, PyList_GetSlice(list, 0, taken));
    Py_CLEAR(list);
done:
    pass_on(core, waiting.slept);
    Py_DECREF(core);
    return list;
}
