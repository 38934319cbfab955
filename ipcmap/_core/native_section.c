/* native_section.c -- sections: robust, process-shared, errorcheck pthread mutexes.
 *
 * The C twin of reference_sections.py; its header says what a section is. A mutex is
 * initialised by that file and written by the C library alone.
 *
 * Sync points
 *   X1 enter   trylock or the timed lock succeeded: all stores of the last owner are seen
 *   X2 leave   unlock, after the owner's last store (section_leave)
 *
 * If a process dies between X1 and X2, the next to enter gets EOWNERDEAD, makes the
 * mutex consistent and counts the takeover, where somebody wants to know. There is nothing
 * to repair here: each change of a ring or of a lock is one store, and a semaphore has a
 * journal, at which whoever enters looks first. Dying between EOWNERDEAD and consistent() hands it to the next
 * in the same way.
 *
 * Not here: waiting for long, and its deadline. Whoever does not get a section in a
 * slice leaves the rest to reference_sections.enter, which runs signal handlers. */
#include "native.h"

#include <dlfcn.h>
#include <errno.h>

/* The monotonic clock for waits, from glibc 2.30 on; musl and older ones have the wall clock. */
typedef int clocklock_t(pthread_mutex_t *, clockid_t, const struct timespec *);
typedef int clockwait_t(sem_t *, clockid_t, const struct timespec *);
static clocklock_t *clocklock;
static clockwait_t *clockwait;

enum { TRIES = 24 }; /* before sleeping: some microseconds; a section is held for less */

void native_find_clock(void)
{
#ifndef __SANITIZE_THREAD__ /* which does not see who enters by this one, and would call it a race */
    *(void **)&clocklock = dlsym(RTLD_DEFAULT, "pthread_mutex_clocklock");
#endif
    *(void **)&clockwait = dlsym(RTLD_DEFAULT, "sem_clockwait");
}

static struct timespec after(clockid_t clock, int64_t nanoseconds)
{
    struct timespec moment;
    clock_gettime(clock, &moment);
    nanoseconds += moment.tv_nsec;
    moment.tv_sec += nanoseconds / 1000000000;
    moment.tv_nsec = nanoseconds % 1000000000;
    return moment;
}

/* Sleep until there is a token, for so long at most; 0, or errno. */
int native_sem_wait(sem_t *shm_parking, int64_t nanoseconds)
{
    clockid_t clock = clockwait ? CLOCK_MONOTONIC : CLOCK_REALTIME;
    struct timespec until = after(clock, nanoseconds);
    int answer = clockwait ? clockwait(shm_parking, clock, &until) : sem_timedwait(shm_parking, &until);
    return answer ? errno : 0;
}

static outcome_t take_over(pthread_mutex_t *shm_section, shm_word_t *shm_takeovers)
{
    int answer;
    STEP("X1 make consistent", answer = pthread_mutex_consistent(shm_section));
    if (answer)
        return UNUSUAL;
    if (shm_takeovers) {
        uint64_t takeovers = atomic_load_explicit(shm_takeovers, memory_order_relaxed);
        STEP("X1 count the takeover", atomic_store_explicit(shm_takeovers, takeovers + 1, memory_order_release));
    }
    return DONE;
}

/* Finish what trylock began: DONE = entered, BUSY = not within a moment, or UNUSUAL. */
outcome_t section_settle(pthread_mutex_t *shm_section, shm_word_t *shm_takeovers, int answer)
{
    for (int tries = 0; answer == EBUSY && tries < TRIES; tries++) {
        for (int pauses = 0; pauses <= tries; pauses++)
            relax();
        SYNC_POINT("X1 enter", "before");
        answer = pthread_mutex_trylock(shm_section);
    }
    if (!answer) {
        SYNC_POINT("X1 enter", "after");
        return DONE;
    }
    if (answer == EOWNERDEAD)
        return take_over(shm_section, shm_takeovers);
    return answer == EBUSY ? BUSY : UNUSUAL;
}

/* Wait for a section, for so long at most, as section_settle. Not with the GIL. */
outcome_t section_wait(pthread_mutex_t *shm_section, shm_word_t *shm_takeovers, int64_t nanoseconds)
{
    clockid_t clock = clocklock ? CLOCK_MONOTONIC : CLOCK_REALTIME;
    struct timespec until = after(clock, nanoseconds);
    SYNC_POINT("X1 enter", "before");
    int answer = clocklock ? clocklock(shm_section, clock, &until)
                           : pthread_mutex_timedlock(shm_section, &until);
    if (!answer) {
        SYNC_POINT("X1 enter", "after");
        return DONE;
    }
    if (answer == EOWNERDEAD)
        return take_over(shm_section, shm_takeovers);
    return answer == ETIMEDOUT ? BUSY : UNUSUAL;
}
