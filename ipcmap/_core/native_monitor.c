/* native_monitor.c -- the section around what is taken and given, and the wait for it.
 *
 * The C twin of reference_monitor.py. Shared fields: the section and the parking place,
 * by the C library alone; sleepers, in the section; the rest in native_locks.c and
 * native_semaphores.c.
 *
 * Sync points
 *   M1 take, M2 give   in the section: one store each, see there
 *   P1 announce, P2 re-check   one visit of the section: not to be had, one sleeper more
 *   P3 sleep           the semaphore, for a slice at most
 *   P4 woken           in the section again: one sleeper less, after another attempt
 *   P5 look, P6 post   whoever gives: in the section, and outside of it
 *
 * The word of the sleepers has the mark of those who listen above their count. A release
 * that finds it says CALL, and the reference engine calls them, with no section held.
 *
 * Who leaves P4 wakes the next if there is something left to take, for the token may have
 * been theirs. Who finds the section taken for a whole LOCK_SLICE leaves everything to
 * the reference engine; who was asleep tries for longer, for a sleeper too many stays
 * counted then, as after a death. */
#include "native_monitor.h"

/* Nanoseconds in which a section is to be had. */
static const int64_t LOCK_SLICE = 20000000;
static const int64_t PATIENCE = 200000000; /* on leaving: who does not come in stays counted */

static inline outcome_t take(monitor_t *monitor, holder_t me)
{
    if (monitor->what == LOCK)
        return lock_take(monitor, me);
    return monitor->what == RLOCK ? rlock_take(monitor, me) : semaphore_take(monitor, me);
}

static inline outcome_t give(monitor_t *monitor, holder_t me, uint64_t *sleepers)
{
    if (monitor->what == LOCK)
        return lock_give(monitor, sleepers);
    return monitor->what == RLOCK ? rlock_give(monitor, me, sleepers) : semaphore_give(monitor, me, sleepers);
}

/* Enter the section by those who may wait for it. */
static outcome_t enter_soon(monitor_t *monitor, int64_t nanoseconds)
{
    outcome_t outcome = section_try(monitor->shm_section, NULL);
    return outcome == BUSY ? section_wait(monitor->shm_section, NULL, nanoseconds) : outcome;
}

static outcome_t take_and_leave(monitor_t *monitor, holder_t me, outcome_t entered)
{
    if (UNLIKELY(entered != DONE))
        return entered;
    outcome_t outcome = take(monitor, me);
    section_leave(monitor->shm_section);
    return outcome;
}

static outcome_t give_and_leave(monitor_t *monitor, holder_t me, outcome_t entered)
{
    uint64_t sleepers = 0;
    if (UNLIKELY(entered != DONE))
        return entered;
    outcome_t outcome = give(monitor, me, &sleepers);
    section_leave(monitor->shm_section);
    if (LIKELY(!sleepers))
        return outcome;
    if (sleepers & SLEEPING)
        parking_wake(monitor->shm_parking); /* P6 post */
    return sleepers > SLEEPING ? CALL : outcome;
}

outcome_t monitor_acquire(monitor_t *monitor, holder_t me)
{
    return take_and_leave(monitor, me, section_try(monitor->shm_section, NULL));
}

outcome_t monitor_release(monitor_t *monitor, holder_t me)
{
    return give_and_leave(monitor, me, section_try(monitor->shm_section, NULL));
}

outcome_t monitor_acquire_soon(monitor_t *monitor, holder_t me)
{
    return take_and_leave(monitor, me, enter_soon(monitor, LOCK_SLICE));
}

outcome_t monitor_release_soon(monitor_t *monitor, holder_t me)
{
    return give_and_leave(monitor, me, enter_soon(monitor, LOCK_SLICE));
}

bool monitor_is_free(const void *what)
{
    const monitor_t *monitor = what;
    return monitor->what == SEMAPHORE ? monitor_word(monitor, M_VALUE) : !monitor_word(monitor, M_HOLDER);
}

/* Take it, or sleep until woken, for so long at most, and take it then. DONE; NOTHING, and
 * whether a token came; BUSY or UNUSUAL. */
outcome_t monitor_sleep(monitor_t *monitor, holder_t me, int64_t nanoseconds, bool *woken)
{
    uint64_t sleepers;
    outcome_t outcome = enter_soon(monitor, LOCK_SLICE);
    *woken = false;
    if (outcome != DONE)
        return outcome;
    STEP("P2 re-check", outcome = take(monitor, me));
    if (outcome == NOTHING) {
        sleepers = monitor_word(monitor, M_SLEEPERS);
        STEP("P1 announce", monitor_store(monitor, M_SLEEPERS, sleepers + ((sleepers & SLEEPING) < SLEEPING)));
    }
    section_leave(monitor->shm_section);
    if (outcome != NOTHING)
        return outcome;
    STEP("P3 sleep", *woken = !native_sem_wait(monitor->shm_parking, nanoseconds));
    outcome = enter_soon(monitor, PATIENCE);
    if (outcome != DONE) {
        if (*woken)
            parking_wake(monitor->shm_parking); /* for another: it may not have been our turn alone */
        return outcome;
    }
    outcome = take(monitor, me);
    sleepers = monitor_word(monitor, M_SLEEPERS);
    sleepers -= (sleepers & SLEEPING) > 0;
    STEP("P4 woken", monitor_store(monitor, M_SLEEPERS, sleepers));
    section_leave(monitor->shm_section);
    if (sleepers & SLEEPING && monitor_is_free(monitor))
        parking_wake(monitor->shm_parking);
    return outcome;
}
