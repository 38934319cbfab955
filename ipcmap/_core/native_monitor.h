/* native_monitor.h -- a lock or a semaphore as one handle has it, for C.
 *
 *   native_locks.c, native_semaphores.c   what is taken and given, by one thread in the section
 *   native_monitor.c                      the section around it, the wait, the waking
 *   native_guards.c                       acquire and release as Python calls them
 *
 * The protocol is that of reference_monitor.py, reference_locks.py and
 * reference_semaphores.py, whose headers name the shared fields, the sync points, and
 * what holds if a process dies; the same names stand here. */
#ifndef IPCMAP_NATIVE_MONITOR_H
#define IPCMAP_NATIVE_MONITOR_H

#include "native.h"

typedef struct {
    enum { LOCK, RLOCK, SEMAPHORE } what;
    shm_word_t *shm_words; /* the block, in the region */
    pthread_mutex_t *shm_section;
    sem_t *shm_parking;
    uint64_t initial, entries, maximum; /* a semaphore's */
    _Atomic uint64_t own;               /* word of this process's entry, when last seen: a hint */
    patience_t patience;
} monitor_t;

/* Who takes or gives: the process as a holder (slot_layout: HOLDER_BITS), and its thread. */
typedef struct {
    uint64_t process, thread;
} holder_t;

static inline uint64_t monitor_word(const monitor_t *monitor, uint64_t index)
{
    return atomic_load_explicit(&monitor->shm_words[index], memory_order_relaxed);
}

/* With release order, so that a death never shows a later store without an earlier one. */
static inline void monitor_store(monitor_t *monitor, uint64_t index, uint64_t value)
{
    atomic_store_explicit(&monitor->shm_words[index], value, memory_order_release);
}

/* In the section. DONE; NOTHING = it is not there; UNUSUAL = the reference engine is to look,
 * and nothing was changed. *sleepers = how many are to be thought of, and above that the
 * mark of those who listen. */
outcome_t lock_take(monitor_t *, holder_t);
outcome_t lock_give(monitor_t *, uint64_t *sleepers);
outcome_t rlock_take(monitor_t *, holder_t);
outcome_t rlock_give(monitor_t *, holder_t, uint64_t *sleepers);
outcome_t semaphore_take(monitor_t *, holder_t);
outcome_t semaphore_give(monitor_t *, holder_t, uint64_t *sleepers);

/* From outside. Besides: BUSY = the section was not free within a moment; of a release,
 * CALL = given back, and those who listen are to be called. */
outcome_t monitor_acquire(monitor_t *, holder_t);
outcome_t monitor_release(monitor_t *, holder_t);

/* The same, not with the GIL, and by those who may wait for the section. */
outcome_t monitor_acquire_soon(monitor_t *, holder_t);
outcome_t monitor_release_soon(monitor_t *, holder_t);
outcome_t monitor_sleep(monitor_t *, holder_t, int64_t nanoseconds, bool *woken);

moved_t monitor_is_free; /* of a monitor_t: whether it looks as if there were something to take */

#endif
