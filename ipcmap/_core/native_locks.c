/* native_locks.c -- what is taken and given of a Lock and an RLock.
 *
 * The C twin of reference_locks.py, whose header names the shared fields, their guards,
 * and what holds if a process dies. Each function is one attempt, made in the section.
 *
 * Sync points
 *   M1 take   one store of the holder, or of the count by whom it is held already
 *   M2 give   the same; what is cleared besides is cleared before it */
#include "native_monitor.h"

/* CLOCK_MONOTONIC to the tick, some milliseconds: for people who look on. */
static uint64_t about_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

outcome_t lock_take(monitor_t *lock, holder_t me)
{
    if (monitor_word(lock, M_HOLDER))
        return NOTHING;
    STEP("thread", monitor_store(lock, M_THREAD, me.thread));
    STEP("since", monitor_store(lock, M_SINCE, about_now()));
    STEP("M1 take", monitor_store(lock, M_HOLDER, me.process));
    return DONE;
}

outcome_t lock_give(monitor_t *lock, uint64_t *sleepers)
{
    if (!monitor_word(lock, M_HOLDER))
        return UNUSUAL;
    if (UNLIKELY(monitor_word(lock, M_RECOVERED)))
        STEP("recovered", monitor_store(lock, M_RECOVERED, 0));
    STEP("M2 give", monitor_store(lock, M_HOLDER, 0));
    STEP("P5 look", *sleepers = monitor_word(lock, M_SLEEPERS));
    return DONE;
}

static bool is_ours(const monitor_t *lock, holder_t me)
{
    return me.process && monitor_word(lock, M_HOLDER) == me.process && monitor_word(lock, M_THREAD) == me.thread;
}

outcome_t rlock_take(monitor_t *lock, holder_t me)
{
    if (!is_ours(lock, me)) {
        if (monitor_word(lock, M_HOLDER))
            return NOTHING;
        STEP("count", monitor_store(lock, M_COUNT, 1));
        return lock_take(lock, me);
    }
    uint64_t count = monitor_word(lock, M_COUNT);
    if (!count || count >= M_MAX_VALUE)
        return UNUSUAL;
    STEP("M1 take again", monitor_store(lock, M_COUNT, count + 1));
    return DONE;
}

outcome_t rlock_give(monitor_t *lock, holder_t me, uint64_t *sleepers)
{
    uint64_t count = monitor_word(lock, M_COUNT);
    if (!is_ours(lock, me) || !count || count >= M_MAX_VALUE)
        return UNUSUAL;
    if (count == 1)
        return lock_give(lock, sleepers);
    STEP("M2 give a level", monitor_store(lock, M_COUNT, count - 1));
    *sleepers = 0;
    return DONE;
}
