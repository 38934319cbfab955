/* native_sync_points.h -- the steps of the protocol by name, for tests to strike at.
 *
 *   STEP(name, statement)          what others can see, or what a death cuts off
 *   COPY(name, to, from, nbytes)   the bytes of a record: a death may leave half of them
 *   SYNC_POINT(name, moment)       a moment that is neither
 *
 * Built as usual, they are the statement alone. With -DIPCMAP_SYNC_POINTS each moment
 * (before, after, and amid the bytes) is a point that native_sync_points.c can find and
 * count, and at which it sends its own thread a signal. Only tests/native_build.py
 * builds that: it is never installed.
 *
 * A point is told by its name, the function in which it stands, and the moment; the same
 * inline function in several files is one. So a step needs no other list than the code. */
#ifndef IPCMAP_NATIVE_SYNC_POINTS_H
#define IPCMAP_NATIVE_SYNC_POINTS_H

#include <string.h>

#ifdef IPCMAP_SYNC_POINTS

typedef struct {
    const char *name, *function, *moment;
} sync_point_t;

void native_sync_point(const sync_point_t *);

/* Pointers, and not the points: what is put into a section by name may be aligned more
 * widely than an array is. */
#define SYNC_POINT(step, when)                                                                     \
    do {                                                                                           \
        static const sync_point_t point_here = {step, __func__, when};                             \
        static const sync_point_t *const point_entry                                               \
            __attribute__((section("ipcmap_sync_points"), used)) = &point_here;                    \
        native_sync_point(&point_here);                                                            \
    } while (0)

#define COPY(name, to, from, nbytes)                                                               \
    do {                                                                                           \
        size_t half_of = (size_t)(nbytes) / 2;                                                     \
        SYNC_POINT(name, "before");                                                                \
        memcpy((to), (from), half_of);                                                             \
        SYNC_POINT(name, "amid");                                                                  \
        memcpy((to) + half_of, (from) + half_of, (size_t)(nbytes) - half_of);                      \
        SYNC_POINT(name, "after");                                                                 \
    } while (0)

#else

#define SYNC_POINT(step, when) ((void)0)
#define COPY(name, to, from, nbytes) memcpy((to), (from), (nbytes))

#endif

#define STEP(name, ...)                                                                            \
    do {                                                                                           \
        SYNC_POINT(name, "before");                                                                \
        __VA_ARGS__;                                                                               \
        SYNC_POINT(name, "after");                                                                 \
    } while (0)

#endif
