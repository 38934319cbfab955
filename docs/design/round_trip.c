/* The stages of a round trip between two processes, for note 0006: nanoseconds each, five times.
 *
 *     cc -O2 -pthread docs/design/round_trip.c -o /tmp/round_trip && /tmp/round_trip */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TRIPS = 100000, RECORD = 72, ROOM = 1 << 18 };
enum stage { LINE, BYTES, SECTIONS, STAGES };

typedef struct {
    _Alignas(128) pthread_mutex_t producers;
    _Alignas(128) pthread_mutex_t consumers;
    _Alignas(128) _Atomic long write_pos;
    _Alignas(128) _Atomic long read_pos;
    _Alignas(128) char records[ROOM];
} way_t;

static char *record_at(way_t *way, long number)
{
    return way->records + number * RECORD % (ROOM - RECORD) / 8 * 8;
}

static void put(way_t *way, long number, enum stage stage)
{
    if (stage == SECTIONS)
        pthread_mutex_trylock(&way->producers);
    if (stage != LINE)
        memset(record_at(way, number), (int)number, RECORD);
    atomic_store_explicit(&way->write_pos, number, memory_order_release);
    if (stage == SECTIONS)
        pthread_mutex_unlock(&way->producers);
}

static void get(way_t *way, long number, enum stage stage)
{
    char record[RECORD];
    while (atomic_load_explicit(&way->write_pos, memory_order_acquire) < number)
        ;
    if (stage == LINE)
        return;
    if (stage == SECTIONS)
        pthread_mutex_trylock(&way->consumers);
    memcpy(record, record_at(way, number), RECORD);
    __asm__ volatile("" ::"r"(record) : "memory");
    atomic_store_explicit(&way->read_pos, number, memory_order_release);
    if (stage == SECTIONS)
        pthread_mutex_unlock(&way->consumers);
}

static double nanoseconds(way_t *there, way_t *back, enum stage stage)
{
    struct timespec begin, end;
    there->write_pos = back->write_pos = 0;
    pid_t echo = fork();
    if (echo == 0) {
        for (long number = 1; number <= TRIPS; number++) {
            get(there, number, stage);
            put(back, number, stage);
        }
        _exit(0);
    }
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (long number = 1; number <= TRIPS; number++) {
        put(there, number, stage);
        get(back, number, stage);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    waitpid(echo, NULL, 0);
    return ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) / TRIPS;
}

int main(void)
{
    static const char *const names[STAGES] = {"one line", "bytes and position", "and sections"};
    way_t *ways = mmap(NULL, 2 * sizeof *ways, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t robust;
    if (ways == MAP_FAILED)
        return 1;
    pthread_mutexattr_init(&robust);
    pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_settype(&robust, PTHREAD_MUTEX_ERRORCHECK);
    for (int way = 0; way < 2; way++) {
        pthread_mutex_init(&ways[way].producers, &robust);
        pthread_mutex_init(&ways[way].consumers, &robust);
    }
    for (int round = 0; round < 5; round++) {
        for (enum stage stage = LINE; stage < STAGES; stage++)
            printf("%s %.0f  ", names[stage], nanoseconds(&ways[0], &ways[1], stage));
        puts("");
    }
    return 0;
}
