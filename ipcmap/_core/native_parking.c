/* native_parking.c -- how a side waits for the other: look, yield, park.
 *
 * The C twin of reference_parking.py, which has the loop and its reasons, and of `wait`
 * in reference_ring_waiting.py. Who waits for a lock or a semaphore looks on and wakes by
 * the same functions; its sleep is native_monitor.c's. Shared fields
 *   semaphore    wakes, and says nothing                     the C library alone
 *   sleepers     waiters between P1 and P4, or too many      in the section of the other
 *                                                            side, whose position they await
 *
 * Sync points
 *   P1 announce, P2 re-check   one visit of the other's section: position unmoved, not
 *              ended, one sleeper more
 *   P3 sleep   the semaphore, for a slice at most
 *   P4 woken   in the section again: one sleeper less
 *   P5 look    the other side, in its section, after its R1 or R2
 *   P6 post    outside, if no token lies there
 * P1, P2 and P5 are in one section, so no wake-up is lost. If a process dies between P1
 * and P4, sleepers stays too high, which costs looks; one that dies with a token in
 * hand, or before P6, costs a sleeper its slice.
 *
 * Before parking, the side looks on for as long as that has lately been worth: each
 * failure halves the time, to nothing in the end, and a success makes it several times
 * what it took. Where it is nothing, one wait in PROBE_EVERY tries again. So a side whose
 * peer answers at once never sleeps, and one that waits for long, or shares a processor
 * with its peer, sleeps at once. With less than two processors nobody
 * looks on (processors.py, which the caller asks).
 *
 * The scheduler likes to put two who wake each other on one processor, also where there
 * are more. There each look is in vain until the other gets the processor. So where what was
 * awaited came during a short absence, and was there at the first look after it, the next
 * wait gives the processor away at once. A long absence is no such sign: then somebody
 * else had it.
 *
 * A signal that comes after the last look for signals (native_call.c) and before the
 * kernel has put the thread to sleep does not end the sleep: nothing waits for a
 * semaphore and lets signals in, in one step, as ppoll does for descriptors. Its handler
 * runs at the end of the slice. So slices grow: a call that has just begun to wait
 * sleeps for 10 ms at first, and each time that nothing came for eight times as long, up to
 * a second. Such a signal waits for about as long as the call had, not for a second. Most
 * sleeps are the first of their call, and end by a token long before the slice does. A
 * call that waits for a second visits the other's section three times more for it, and
 * one that waits for an hour no more often. */
#include "native.h"

#include <errno.h>
#include <sched.h>

/* Nanoseconds. */
static const int64_t FIRST_SLICE = 10000000; /* asleep at most, in the first sleep of a call */
static const int64_t PATIENCE = 200000000;  /* for the other's section, on leaving */
static const int64_t LOCK_SLICE = 20000000; /* of that, in one call */
static const int64_t GLANCE = 400;          /* with the GIL */
static const int64_t LEAST_LOOKING = 2000, MOST_LOOKING = 50000, PROBE = 50000;
static const int64_t PURE_LOOKING = 10000;  /* then between looks give way to others */
static const int64_t A_MOMENT = 1000;       /* between two looks that find little */
static const int64_t BEHIND = 2000;         /* with the GIL; how much later a record may be had */
static const uint64_t ENOUGH = 8192;        /* bytes of records */

enum {
    SLICE_GROWS = 8,   /* times, each sleep of a call in which nothing came */
    LOOKS_A_CLOCK = 8, /* looks between two readings of the clock */
    PAUSES_A_LOOK = 32,
    PROBE_EVERY = 32,
    MOST_VAIN = 7, /* times in a row that count */
};

void patience_begin(patience_t *patience)
{
    atomic_init(&patience->worth, 20000);
    atomic_init(&patience->waits, 0);
    atomic_init(&patience->shares, false);
}

/* Look a few hundred nanoseconds whether another attempt may come off. */
bool patience_glance(moved_t *moved, const void *what)
{
    int64_t until = monotonic_ns() + GLANCE;
    do {
        for (int looks = 0; looks < LOOKS_A_CLOCK; looks++) {
            if (moved(what))
                return true;
            relax();
        }
    } while (monotonic_ns() < until);
    return false;
}

