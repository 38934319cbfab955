/* native_call.h -- a call of Ring.put, get, put_many or get_many: attempts, and waits between.
 *
 * A call makes attempts (native_ring.c) in its side's section and waits between them
 * (native_parking.c) as Ring promises. A put or get of one record first makes one at once
 * (native_ring.h), by what is known of the other side already: most come to no more.
 * Whatever is unusual is left to the method of the same name that the reference engine
 * has, called outside of any section: other arguments than these understand, errors, the
 * end, a block in a batch, a returned lease, damage, a section that is not to be had for
 * long, the end of the timeout.
 *
 * Signal handlers run between attempts, with no section held and no sleeper counted;
 * who had slept then wakes the next (P4), for the token may have been theirs. */
#ifndef IPCMAP_NATIVE_CALL_H
#define IPCMAP_NATIVE_CALL_H

#include "native_core.h"
#include "native_ring.h"

static const int64_t LOCK_SLICE = 20000000; /* nanoseconds in which a section is to be had */
static const int64_t FOR_EVER = INT64_MAX;

enum { CHUNK = 256 }; /* records that are prepared for one section */

/* native_call.c */
core_t *no_core(PyObject *self);
bool sort_named(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                const char *const names[2], PyObject *values[2]);
bool moment_after(PyObject *timeout, int64_t *deadline);
PyObject *timeout_left(int64_t deadline);
PyObject *as_called(PyObject *method, PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                    PyObject *kwnames);

/* Return the core of a handle, for as long as nothing calls Python or lets go of the GIL. */
static inline core_t *borrow_core(PyObject *self)
{
    if (LIKELY(Py_IS_TYPE(self, native_bound.type)) ||
        (native_bound.type && PyType_IsSubtype(Py_TYPE(self), native_bound.type))) {
        PyObject *core = *(PyObject **)((char *)self + native_bound.core_offset);
        if (LIKELY(core && Py_TYPE(core) == native_core_type))
            return (core_t *)core;
    }
    return no_core(self);
}

/* Return the core of a handle, as a new reference. */
static inline core_t *core_of(PyObject *self)
{
    core_t *core = borrow_core(self);
    Py_XINCREF((PyObject *)core);
    return core;
}

/* Sort up to two arguments by place or name; false = something for the reference engine. */
static inline bool sorted(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                          const char *const names[2], PyObject *values[2])
{
    if (UNLIKELY(kwnames || nargs > 1)) {
        PyObject *found[2] = {NULL, NULL}; /* apart: what has no address stays in registers */
        bool plain = sort_named(args, nargs, kwnames, names, found);
        values[0] = found[0];
        values[1] = found[1];
        return plain;
    }
    if (nargs)
        values[0] = args[0];
    return true;
}

/* Turn a timeout into a moment; false = no timeout. */
static inline bool moment_of(PyObject *timeout, int64_t *deadline)
{
    int64_t after = FOR_EVER;
    bool plain = !timeout || timeout == Py_None || moment_after(timeout, &after);
    *deadline = after;
    return plain;
}

/* Whether the ring was not destroyed, as far as can be seen from outside. */
static inline bool is_good(const core_t *core)
{
    return (atomic_load_explicit(core->shm_tag, memory_order_relaxed) & ~OWNER) == core->tag;
}

/* Attempts */

typedef enum { PUT, PUT_MANY, PUT_BLOCK, GET, GET_MANY, GET_BLOCK } what_t;

typedef struct {
    const unsigned char *data;
    unsigned char *result;
    uint64_t length;
    const record_t *records;
    const result_t *results;
    const block_t *block;
    size_t count, done;
    uint64_t seen;     /* the other side's position, by which the attempt went */
    uint64_t sleepers; /* of the other side */
} attempt_t;

