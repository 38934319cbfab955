/* native_threads.c -- threads that put and get through the native engine, without Python.
 *
 *   native_threads CAPACITY PRODUCERS CONSUMERS RECORDS SEED
 *
 * For a sanitizer of threads: the interpreter's lock would order what the engine has to
 * order itself. Each record says whose it is and which, and repeats it to its end; each
 * must come once, whole, and from one producer to one consumer in order.
 * Exit status: 0 good, 1 not; what is wrong is on stderr. native_threads.py builds it. */
#include "native_ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LONGEST = 240, BATCH = 5, MOST_THREADS = 8 };

static const int64_t SHORT_WAIT = 20000000; /* nanoseconds, in which a consumer sees that it is done */

static ring_t ring;
static uint64_t producers, consumers, records, seed;
static _Atomic uint64_t taken;
static unsigned char *came; /* of each producer's records, how often */

static void fail(const char *what, uint64_t a, uint64_t b)
{
    fprintf(stderr, "%s: %llu, %llu\n", what, (unsigned long long)a, (unsigned long long)b);
    _exit(1);
}

static void enter(pthread_mutex_t *shm_section, uint64_t takeovers)
{
    outcome_t outcome = section_try(shm_section, &ring.shm_words[takeovers]);
    while (outcome == BUSY)
        outcome = section_wait(shm_section, &ring.shm_words[takeovers], SHORT_WAIT);
    if (outcome != DONE)
        fail("section is not to be had", outcome, 0);
}

/* As wait_for_other in native_call.c does it. */
static void wait_for(side_t *side, uint64_t *seen, waiting_t *waited)
{
    int64_t deadline = monotonic_ns() + SHORT_WAIT;
    if (!IPCMAP_LOOK_DIRECTLY && parking_look(&ring, side, seen) == MOVED)
        return;
    bool moved = parking_look_on(&ring, side, *seen, deadline);
    if (moved && IPCMAP_LOOK_DIRECTLY)
        return;
    if (moved && parking_look(&ring, side, seen) != NOTHING)
        return;
    parking_sleep(&ring, side, seen, deadline, waited); /* UNUSUAL: its holder does not get to run */
}