/* The same for longer, as long as it has been worth. */
bool patience_look_on(patience_t *patience, moved_t *moved, const void *what, int64_t deadline)
{
    int64_t begin = monotonic_ns(), now = begin;
    int64_t worth = atomic_load_explicit(&patience->worth, memory_order_relaxed), tried = worth;
    int64_t pure = atomic_load_explicit(&patience->shares, memory_order_relaxed) ? 0 : PURE_LOOKING, away = 0;
    if (!worth) {
        if (atomic_fetch_add_explicit(&patience->waits, 1, memory_order_relaxed) % PROBE_EVERY)
            return false;
        tried = PROBE;
    }
    while (now - begin < tried && now < deadline) {
        if (now - begin >= pure) {
            int64_t left = now;
            sched_yield();
            now = monotonic_ns();
            away = now - left;
        }
        for (int looks = 0; looks < LOOKS_A_CLOCK; looks++) {
            if (moved(what)) {
                int64_t ample = 4 * (now - begin) + LEAST_LOOKING;
                ample = ample < worth ? worth : ample < MOST_LOOKING ? ample : MOST_LOOKING;
                atomic_store_explicit(&patience->worth, ample, memory_order_relaxed);
                bool shares = !looks && away > A_MOMENT && away < MOST_LOOKING;
                atomic_store_explicit(&patience->shares, shares, memory_order_relaxed);
                return true;
            }
            relax();
        }
        now = monotonic_ns();
    }
    atomic_store_explicit(&patience->worth, worth < LEAST_LOOKING ? 0 : worth / 2, memory_order_relaxed);
    atomic_store_explicit(&patience->shares, false, memory_order_relaxed);
    return false;
}

/* What a side of a ring waits for. */
typedef struct {
    const shm_word_t *shm_pos; /* the other's */
    uint64_t seen;
} awaited_t;

static bool has_moved(const void *what)
{
    const awaited_t *awaited = what;
    return atomic_load_explicit(awaited->shm_pos, memory_order_relaxed) != awaited->seen;
}

bool parking_glance(const ring_t *ring, const side_t *side, uint64_t seen)
{
    if (atomic_load_explicit(&side->patience.shares, memory_order_relaxed))
        return false; /* the other side runs while we do not */
    const awaited_t awaited = {&ring->shm_words[side->other_pos], seen};
    return patience_glance(has_moved, &awaited);
}

bool parking_look_on(const ring_t *ring, side_t *side, uint64_t seen, int64_t deadline)
{
    const awaited_t awaited = {&ring->shm_words[side->other_pos], seen};
    return patience_look_on(&side->patience, has_moved, &awaited, deadline);
}

/* Bytes that lie ready for a side: records, or room. From outside, so it is a hint. */
static uint64_t ahead_of(const ring_t *ring, const side_t *side)
{
    uint64_t backlog = look(ring, WRITE_POS) - look(ring, READ_POS);
    return side == &ring->consumers ? backlog : ring->capacity - backlog;
}

/* Before a look across that finds little, as the last one did a moment ago, let the other
 * side get ahead. Where one side follows the other record by record, each look takes the
 * other's line away from it, and both wait for lines more than they work. Whoever catches
 * up is the faster side, and loses no time by it. Each time that it was in vain, twice as
 * many looks go without it. */
