/* native_threads_guards.c -- threads that take and give through the native engine, without Python.
 *
 *   native_threads_guards KIND THREADS ROUNDS
 *
 * KIND is lock, rlock, semaphore (a ledger with one token) or travels (a token that anybody
 * gives). What it guards is a plain number: a sanitizer of threads sees who adds to it
 * beside another, and the sum shows it without. Each thread is a process of its own to the
 * ledger. Exit status: 0 good, 1 not; what is wrong is on stderr. native_threads.py builds it. */
#include "native_monitor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_THREADS = 16 };

static const int64_t SLICE = 20000000; /* nanoseconds */

static monitor_t monitor;
static uint64_t rounds, total;

static void fail(const char *what, uint64_t a, uint64_t b)
{
    fprintf(stderr, "%s: %llu, %llu\n", what, (unsigned long long)a, (unsigned long long)b);
    _exit(1);
}

/* As acquire_by in native_guards.c does it, for ever. */
static void take(holder_t me)
{
    for (;;) {
        outcome_t outcome = monitor_acquire(&monitor, me);
        if (outcome == BUSY)
            outcome = monitor_acquire_soon(&monitor, me);
        bool woken;
        if (outcome == NOTHING && !patience_glance(monitor_is_free, &monitor) &&
            !patience_look_on(&monitor.patience, monitor_is_free, &monitor, INT64_MAX))
            outcome = monitor_sleep(&monitor, me, SLICE, &woken);
        if (outcome == DONE)
            return;
        /* Where there is a token and the one entry is in use, the reference engine looks. */
        if (outcome == UNUSUAL && monitor.what != SEMAPHORE)
            fail("take", outcome, me.process);
    }
}

static void give(holder_t me)
{
    outcome_t outcome = monitor_release(&monitor, me);
    while (outcome == BUSY)
        outcome = monitor_release_soon(&monitor, me);
    if (outcome != DONE)
        fail("give", outcome, me.process);
}

static void *work(void *argument)
{
    uint64_t name = (uint64_t)(uintptr_t)argument;
    holder_t me = {name, name};
    for (uint64_t round = 0; round < rounds; round++) {
        take(me);
        if (monitor.what == RLOCK)
            take(me);
        total++;
        if (monitor.what == RLOCK)
            give(me);
        give(me);
    }
    return NULL;
}

/* A fresh one, as reference_monitor.py and reference_semaphores.py make it. */
static void lay_out(const char *kind)
{
    unsigned char *shm = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shm == MAP_FAILED)
        fail("no memory", 4096, 0);
    monitor.shm_words = (shm_word_t *)shm;
    monitor.shm_section = (pthread_mutex_t *)(shm + M_SECTION);
    monitor.shm_parking = (sem_t *)(shm + M_PARKING);
    atomic_init(&monitor.own, M_FIRST_ENTRY);
    patience_begin(&monitor.patience);
    monitor.what = !strcmp(kind, "lock") ? LOCK : !strcmp(kind, "rlock") ? RLOCK : SEMAPHORE;
    if (monitor.what == SEMAPHORE) {
        monitor.initial = monitor.entries = monitor.maximum = 1;
        monitor_store(&monitor, M_VALUE, 1);
        monitor_store(&monitor, M_TRAVELS, !strcmp(kind, "travels"));
    }
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(monitor.shm_section, &attributes);
    sem_init(monitor.shm_parking, 1, 0);
}

int main(int count, char **arguments)
{
    pthread_t threads[MOST_THREADS];
    if (count != 4)
        fail("wrong number of arguments", (uint64_t)count, 4);
    native_find_clock();
    lay_out(arguments[1]);
    uint64_t most = strtoull(arguments[2], NULL, 10);
    rounds = strtoull(arguments[3], NULL, 10);
    if (most > MOST_THREADS)
        fail("too many threads", most, MOST_THREADS);
    for (uint64_t name = 0; name < most; name++)
        pthread_create(&threads[name], NULL, work, (void *)(uintptr_t)(name + 1));
    for (uint64_t name = 0; name < most; name++)
        pthread_join(threads[name], NULL);
    if (total != most * rounds)
        fail("two were inside", total, most * rounds);
    if (monitor_word(&monitor, M_SLEEPERS))
        fail("some sleep still", monitor_word(&monitor, M_SLEEPERS), 0);
    return 0;
}