static uint64_t mix(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void *produce(void *argument)
{
    uint64_t name = (uint64_t)(uintptr_t)argument, state = seed * 31 + name + 1, seen = 0;
    uint64_t longest = ring.inline_limit < LONGEST ? ring.inline_limit & ~UINT64_C(7) : LONGEST;
    static _Thread_local uint64_t data[BATCH][LONGEST / 8];
    for (uint64_t number = 0; number < records;) {
        record_t batch[BATCH];
        size_t count = 1 + mix(&state) % BATCH, begin = 0;
        if (count > records - number)
            count = (size_t)(records - number);
        for (size_t index = 0; index < count; index++) {
            uint64_t words = 1 + mix(&state) % (longest / 8);
            for (uint64_t word = 0; word < words; word++)
                data[index][word] = name << 32 | (number + index);
            batch[index] = (record_t){(unsigned char *)data[index], words * 8};
        }
        while (begin < count) {
            size_t done = 1;
            waiting_t waited = {.slept = false};
            enter(ring.shm_producers_section, PRODUCERS_TAKEOVERS);
            outcome_t outcome = count > 1 ? ring_put_many(&ring, batch + begin, count - begin, &done, &seen)
                                          : ring_put(&ring, batch->data, batch->length, &seen);
            uint64_t sleepers = look(&ring, ring.consumers.sleepers); /* P5 look */
            section_leave(ring.shm_producers_section);
            if (sleepers)
                parking_wake(ring.consumers.shm_parking); /* P6 post */
            if (outcome == DONE) {
                begin += done;
                seen = 0;
            } else if (outcome == NOTHING) {
                wait_for(&ring.producers, &seen, &waited);
            } else {
                fail("put", outcome, number);
            }
        }
        number += count;
    }
    return NULL;
}

static void check(const unsigned char *record, uint64_t length, uint64_t *next)
{
    uint64_t word, first;
    memcpy(&first, record, 8);
    uint64_t name = first >> 32, number = first & 0xffffffff;
    if (name >= producers || number >= records)
        fail("no record of ours", first, length);
    for (uint64_t at = 0; at < length; at += 8) {
        memcpy(&word, record + at, 8);
        if (word != first)
            fail("record is torn", first, word);
    }
    if (came[name * records + number]++)
        fail("record came twice", name, number);
    if (number < next[name])
        fail("record came out of order", name, number);
    next[name] = number + 1;
}

static void *consume(void *argument)
{
    uint64_t state = seed * 31 + (uint64_t)(uintptr_t)argument, seen = 0, next[MOST_THREADS] = {0};
    static _Thread_local unsigned char room[BATCH][LONGEST];
    while (atomic_load(&taken) < producers * records) {
        result_t results[BATCH];
        size_t most = 1 + mix(&state) % BATCH, count = 0, done = 0;
        waiting_t waited = {.slept = false};
        uint64_t pos = look(&ring, READ_POS), end = look_across(&ring, WRITE_POS), length;
        while (count < most && ring_peek(&ring, &pos, end, &length) == DONE && length <= LONGEST) {
            results[count] = (result_t){room[count], length};
            count++;
        }
        if (!count)
            results[count++] = (result_t){room[0], 8};
        guess_t guess;
        bool guessed = mix(&state) % 2 && ring_guess(&ring, &guess) && guess.length <= LONGEST;
        enter(ring.shm_consumers_section, CONSUMERS_TAKEOVERS);
        outcome_t outcome;
        if (guessed) {
            done = ring_take(&ring, &guess, room[0]);
            results[0].length = guess.length;
            outcome = done ? DONE : MISFIT;
        } else if (count > 1) {
            outcome = ring_get_many(&ring, results, count, &done, &seen);
        } else {
            outcome = ring_get(&ring, results->result, &results->length, &seen);
            done = outcome == DONE;
        }
        uint64_t sleepers = look(&ring, ring.producers.sleepers); /* P5 look */
        section_leave(ring.shm_consumers_section);
        if (sleepers)
            parking_wake(ring.producers.shm_parking); /* P6 post */
        for (size_t index = 0; index < done; index++)
            check(results[index].result, results[index].length, next);
        atomic_fetch_add(&taken, done);
        if (outcome == NOTHING)
            wait_for(&ring.consumers, &seen, &waited);
        else if (outcome == DONE)
            seen = 0;
        else if (outcome != MISFIT)
            fail("get", outcome, seen);
        if (waited.slept && look(&ring, READ_POS) != look(&ring, WRITE_POS))
            parking_wake_next(&ring, &ring.consumers);
    }
    return NULL;
}

/* A fresh ring, as reference_ring.py makes one. */
static void lay_out(uint64_t capacity)
{
    size_t nbytes = RECORDS + capacity;
    void *shm = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shm == MAP_FAILED)
        fail("no memory", nbytes, 0);
    ring_open(&ring, shm, capacity, capacity / 2 - HEADER);
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(ring.shm_producers_section, &kind);
    pthread_mutex_init(ring.shm_consumers_section, &kind);
    sem_init(ring.producers.shm_parking, 1, 0);
    sem_init(ring.consumers.shm_parking, 1, 0);
    store(&ring, CAPACITY, capacity);
}

int main(int count, char **arguments)
{
    pthread_t threads[2 * MOST_THREADS];
    if (count != 6)
        fail("wrong number of arguments", (uint64_t)count, 6);
    native_find_clock();
    lay_out(strtoull(arguments[1], NULL, 10));
    producers = strtoull(arguments[2], NULL, 10);
    consumers = strtoull(arguments[3], NULL, 10);
    records = strtoull(arguments[4], NULL, 10);
    seed = strtoull(arguments[5], NULL, 10);
    if (producers > MOST_THREADS || consumers > MOST_THREADS)
        fail("too many threads", producers, consumers);
    came = calloc(producers, records);
    for (uint64_t name = 0; name < producers + consumers; name++)
        pthread_create(&threads[name], NULL, name < producers ? produce : consume, (void *)(uintptr_t)name);
    for (uint64_t name = 0; name < producers + consumers; name++)
        pthread_join(threads[name], NULL);
    if (atomic_load(&taken) != producers * records)
        fail("records are missing", atomic_load(&taken), producers * records);
    return 0;
}
