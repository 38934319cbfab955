/* native.h -- what the C files of the native engine share: a ring as one process holds it.
 *
 *   native_allocator.c, native_cells.c   the cells of an arena, with headers of their own
 *   native_atomics.c   words that are changed in one step
 *   native_section.c   sections: robust mutexes, and what to do when one is not free
 *   native_ring.c      attempts to put and to get, made in a section, by one thread; the
 *                      usual ones of one record are in native_ring.h
 *   native_parking.c   waiting: spin, yield, park
 *   native_call.c      put, get, put_many, get_many as Python calls them,
 *                      with native_put.c, native_get.c and native_blocks.c
 *   native_monitor.c, native_locks.c, native_semaphores.c   locks and semaphores, with a
 *                      header of their own, and native_guards.c for Python
 *   native_objects.c   plain objects as records, and back
 *   native.c           the module
 *
 * The protocol is that of reference_ring.py, whose header names the shared fields,
 * the sync points, and what holds if a process dies; the same names stand here.
 * Rare paths are the Python code of the reference engine, in the same sections.
 *
 * Three rules keep Python out of sections:
 *   - Only native.c and the files of calls, cells and guards call Python, with no section held.
 *   - A thread that holds the GIL never waits for a section; it tries, and for more
 *     than a moment it lets go of the GIL first (the holder may be waiting for it).
 *   - A thread that holds a section never asks for the GIL. */
#ifndef IPCMAP_NATIVE_H
#define IPCMAP_NATIVE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "native_layout.h"
#include "native_sync_points.h"

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit words must be stored in one step");
_Static_assert(sizeof(_Atomic uint64_t) == 8, "a shared word is 8 bytes");
_Static_assert(sizeof(pthread_mutex_t) <= 64, "a section is 64 bytes");
_Static_assert(sizeof(sem_t) <= SLEEPERS, "a semaphore has the bytes before the sleepers");

/* Whether a side reads the other's position without entering the other's section.
 * In C each position is stored with release, and loaded with acquire; but the rare
 * paths store from Python, which orders nothing. On x86-64 the processor does. */
#ifndef IPCMAP_LOOK_DIRECTLY
#if defined(__x86_64__)
#define IPCMAP_LOOK_DIRECTLY 1
#else
#define IPCMAP_LOOK_DIRECTLY 0
#endif
#endif

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* What an attempt or a wait came to. */
typedef enum {
    DONE,
    MOVED,    /* the other side has moved on: try again */
    NOTHING,  /* no room, or no record, as yet */
    MISFIT,   /* the next record has another length than the one prepared for */
    BUSY,     /* another thread holds the section */
    UNUSUAL,  /* the reference engine is to do it: the end, a block, damage, re-entry */
    CALL,     /* done, and those who listen are to be called: of a release */
} outcome_t;

typedef _Atomic uint64_t shm_word_t;

/* How long to look on before a sleep, as experience has it. */
typedef struct {
    _Atomic int64_t worth;  /* nanoseconds of looking on that have lately paid */
    _Atomic uint64_t waits; /* since they do not */
    _Atomic bool shares;    /* whether what we waited for last came while another had our processor */
} patience_t;

/* One side's waiting: for a word of the other's, looked at in the other's section. */
typedef struct {
    pthread_mutex_t *shm_other_section;
    sem_t *shm_parking;
    uint64_t other_pos, other_ended, other_takeovers, sleepers; /* indices of words */
    patience_t patience;
    _Atomic bool spins;        /* whether a wait of this side last looked on before it slept */
    _Atomic int64_t looked_at; /* nanoseconds; when a look across last found little */
    _Atomic unsigned vain, skips; /* pauses in a row that brought nothing; looks without one, to come */
} side_t;

typedef struct {
    shm_word_t *shm_words; /* the ring, in the region */
    pthread_mutex_t *shm_producers_section, *shm_consumers_section;
    uint64_t capacity, mask, window;
    uint64_t inline_limit; /* longest record that needs no block */
    side_t producers, consumers;
} ring_t;

/* Shared words: never torn, and kept in the order of the program where it matters. */
static inline uint64_t look(const ring_t *ring, uint64_t index)
{
    return atomic_load_explicit(&ring->shm_words[index], memory_order_relaxed);
}

static inline uint64_t look_across(const ring_t *ring, uint64_t index)
{
    return atomic_load_explicit(&ring->shm_words[index], memory_order_acquire);
}