/* Make an attempt, in the section, and leave it. */
static inline __attribute__((always_inline)) outcome_t
make(ring_t *ring, what_t what, attempt_t *attempt, pthread_mutex_t *shm_section, const side_t *other)
{
    outcome_t outcome;
    switch (what) {
    case PUT:
        outcome = ring_put(ring, attempt->data, attempt->length, &attempt->seen);
        break;
    case PUT_MANY:
        outcome = ring_put_many(ring, attempt->records, attempt->count, &attempt->done, &attempt->seen);
        break;
    case PUT_BLOCK:
        outcome = ring_put_block(ring, attempt->block, &attempt->seen);
        break;
    case GET_BLOCK:
        outcome = ring_get_block(ring, attempt->block, &attempt->seen);
        break;
    case GET:
        outcome = ring_get(ring, attempt->result, &attempt->length, &attempt->seen);
        break;
    default:
        outcome = ring_get_many(ring, attempt->results, attempt->count, &attempt->done, &attempt->seen);
    }
    STEP("P5 look", attempt->sleepers = look(ring, other->sleepers));
    section_leave(shm_section);
    return outcome;
}

/* Enter the section, make an attempt, and wake a sleeper of the other side. With the GIL,
 * which is let go where the section is not free: its holder may be waiting for it. */
static inline __attribute__((always_inline)) outcome_t
try_to(core_t *core, what_t what, attempt_t *attempt)
{
    ring_t *ring = &core->ring;
    bool puts = what <= PUT_BLOCK;
    pthread_mutex_t *shm_section = puts ? ring->shm_producers_section : ring->shm_consumers_section;
    const side_t *other = puts ? &ring->consumers : &ring->producers;
    shm_word_t *shm_takeovers = &ring->shm_words[puts ? PRODUCERS_TAKEOVERS : CONSUMERS_TAKEOVERS];
    outcome_t outcome = section_try(shm_section, shm_takeovers);
    attempt->sleepers = 0;
    if (LIKELY(outcome == DONE)) {
        outcome = make(ring, what, attempt, shm_section, other);
    } else if (outcome == BUSY) {
        Py_BEGIN_ALLOW_THREADS
        outcome = section_wait(shm_section, shm_takeovers, LOCK_SLICE);
        if (outcome == DONE)
            outcome = make(ring, what, attempt, shm_section, other);
        Py_END_ALLOW_THREADS
    }
    if (UNLIKELY(attempt->sleepers & SLEEPING))
        parking_wake(other->shm_parking); /* P6 post */
    return outcome;
}

/* Call the listeners of the other side, if they were armed when the attempt was made; false
 * = an error, of a signal handler. */
static inline bool call_listeners(PyObject *self, what_t what, uint64_t sleepers)
{
    if (LIKELY(sleepers <= SLEEPING))
        return true;
    PyObject *puts = what <= PUT_BLOCK ? Py_True : Py_False;
    PyObject *nothing = PyObject_CallFunctionObjArgs(native_bound.call, self, puts, NULL); /* W3 call */
    Py_XDECREF(nothing);
    return nothing;
}

/* After an attempt that was made at once: wake a sleeper of the other side, and call_listeners. */
static inline bool tell_others(PyObject *self, const core_t *core, what_t what, uint64_t sleepers)
{
    const side_t *other = what <= PUT_BLOCK ? &core->ring.consumers : &core->ring.producers;
    if (LIKELY(!sleepers))
        return true;
    if (sleepers & SLEEPING)
        parking_wake(other->shm_parking); /* P6 post */
    return call_listeners(self, what, sleepers);
}

void return_all(PyObject *self, PyObject *taken);

typedef enum { FAILED = -1, GIVE_UP, GO_ON } verdict_t;

int native_may_spin(PyObject *ask);
verdict_t wait_for_other(PyObject *self, core_t *core, side_t *side, uint64_t *seen,
                         int64_t deadline, waiting_t *);

/* native_blocks.c */
verdict_t put_large(PyObject *self, core_t *, const unsigned char *data, uint64_t length, int64_t deadline);
verdict_t get_large(PyObject *self, core_t *, uint64_t pos, uint64_t seen, PyObject **record);

/* native_put.c, native_get.c */
PyObject *native_put(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *native_put_bytes(PyObject *, const unsigned char *data, uint64_t length, PyObject *timeout);
PyObject *native_put_many(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *native_get(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *native_get_many(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

#endif
