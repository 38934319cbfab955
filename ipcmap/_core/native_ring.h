/* native_ring.h -- one record: the steps that nearly every put and get comes to.
 *
 * native_ring.c has their fields and sync points, and whatever else an attempt may meet.
 * A call tries these first, and has them inline. */
#ifndef IPCMAP_NATIVE_RING_H
#define IPCMAP_NATIVE_RING_H

#include "native.h"
#include "native_copying.h"

/* Bytes that can be written at write_pos in one piece, the headers of records included. */
static inline uint64_t ring_room_at(const ring_t *ring, uint64_t write_pos)
{
    uint64_t room_end = look(ring, ROOM_END), to_end = ring->capacity - (write_pos & ring->mask);
    uint64_t room = room_end > write_pos && !(write_pos & 7) ? room_end - write_pos : 0;
    return room < to_end ? room : to_end;
}

/* Append a record where there is known to be room; false = nothing was done. */
static inline __attribute__((always_inline)) bool ring_append(ring_t *ring, const unsigned char *data, uint64_t length)
{
    uint64_t need = TAKES(length), write_pos = look(ring, WRITE_POS);
    if (UNLIKELY(ring_room_at(ring, write_pos) < need))
        return false;
    uint64_t stub = look(ring, word_at(ring, write_pos)) & NUMBER_BITS;
    fill(bytes_at(ring, write_pos), data, length);
    STEP("header", store(ring, word_at(ring, write_pos), stub | length));
    STEP("stub", store(ring, word_at(ring, write_pos + need), stub + NUMBER_ONE));
    STEP("R1 publish", store(ring, WRITE_POS, write_pos + need));
    return true;
}

/* Look from outside of the section at what is, or was, a header. A producer may be writing
 * a record's bytes there, as bytes: a race, as C has it, in which any value is as good
 * as another, for it only says how much to prepare. Of this load, and of no other, a
 * sanitizer of threads is not to be told. */
__attribute__((no_sanitize("thread"))) static inline uint64_t look_from_outside(const ring_t *ring, uint64_t index)
{
    return atomic_load_explicit(&ring->shm_words[index], memory_order_relaxed);
}

typedef struct {
    uint64_t pos, end, length; /* of the record, and where those end that a consumer has seen */
} guess_t;

/* Guess from outside of the section where the oldest record is, and how long. False = there may
 * be none, or it is none of those that lie in the ring itself and that a consumer has seen. */
static inline bool ring_guess(const ring_t *ring, guess_t *guess)
{
    uint64_t pos = look(ring, READ_POS), end = look(ring, SEEN_WRITE_POS);
    uint64_t length = look_from_outside(ring, word_at(ring, pos)) & (KIND_BITS | LENGTH_MASK);
    *guess = (guess_t){pos, end, length};
    return length <= ring->inline_limit && TAKES(length) <= end - pos && end - pos <= ring->capacity - 8 &&
           (pos & ring->mask) + TAKES(length) <= ring->capacity && !(pos & 7);
}

_Static_assert(!RECORD, "a record's kind and length are its length");

static inline void ring_consume(ring_t *ring, uint64_t pos, uint64_t length, unsigned char *result)
{
    COPY("R0 copy", result, bytes_at(ring, pos), length);
    STEP("R2 consume", store(ring, READ_POS, pos + TAKES(length)));
}

/* Take the oldest record if it is the one that was guessed: all that the guess went by stands
 * there still, so what it found within bounds is so. False = nothing was done. */
static inline bool ring_take(ring_t *ring, const guess_t *guess, unsigned char *result)
{
    if (UNLIKELY(look(ring, READ_POS) != guess->pos || look(ring, SEEN_WRITE_POS) != guess->end ||
                 (look(ring, word_at(ring, guess->pos)) & (KIND_BITS | LENGTH_MASK)) != guess->length))
        return false;
    ring_consume(ring, guess->pos, guess->length, result);
    return true;
}

#endif
