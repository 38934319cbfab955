/* native_layout.h -- where the shared words lie: ring_layout.py, layout.py and
 * monitor_layout.py, for C.
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
    CONSUMERS_TAKEOVERS, JOINERS,
    PRODUCERS_SLEEPING = (PRODUCERS_PARKING + SLEEPERS) / 8,
    ROOM_LISTENERS, ROOM_CALLS,
    CAPACITY = 384 / 8,
    FIRST_RECORD = RECORDS / 8,
};

enum { HEADER = 8 }; /* bytes before a record's own */

/* The allocator's: layout.py. Indices of words, in an arena and in a line of its class table. */
enum { ALLOCATOR_SECTION = 128 }; /* offset in bytes */
enum { JOURNAL = 256 / 8, BYTES_IN_USE, SWEPT_AT, WARM_BYTES };
enum { CLASS_HIGH_WATER, CLASS_CURSOR, CLASS_USED, CLASS_USED_NBYTES, CLASS_WARM };

#define SMALLEST_CELL UINT64_C(64)

/* A tag. */
#define OWNER ((UINT64_C(1) << 20) - 1)
#define USED (UINT64_C(1) << 20)
#define RETIRED (UINT64_C(1) << 21)
#define WARM (UINT64_C(1) << 22)
#define ZERO_BIT (UINT64_C(1) << 23)
#define KIND_SHIFT 24
#define KINDS UINT64_C(256)
#define GENERATION_SHIFT 32
#define STATE (UINT64_C(0xffffffff) & ~WARM)
#define KIND_RECORD UINT64_C(1)
#define FIRST_OF_RING KIND_RECORD /* kinds that a ring passes on: RECORD to LEAVING */
#define LAST_OF_RING UINT64_C(5)

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

/* The first words of a block that carries a record. */
enum { B_RING, B_RING_GENERATION, B_POS, B_NBYTES, B_CALL, B_AGAIN };
enum { BLOCK_HEADER = 64 }; /* bytes */
/* The word of sleepers: their count, and above it the mark of the listeners. */
#define SLEEPING UINT64_C(0xffffffff)
#define LISTENING (UINT64_C(1) << 32)

/* A lock's and a semaphore's: monitor_layout.py, with M_ before each name. */
enum { M_SECTION = 0, M_PARKING = 64 }; /* offsets in bytes */
enum {
    M_SLEEPERS = (M_PARKING + SLEEPERS) / 8,
    M_HOLDER = 128 / 8,
    M_THREAD,
    M_COUNT,
    M_RECOVERED,
    M_SINCE,
    M_LOCK_NBYTES = 168, /* bytes */
};
enum {
    M_INITIAL = 128 / 8,
    M_ENTRIES,
    M_VALUE,
    M_TRAVELS,
    M_RETURNED,
    M_LEFT,
    M_JOURNAL,
    M_NEXT_RETURNED,
    M_NEXT_LEFT,
    M_MAXIMUM,
    M_FIRST_ENTRY = 256 / 8,
    M_ENTRY = 2, /* words: who, and how many */
};
#define M_MAX_VALUE UINT64_C(0x7fffffff)

/* A process as a holder: slot_layout.py; and where its private page has the two parts
 * (reference_slots.py), in words. */
#define HOLDER_BITS 22
enum { OWN_NUMBER = 0, OWN_GENERATION = 2 };

#define MIN_CAPACITY UINT64_C(64)
#define MAX_CAPACITY (UINT64_C(1) << 32)
#define LARGEST INT64_MAX /* of a position or count */
#define WINDOW (UINT64_C(1) << 18) /* bytes in front, where a small backlog stays */

/* Bytes that a record of so many takes, header and stub of the next not counted twice. */
#define TAKES(length) (((uint64_t)(length) + HEADER + 7) & ~UINT64_C(7))

#endif
