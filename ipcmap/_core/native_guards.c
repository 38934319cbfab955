/* native_guards.c -- acquire and release of locks and semaphores, as Python calls them.
 *
 * A call makes attempts (native_monitor.c) and waits between them: it looks on with the GIL,
 * then without, then sleeps. Whatever is unusual is left to the method of the same name that
 * the reference engine has, called with no section held and no sleeper counted: other
 * arguments, errors, no slot as yet, a journal, damage, a section that is not to be had for
 * long, the end of the time. So is a wait that was in vain for a whole slice: who looks at
 * the holders, takes over from the dead and says who is in the way is the reference engine.
 *
 * Who this process is, is read from the page that the kernel wipes in a child
 * (private_page.py), before each attempt: a handler that forks in a wait makes two callers
 * of it, and each is itself. The thread's number costs a system call, so each thread keeps
 * its own, with a mark of the process that asked: another such page has this one's mark.
 *
 * Signal handlers run between attempts, and once more after the last one: what a handler
 * raises then comes out of an acquire that has given back what it took. In a release one
 * runs only before the reference engine is asked, or as that calls those who listen, and what
 * it raises comes out of a release that is done. (As with all functions in C, one may run right after the return, before a
 * caller can note what was returned; `with` leaves no such moment.) */
#include "native_call.h"
#include "native_guards.h"
#include "native_monitor.h"

#include <sys/syscall.h>
#include <unistd.h>

/* A lock or a semaphore as a handle has it, in its slot `_native`. */
typedef struct {
    PyObject_HEAD
    monitor_t monitor;
    Py_buffer memory, words, own; /* of the block, its arena, this process's private page */
    const shm_word_t *shm_tag;    /* of the block */
    uint64_t tag;                 /* what it is, but for the owner, while the handle is good */
    PyObject *family;             /* keeps the private page mapped */
} guard_t;

static PyTypeObject *guard_type; /* for as long as the process lives */

enum { USUAL = 4 }; /* classes of handles */

static struct {
    PyTypeObject *type, *usual[USUAL]; /* of handles: the base of all, and most of them */
    Py_ssize_t offset;  /* of their slot */
    PyObject *acquire, *release, *call, *may_spin;
    PyObject *page;       /* keeps the next one's bytes mapped */
    _Atomic uint64_t *mark; /* of this process; 0 = it has none yet */
    int64_t slice;        /* nanoseconds asleep before the reference engine looks around */
} bound;

/* Who calls */

static _Thread_local struct {
    uint64_t mark, number;
} known; /* this thread's number, and which process it had that in */

static uint64_t learn_thread(void)
{
    static _Atomic uint64_t marks; /* in a child it goes on from its parent's */
    uint64_t none = 0;
    if (!atomic_load(bound.mark))
        atomic_compare_exchange_strong(bound.mark, &none, atomic_fetch_add(&marks, 1) + 1);
    known.number = (uint64_t)syscall(SYS_gettid);
    known.mark = atomic_load(bound.mark);
    return known.number;
}

/* This process as a holder, 0 = it has no slot yet. */
static inline uint64_t this_process(const guard_t *guard)
{
    const _Atomic uint64_t *own = guard->own.buf;
    uint64_t number = atomic_load_explicit(&own[OWN_NUMBER], memory_order_acquire); /* F3 know */
    uint64_t generation = atomic_load_explicit(&own[OWN_GENERATION], memory_order_relaxed);
    return number ? generation << HOLDER_BITS | number : 0;
}

static inline holder_t caller(const guard_t *guard)
{
    if (guard->monitor.what == SEMAPHORE)
        return (holder_t){.process = this_process(guard)};
    uint64_t mark = atomic_load_explicit(bound.mark, memory_order_relaxed);
    return (holder_t){
        .process = this_process(guard),
        .thread = LIKELY(mark && mark == known.mark) ? known.number : learn_thread(),
    };
}

/* Return what a handle has, as a new reference; NULL = the reference engine is to do it all. */
static inline guard_t *guard_of(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    bool usual = false;
    for (int index = 0; index < USUAL; index++)
        usual |= type == bound.usual[index]; /* which spares a search through the bases */
    if (UNLIKELY(!usual && (!bound.type || !PyType_IsSubtype(type, bound.type))))
        return NULL;
    PyObject *guard = *(PyObject **)((char *)self + bound.offset);
    if (UNLIKELY(!guard || Py_TYPE(guard) != guard_type))
        return NULL;
    Py_INCREF(guard);
    return (guard_t *)guard;
}