/* With release order, so that a death never shows a later store without an earlier one. */
static inline void store(ring_t *ring, uint64_t index, uint64_t value)
{
    atomic_store_explicit(&ring->shm_words[index], value, memory_order_release);
}

static inline uint64_t word_at(const ring_t *ring, uint64_t pos)
{
    return FIRST_RECORD + ((pos & ring->mask) >> 3);
}

static inline unsigned char *bytes_at(const ring_t *ring, uint64_t pos)
{
    return (unsigned char *)ring->shm_words + RECORDS + HEADER + (pos & ring->mask);
}

static inline int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* native_section.c: takeovers are counted in a word, or by nobody (NULL). */
void native_find_clock(void);
int native_sem_wait(sem_t *shm_parking, int64_t nanoseconds);
outcome_t section_settle(pthread_mutex_t *, shm_word_t *shm_takeovers, int answer);
outcome_t section_wait(pthread_mutex_t *, shm_word_t *shm_takeovers, int64_t nanoseconds);

static inline outcome_t section_try(pthread_mutex_t *shm_section, shm_word_t *shm_takeovers)
{
    SYNC_POINT("X1 enter", "before");
    int answer = pthread_mutex_trylock(shm_section);
    if (UNLIKELY(answer))
        return section_settle(shm_section, shm_takeovers, answer);
    SYNC_POINT("X1 enter", "after");
    return DONE;
}

static inline void section_leave(pthread_mutex_t *shm_section)
{
    STEP("X2 leave", pthread_mutex_unlock(shm_section));
}

/* native_ring.c: but for ring_open and ring_peek in its side's section, which the caller
 * enters and leaves. */
void ring_open(ring_t *, unsigned char *shm, uint64_t capacity, uint64_t inline_limit);

typedef struct {
    const unsigned char *data;
    uint64_t length;
} record_t;

outcome_t ring_put(ring_t *, const unsigned char *data, uint64_t length, uint64_t *seen);
outcome_t ring_put_many(ring_t *, const record_t *, size_t count, size_t *done, uint64_t *seen);
outcome_t ring_get(ring_t *, unsigned char *result, uint64_t *length, uint64_t *seen);

typedef struct {
    unsigned char *result;
    uint64_t length;
} result_t;

/* A block that carries a record: its place in the arena, and who is to have it. */
struct cells;
typedef struct {
    struct cells *cells;
    shm_word_t *shm_words; /* its own */
    uint64_t offset, generation, owner;
} block_t;

outcome_t ring_put_block(ring_t *, const block_t *, uint64_t *seen);
outcome_t ring_get_block(ring_t *, const block_t *, uint64_t *seen);
bool ring_names(const ring_t *, uint64_t pos, uint64_t *offset, uint64_t *generation);

outcome_t ring_get_many(ring_t *, const result_t *, size_t count, size_t *done, uint64_t *seen);
outcome_t ring_peek(const ring_t *, uint64_t *pos, uint64_t end, uint64_t *length);

static const int64_t LONGEST_SLICE = 1000000000; /* nanoseconds; what a lost token costs */

/* What one call remembers of its waits. */
typedef struct {
    bool slept;    /* a token may have been ours, so that whoever leaves now is to wake the next */
    int64_t slice; /* nanoseconds; of its next sleep, 0 = the first */
} waiting_t;

/* native_parking.c: not with the GIL, but for the glances, parking_fall_behind and the wakers. */
typedef bool moved_t(const void *what); /* whether another attempt may come off */
void patience_begin(patience_t *);
bool patience_glance(moved_t *, const void *what);
bool patience_look_on(patience_t *, moved_t *, const void *what, int64_t deadline);
bool parking_glance(const ring_t *, const side_t *, uint64_t seen);
void parking_fall_behind(const ring_t *, side_t *);
outcome_t parking_look(ring_t *, const side_t *, uint64_t *seen);
bool parking_look_on(const ring_t *, side_t *, uint64_t seen, int64_t deadline);
outcome_t parking_sleep(ring_t *, side_t *, uint64_t *seen, int64_t deadline, waiting_t *);
void parking_wake(sem_t *shm_parking);

static inline void parking_wake_next(const ring_t *ring, const side_t *side)
{
    uint64_t sleepers;
    STEP("P5 look", sleepers = look(ring, side->sleepers));
    if (sleepers & SLEEPING)
        parking_wake(side->shm_parking);
}

#endif