void parking_fall_behind(const ring_t *ring, side_t *side)
{
    uint64_t enough = ring->capacity / 8, ahead = ahead_of(ring, side);
    if (side == &ring->consumers && enough > ENOUGH)
        enough = ENOUGH;
    if (!ahead || ahead > enough / 4 || !atomic_load_explicit(&side->spins, memory_order_relaxed))
        return;
    unsigned skips = atomic_load_explicit(&side->skips, memory_order_relaxed);
    if (skips) {
        atomic_store_explicit(&side->skips, skips - 1, memory_order_relaxed);
        return;
    }
    int64_t now = monotonic_ns(), looked_at = atomic_load_explicit(&side->looked_at, memory_order_relaxed);
    atomic_store_explicit(&side->looked_at, now, memory_order_relaxed);
    if (now - looked_at > A_MOMENT)
        return;
    uint64_t before = ahead;
    for (int64_t until = now + BEHIND; now < until && ahead < enough; now = monotonic_ns()) {
        for (int pauses = 0; pauses < PAUSES_A_LOOK; pauses++)
            relax();
        ahead = ahead_of(ring, side);
    }
    /* In vain: perhaps this thread is both sides. */
    unsigned vain = atomic_load_explicit(&side->vain, memory_order_relaxed);
    vain = ahead != before ? 0 : vain < MOST_VAIN ? vain + 1 : MOST_VAIN;
    atomic_store_explicit(&side->vain, vain, memory_order_relaxed);
    atomic_store_explicit(&side->skips, (1u << vain) - 1, memory_order_relaxed);
}

/* Visit the other's section: look, and be a sleeper or be none any more. */
static outcome_t visit(ring_t *ring, const side_t *side, uint64_t *seen, int arriving, int leaving)
{
    int64_t give_up = monotonic_ns() + PATIENCE;
    shm_word_t *shm_takeovers = &ring->shm_words[side->other_takeovers];
    outcome_t entered = section_try(side->shm_other_section, shm_takeovers);
    while (entered == BUSY && monotonic_ns() < give_up)
        entered = section_wait(side->shm_other_section, shm_takeovers, LOCK_SLICE);
    if (entered != DONE)
        return UNUSUAL;
    uint64_t pos, ended;
    STEP("P2 re-check", pos = look(ring, side->other_pos), ended = look(ring, side->other_ended));
    if (leaving || (arriving && pos == *seen && !ended)) {
        uint64_t sleepers = look(ring, side->sleepers);
        if (arriving && (sleepers & SLEEPING) < SLEEPING)
            STEP("P1 announce", store(ring, side->sleepers, sleepers + 1));
        else if (leaving && sleepers & SLEEPING)
            STEP("P4 woken", store(ring, side->sleepers, sleepers - 1));
    }
    section_leave(side->shm_other_section);
    if (pos < *seen)
        return UNUSUAL;
    if (pos == *seen)
        return ended ? UNUSUAL : NOTHING;
    *seen = pos;
    return MOVED;
}

/* Look across, in the other's section. */
outcome_t parking_look(ring_t *ring, const side_t *side, uint64_t *seen)
{
    return visit(ring, side, seen, 0, 0);
}

/* Sleep until the other side moves beyond *seen: MOVED, NOTHING = not in this slice, or
 * before the deadline, or a signal came; UNUSUAL = never. */
outcome_t parking_sleep(ring_t *ring, side_t *side, uint64_t *seen, int64_t deadline, waiting_t *waiting)
{
    int64_t left = deadline - monotonic_ns(), slice = waiting->slice ? waiting->slice : FIRST_SLICE;
    outcome_t outcome = visit(ring, side, seen, 1, 0);
    if (outcome != NOTHING)
        return outcome;
    waiting->slept = true;
    left = left < 0 ? 0 : left < slice ? left : slice;
    STEP("P3 sleep", native_sem_wait(side->shm_parking, left));
    outcome = visit(ring, side, seen, 0, 1);
    if (outcome == NOTHING)
        waiting->slice = slice < LONGEST_SLICE / SLICE_GROWS ? slice * SLICE_GROWS : LONGEST_SLICE;
    else
        waiting->slice = 0;
    if (outcome == UNUSUAL || (outcome == MOVED && side == &ring->producers))
        parking_wake_next(ring, side);
    return outcome;
}

/* Wake one sleeper, unless a token for one lies there already. */
void parking_wake(sem_t *shm_parking)
{
    int value = 1;
    if (!sem_getvalue(shm_parking, &value) && value == 0)
        STEP("P6 post", sem_post(shm_parking));
}
