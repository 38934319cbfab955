/* native_layout.h -- where the shared words of a ring lie: ring_layout.py, for C.
 *
 * Nothing else computes an offset. A test compares the two files, by way of
 * native.layout. Words are u64; LEASE_* and RETURNED are changed by the Python
 * half of the engine alone (reference_ring_blocks). */
#ifndef IPCMAP_NATIVE_LAYOUT_H
#define IPCMAP_NATIVE_LAYOUT_H

#include <stdint.h>

/* Offsets in bytes. */
enum {
    PRODUCERS_SECTION = 0,
    CONSUMERS_PARKING = 128,
    CONSUMERS_SECTION = 192,
    PRODUCERS_PARKING = 320,
    RECORDS = 448,
    SLEEPERS = 32, /* in a parking place */
};

/* Indices of words. */
enum {
    WRITE_POS = 8,
    ROOM_END,
    SEEN_READ_POS,
    CLOSED,
    PUTS,
    PRODUCERS_TAKEOVERS,
    LISTENERS,
    CALLS,
    CONSUMERS_SLEEPING = (CONSUMERS_PARKING + SLEEPERS) / 8,
    READ_POS = 32,
    SEEN_WRITE_POS,
    ENDED,
    RETURNED,
    LEASE_OFFSET,
    LEASE_GENERATION,
    CONSUMERS_TAKEOVERS,
    PRODUCERS_SLEEPING = (PRODUCERS_PARKING + SLEEPERS) / 8,
    CAPACITY = 384 / 8,
    FIRST_RECORD = RECORDS / 8,
};

enum { HEADER = 8 }; /* bytes before a record's own */

#define OWNER ((UINT64_C(1) << 20) - 1) /* in the tag of a block: layout.py */

#define LENGTH_MASK UINT64_C(0xffffffff)
#define KIND_BITS (UINT64_C(3) << 32)
#define RECORD UINT64_C(0)
#define PADDING (UINT64_C(1) << 32)
#define BLOCK (UINT64_C(2) << 32)
#define TAKEN (UINT64_C(3) << 32)
#define NUMBER_SHIFT 34
#define NUMBER_ONE (UINT64_C(1) << NUMBER_SHIFT)
#define NUMBER_MASK ((UINT64_C(1) << 30) - 1)
#define NUMBER_BITS (NUMBER_MASK << NUMBER_SHIFT)

/* The word of sleepers: their count, and above it the mark of the listeners. */
#define SLEEPING UINT64_C(0xffffffff)
#define LISTENING (UINT64_C(1) << 32)

#define MIN_CAPACITY UINT64_C(64)
#define MAX_CAPACITY (UINT64_C(1) << 32)
#define LARGEST INT64_MAX /* of a position or count */
#define WINDOW (UINT64_C(1) << 18) /* bytes in front, where a small backlog stays */

/* Bytes that a record of so many takes, header and stub of the next not counted twice. */
#define TAKES(length) (((uint64_t)(length) + HEADER + 7) & ~UINT64_C(7))

#endif