static inline bool is_current(const guard_t *guard)
{
    return (atomic_load_explicit(guard->shm_tag, memory_order_relaxed) & ~OWNER) == guard->tag;
}

/* Release */

/* DONE; CALL; or UNUSUAL: nothing was given back. */
static outcome_t release_once(guard_t *guard)
{
    holder_t me = caller(guard);
    outcome_t outcome = monitor_release(&guard->monitor, me);
    if (LIKELY(outcome != BUSY))
        return outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = monitor_release_soon(&guard->monitor, me);
    Py_END_ALLOW_THREADS
    return outcome;
}

/* Give back what was taken, as a handler has raised: its exception stays. */
static void give_back(PyObject *self, guard_t *guard)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    outcome_t outcome = release_once(guard);
    if (outcome != DONE)
        Py_XDECREF(PyObject_CallFunctionObjArgs(outcome == CALL ? bound.call : bound.release, self, NULL));
    PyErr_Restore(type, value, traceback);
}

static PyObject *guard_release(PyObject *self, PyObject *ignored)
{
    guard_t *guard = guard_of(self);
    PyObject *result = NULL;
    (void)ignored;
    if (LIKELY(guard && is_current(guard))) {
        outcome_t outcome = release_once(guard);
        if (LIKELY(outcome == DONE))
            result = Py_NewRef(Py_None);
        else if (outcome == CALL)
            result = PyObject_CallFunctionObjArgs(bound.call, self, NULL); /* W3 call */
        else if (PyErr_CheckSignals()) /* else it would be the first to run there, and nothing be done */
            give_back(self, guard);
        else
            result = PyObject_CallFunctionObjArgs(bound.release, self, NULL);
    } else {
        result = PyObject_CallFunctionObjArgs(bound.release, self, NULL);
    }
    Py_XDECREF((PyObject *)guard);
    return result;
}

static PyObject *guard_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    (void)args, (void)nargs;
    return guard_release(self, NULL);
}

/* Acquire */

/* DONE = taken; NOTHING = try again; UNUSUAL = the rest is the reference engine's; BUSY = an
 * exception. *give_up is when a wait without a token ends, 0 = it has not begun. */
static outcome_t wait_for(guard_t *guard, holder_t *me, int64_t deadline, int64_t *give_up)
{
    monitor_t *monitor = &guard->monitor;
    if (PyErr_CheckSignals())
        return BUSY;
    int spin = native_may_spin(bound.may_spin);
    if (spin < 0)
        return BUSY;
    if (spin && patience_glance(monitor_is_free, monitor))
        return NOTHING;
    *me = caller(guard);
    if (!me->process)
        return UNUSUAL; /* a child by now */
    outcome_t outcome;
    bool woken = false;
    Py_BEGIN_ALLOW_THREADS
    if (spin && patience_look_on(&monitor->patience, monitor_is_free, monitor, deadline)) {
        outcome = monitor_acquire_soon(monitor, *me);
    } else {
        int64_t now = monotonic_ns(), until;
        if (!*give_up)
            *give_up = now + bound.slice;
        until = *give_up < deadline ? *give_up : deadline;
        outcome = monitor_sleep(monitor, *me, until > now ? until - now : 0, &woken);
    }
    Py_END_ALLOW_THREADS
    if (woken)
        *give_up = 0;
    if (outcome == NOTHING && *give_up && monotonic_ns() >= *give_up)
        return UNUSUAL;
    return outcome == BUSY ? UNUSUAL : outcome;
}

/* Make an attempt, waiting for the section for a while: as wait_for. */
static outcome_t acquire_soon(guard_t *guard, holder_t me)
{
    outcome_t outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = monitor_acquire_soon(&guard->monitor, me);
    Py_END_ALLOW_THREADS
    return outcome == BUSY ? UNUSUAL : outcome;
}

/* Whether it was taken; UNUSUAL and BUSY as wait_for. */
static inline outcome_t acquire_by(PyObject *self, guard_t *guard, bool block, int64_t deadline)
{
    int64_t give_up = 0;
    for (;;) {
        holder_t me = caller(guard);
        if (UNLIKELY(!me.process || !is_current(guard)))
            return UNUSUAL;
        outcome_t outcome = monitor_acquire(&guard->monitor, me);
        if (UNLIKELY(outcome == NOTHING || outcome == BUSY)) {
            if (!block || (deadline != FOR_EVER && monotonic_ns() >= deadline))
                return UNUSUAL;
            /* What a held section guards may look free for as long as its holder is stopped. */
            outcome = outcome == BUSY ? acquire_soon(guard, me) : wait_for(guard, &me, deadline, &give_up);
        }
        if (UNLIKELY(outcome == UNUSUAL || outcome == BUSY))
            return outcome;
        if (outcome == NOTHING)
            continue;
        int raised = PyErr_CheckSignals();
        if (UNLIKELY(this_process(guard) != me.process)) {
            if (raised)
                return BUSY;
            continue; /* the child of a handler that forked: it was taken by the parent */
        }
        if (LIKELY(!raised))
            return DONE;
        give_back(self, guard);
        return BUSY;
    }
}

static PyObject *guard_acquire(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[2] = {"block", "timeout"};
    PyObject *values[2] = {NULL, NULL}, *result = NULL, *left;
    int block = 1;
    int64_t deadline = FOR_EVER;
    outcome_t outcome = UNUSUAL;
    guard_t *guard = guard_of(self);
    if (!guard)
        goto as_called;
    if (nargs || kwnames) {
        if (!sorted(args, nargs, kwnames, names, values))
            goto as_called;
        if (values[0] && (block = PyObject_IsTrue(values[0])) < 0)
            goto done;
        if (block && !moment_of(values[1], &deadline))
            goto as_called;
    }
    outcome = acquire_by(self, guard, block, deadline);
    if (LIKELY(outcome == DONE)) {
        result = Py_NewRef(Py_True);
    } else if (outcome == UNUSUAL && (left = block ? timeout_left(deadline) : Py_NewRef(Py_None))) {
        result = PyObject_CallFunctionObjArgs(bound.acquire, self, block ? Py_True : Py_False, left, NULL);
        Py_DECREF(left);
    }
    goto done;
as_called:
    result = as_called(bound.acquire, self, args, nargs, kwnames);
done:
    Py_XDECREF((PyObject *)guard);
    return result;
}

static PyObject *guard_enter(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return guard_acquire(self, NULL, 0, NULL);
}

/* Types */

static PyObject *guard_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"kind", "memory", "words", "tag_at", "tag", "own", "family", "initial", "entries", "maximum", NULL};
    static const char *const kinds[] = {[LOCK] = "lock", [RLOCK] = "rlock", [SEMAPHORE] = "semaphore"};
    const char *kind;
    PyObject *memory, *words, *own, *family;
    unsigned long long tag_at, tag, initial = 0, entries = 0, maximum = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sOOKKOO|KKK", names, &kind, &memory, &words, &tag_at, &tag,
                                     &own, &family, &initial, &entries, &maximum))
        return NULL;
    guard_t *self = (guard_t *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->family = Py_NewRef(family);
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(words, &self->words, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(own, &self->own, PyBUF_WRITABLE)) {
        Py_DECREF(self);
        return NULL;
    }
    monitor_t *monitor = &self->monitor;
    size_t what = 0;
    while (what < sizeof kinds / sizeof *kinds && strcmp(kind, kinds[what]))
        what++;
    uint64_t count = (uint64_t)self->memory.len / 8;
    if (what == sizeof kinds / sizeof *kinds || self->memory.len < M_LOCK_NBYTES || (uintptr_t)self->memory.buf % 64 ||
        (what == SEMAPHORE && (count < M_FIRST_ENTRY || entries > (count - M_FIRST_ENTRY) / M_ENTRY)) ||
        initial > maximum || maximum > M_MAX_VALUE || tag_at >= (uint64_t)self->words.len / 8 ||
        (uintptr_t)self->words.buf % 64 || self->own.len < 8 * (OWN_GENERATION + 1) || (uintptr_t)self->own.buf % 8) {
        PyErr_Format(PyExc_ValueError, "no lock has such figures: kind=%s, nbytes=%zd, initial=%llu, entries=%llu, maximum=%llu",
                     kind, self->memory.len, initial, entries, maximum);
        Py_DECREF(self);
        return NULL;
    }
    monitor->what = (int)what;
    monitor->shm_words = self->memory.buf;
    monitor->shm_section = (pthread_mutex_t *)((unsigned char *)self->memory.buf + M_SECTION);
    monitor->shm_parking = (sem_t *)((unsigned char *)self->memory.buf + M_PARKING);
    monitor->initial = initial;
    monitor->entries = entries;
    monitor->maximum = maximum;
    atomic_init(&monitor->own, M_FIRST_ENTRY);
    patience_begin(&monitor->patience);
    self->shm_tag = (shm_word_t *)self->words.buf + tag_at;
    self->tag = tag;
    return (PyObject *)self;
}

static void guard_dealloc(PyObject *self)
{
    guard_t *guard = (guard_t *)self;
    for (size_t index = 0; index < 3; index++) {
        Py_buffer *view = (Py_buffer *[]){&guard->memory, &guard->words, &guard->own}[index];
        if (view->obj)
            PyBuffer_Release(view);
    }
    Py_XDECREF(guard->family);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot guard_slots[] = {
    {Py_tp_doc, PyDoc_STR("A lock or a semaphore as one handle has it.")},
    {Py_tp_new, guard_new},
    {Py_tp_dealloc, guard_dealloc},
    {0, NULL},
};

static PyType_Spec guard_spec = {
    .name = "ipcmap._core.native.Guard",
    .basicsize = sizeof(guard_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = guard_slots,
};

static PyMethodDef methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))guard_acquire, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("See ipcmap.Lock.acquire.")},
    {"release", guard_release, METH_NOARGS, PyDoc_STR("See ipcmap.Lock.release.")},
    {"__enter__", guard_enter, METH_NOARGS, PyDoc_STR("Acquire it.")},
    {"__exit__", (PyCFunction)(void (*)(void))guard_exit, METH_FASTCALL, PyDoc_STR("Release it.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot methods_slots[] = {
    {Py_tp_doc, PyDoc_STR("The methods of locks and semaphores that are written in C.")},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec methods_spec = {
    .name = "ipcmap._core.native.GuardMethods",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = methods_slots,
};

int native_add_guards(PyObject *module)
{
    PyObject *base = PyType_FromSpec(&methods_spec);
    guard_type = (PyTypeObject *)PyType_FromSpec(&guard_spec);
    int failed = !base || !guard_type || PyModule_AddType(module, (PyTypeObject *)base) ||
                 PyModule_AddType(module, guard_type);
    Py_XDECREF(base);
    return failed ? -1 : 0;
}

PyObject *native_bind_guards(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"handle", "slot", "acquire", "release", "call", "may_spin", "page", "mark", "slice", "usual", NULL};
    PyObject *type, *slot, *acquire, *release, *call, *may_spin, *page, *usual;
    Py_buffer mark;
    double seconds;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOOOOw*dO!", names, &PyType_Type, &type, &slot, &acquire,
                                     &release, &call, &may_spin, &page, &mark, &seconds, &PyTuple_Type, &usual))
        return NULL;
    bool bad = bound.type || mark.len < 8 || (uintptr_t)mark.buf % 8 || PyTuple_Size(usual) != USUAL;
    Py_ssize_t offset = bad ? -1 : native_find_slot(type, slot);
    if (offset >= 0) {
        bound.type = (PyTypeObject *)Py_NewRef(type);
        bound.offset = offset;
        bound.acquire = Py_NewRef(acquire);
        bound.release = Py_NewRef(release);
        bound.call = Py_NewRef(call);
        bound.may_spin = Py_NewRef(may_spin);
        bound.page = Py_NewRef(page);
        bound.mark = mark.buf;
        bound.slice = (int64_t)(seconds * 1e9);
        for (int index = 0; index < USUAL; index++)
            bound.usual[index] = (PyTypeObject *)Py_NewRef(PyTuple_GetItem(usual, index)); /* kept for ever */
    } else if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "a class is bound once, with a slot of its own, its only one");
    }
    PyBuffer_Release(&mark);
    return offset < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *native_slice_guards(PyObject *module, PyObject *seconds)
{
    double slice = PyFloat_AsDouble(seconds);
    (void)module;
    if (slice == -1.0 && PyErr_Occurred())
        return NULL;
    bound.slice = (int64_t)(slice * 1e9);
    Py_RETURN_NONE;
}
