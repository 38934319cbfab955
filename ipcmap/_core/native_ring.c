/* native_ring.c -- attempts to put records into a ring and to get them out: the hot path.
 *
 * The C twin of reference_ring.py, reference_ring_batches.py and of _note_room and
 * _note_records in reference_ring_waiting.py. Shared fields, with who changes them:
 *
 *   write_pos  room_end  seen_read_pos  puts     producers, in the producers' section
 *   read_pos  seen_write_pos                     consumers, in the consumers' section
 *   closed  ended  returned  lease_*             the Python half; only read here
 *   records                                      [read_pos, write_pos) the consumers',
 *                                                the rest the producers'
 *   a block in the ring: its position, its call, its tag (reference_ring_blocks)
 *
 * Every function but ring_open and ring_peek is called in its side's section, by one thread, and makes
 * one attempt. It allocates nothing and calls nobody. A record's bytes go to, or come
 * from, memory that the caller has ready; if that does not fit, it says so (MISFIT).
 *
 * Sync points
 *   B2 retag     consumer: its tag on a block that the ring still owns, before R2
 *                next consumer, sweep: the ring comes before the tag
 *   R1 publish   producer: release store of write_pos, after the last byte and the next stub
 *                consumer: acquire load of write_pos (x86-64: look_across), or as the
 *                seen_write_pos that was noted after a look in the producers' section
 *   R2 consume   consumer: release store of read_pos, after its last load
 *                producer: acquire load of read_pos, or seen_read_pos, likewise
 *
 * If a process dies before R1, no record of this attempt existed, and what it wrote is
 * written over; of the header at write_pos only the number counts, which stays the same.
 * Before R2 all records of the attempt are read again by the next consumer. A padding
 * record is published by an R1 of its own.
 *
 * Every word is copied once and checked before it is used: whatever stands there, an
 * index is within the ring. What makes no sense is UNUSUAL; the Python half then looks
 * at it once more, and says what is damaged. */
#include "native_allocator.h"
#include "native_ring.h"

/* So many bytes in one section, then publish and let others in. */
#define SECTION_BYTES (UINT64_C(1) << 18)

static void open_side(ring_t *ring, side_t *side, bool produces)
{
    unsigned char *shm = (unsigned char *)ring->shm_words;
    side->shm_other_section = produces ? ring->shm_consumers_section : ring->shm_producers_section;
    side->shm_parking = (sem_t *)(shm + (produces ? PRODUCERS_PARKING : CONSUMERS_PARKING));
    side->other_pos = produces ? READ_POS : WRITE_POS;
    side->other_ended = produces ? ENDED : CLOSED;
    side->other_takeovers = produces ? CONSUMERS_TAKEOVERS : PRODUCERS_TAKEOVERS;
    side->sleepers = produces ? PRODUCERS_SLEEPING : CONSUMERS_SLEEPING;
    patience_begin(&side->patience);
    atomic_init(&side->spins, false);
    atomic_init(&side->looked_at, 0);
    atomic_init(&side->vain, 0);
    atomic_init(&side->skips, 0);
}

/* Have a ring that lies in shared memory; nothing there is looked at or changed. */
void ring_open(ring_t *ring, unsigned char *shm, uint64_t capacity, uint64_t inline_limit)
{
    ring->shm_words = (shm_word_t *)shm;
    ring->shm_producers_section = (pthread_mutex_t *)(shm + PRODUCERS_SECTION);
    ring->shm_consumers_section = (pthread_mutex_t *)(shm + CONSUMERS_SECTION);
    ring->capacity = capacity;
    ring->mask = capacity - 1;
    ring->window = capacity < WINDOW ? capacity : WINDOW;
    ring->inline_limit = inline_limit;
    open_side(ring, &ring->producers, true);
    open_side(ring, &ring->consumers, false);
}

/* Count the records ever put, from the stub's number. */
static void note_puts(ring_t *ring, uint64_t write_pos)
{
    uint64_t number = look(ring, word_at(ring, write_pos)) >> NUMBER_SHIFT;
    uint64_t puts = look(ring, PUTS);
    puts += (number - puts) & NUMBER_MASK;
    STEP("note puts", store(ring, PUTS, puts < LARGEST ? puts : LARGEST));
}

/* Note the consumers' position; is there room for so many bytes? Writes the padding
 * record where what remains before the edge is too little: reference _note_room. */
static outcome_t note_room(ring_t *ring, uint64_t read_pos, uint64_t need)
{
    uint64_t seen = look(ring, SEEN_READ_POS), write_pos = look(ring, WRITE_POS);
    uint64_t latest = read_pos > seen ? read_pos : seen;
    uint64_t backlog = write_pos - latest, index = write_pos & ring->mask;
    if (look(ring, CLOSED) || backlog > ring->capacity - 8 || write_pos & 7 || write_pos > LARGEST)
        return UNUSUAL;
    STEP("note seen_read_pos", store(ring, SEEN_READ_POS, latest));
    note_puts(ring, write_pos);
    uint64_t full = latest + ring->capacity - 8; /* the stub needs a word */
    uint64_t edge = backlog <= ring->window / 2 ? ring->window : ring->capacity;
    uint64_t to_end = ring->capacity - index;
    if (index + need > edge && write_pos + to_end + need <= full) {
        uint64_t stub = look(ring, FIRST_RECORD + (index >> 3)) & NUMBER_BITS;
        STEP("padding", store(ring, FIRST_RECORD + (index >> 3), stub | PADDING | (to_end - HEADER)));
        STEP("stub", store(ring, FIRST_RECORD, stub));
        STEP("R1 publish", store(ring, WRITE_POS, write_pos += to_end));
        index = 0;
    }
    if (index + need > edge)
        edge = ring->capacity;
    uint64_t room_end = write_pos - index + edge;
    STEP("note room_end", store(ring, ROOM_END, room_end = room_end < full ? room_end : full));
    return write_pos + need <= room_end ? DONE : NOTHING;
}

static outcome_t find_room(ring_t *ring, uint64_t need, uint64_t *seen)
{
    uint64_t known = look(ring, SEEN_READ_POS);
    if (IPCMAP_LOOK_DIRECTLY || *seen < known)
        *seen = IPCMAP_LOOK_DIRECTLY ? look_across(ring, READ_POS) : known; /* R2 consume */
    if (*seen < known)
        return UNUSUAL; /* a position only grows: to wait for that one would be to wait for ever */
    return note_room(ring, *seen, need);
}

outcome_t ring_put(ring_t *ring, const unsigned char *data, uint64_t length, uint64_t *seen)
{
    if (ring_append(ring, data, length))
        return DONE;
    outcome_t outcome = find_room(ring, TAKES(length), seen);
    if (outcome != DONE)
        return outcome;
    return ring_append(ring, data, length) ? DONE : UNUSUAL;
}

/* Put as many as there is room for, in one commit. DONE if any went in. */
outcome_t ring_put_many(ring_t *ring, const record_t *records, size_t count, size_t *done, uint64_t *seen)
{
    size_t index = 0;
    uint64_t write_pos = look(ring, WRITE_POS), room = ring_room_at(ring, write_pos);
    *done = 0;
    if (count && room < TAKES(records[0].length)) {
        outcome_t outcome = find_room(ring, TAKES(records[0].length), seen);
        if (outcome != DONE)
            return outcome;
        write_pos = look(ring, WRITE_POS);
        room = ring_room_at(ring, write_pos);
    }
    uint64_t number = look(ring, word_at(ring, write_pos)) & NUMBER_BITS;
    if (room > SECTION_BYTES)
        room = SECTION_BYTES;
    for (; index < count && TAKES(records[index].length) <= room; index++) {
        uint64_t length = records[index].length, need = TAKES(length);
        fill(bytes_at(ring, write_pos), records[index].data, length);
        STEP("header", store(ring, word_at(ring, write_pos), number | length));
        number += NUMBER_ONE;
        write_pos += need;
        room -= need;
    }
    if (!index)
        return UNUSUAL;
    STEP("stub", store(ring, word_at(ring, write_pos), number));
    STEP("R1 publish", store(ring, WRITE_POS, write_pos));
    *done = index;
    return DONE;
}

/* Append the record in a block of one's own, which is addressed. */
outcome_t ring_put_block(ring_t *ring, const block_t *block, uint64_t *seen)
{
    uint64_t need = TAKES(2 * 8), write_pos = look(ring, WRITE_POS);
    if (ring_room_at(ring, write_pos) < need) {
        outcome_t outcome = find_room(ring, need, seen);
        if (outcome != DONE)
            return outcome;
        write_pos = look(ring, WRITE_POS);
        if (ring_room_at(ring, write_pos) < need)
            return UNUSUAL;
    }
    uint64_t at = word_at(ring, write_pos), stub = look(ring, at) & NUMBER_BITS;
    STEP("position", atomic_store_explicit(&block->shm_words[B_POS], write_pos, memory_order_release));
    STEP("offset", store(ring, at + 1, block->offset));
    STEP("generation", store(ring, at + 2, block->generation));
    STEP("header", store(ring, at, stub | BLOCK | 2 * 8));
    STEP("stub", store(ring, word_at(ring, write_pos + need), stub + NUMBER_ONE));
    STEP("R1 publish", store(ring, WRITE_POS, write_pos + need));
    return DONE;
}

/* Note up to where there are records; NOTHING = none beyond read_pos. */
static outcome_t find_records(ring_t *ring, uint64_t read_pos, uint64_t *seen)
{
    if (look(ring, RETURNED))
        return UNUSUAL; /* L1: what dead holders had leased comes first */
    if (IPCMAP_LOOK_DIRECTLY)
        *seen = look_across(ring, WRITE_POS); /* R1 publish */
    if (*seen == read_pos || (!IPCMAP_LOOK_DIRECTLY && *seen < read_pos)) {
        *seen = read_pos;
        return NOTHING;
    }
    if (*seen - read_pos > ring->capacity - 8 || *seen > LARGEST)
        return UNUSUAL;
    STEP("note seen_write_pos", store(ring, SEEN_WRITE_POS, *seen));
    return DONE;
}

typedef uint64_t looker_t(const ring_t *, uint64_t index);

/* Check the header at *pos and pass over padding, once: the record is at *pos then. */
static inline __attribute__((always_inline)) outcome_t
find_record(const ring_t *ring, looker_t *look_at, uint64_t *pos, uint64_t end, uint64_t *length)
{
    for (;;) {
        if (end - *pos > ring->capacity - 8 || *pos & 7)
            return UNUSUAL;
        if (*pos == end)
            return NOTHING;
        uint64_t header = look_at(ring, word_at(ring, *pos));
        *length = header & LENGTH_MASK;
        uint64_t takes = TAKES(*length);
        if (takes > end - *pos || (*pos & ring->mask) + takes > ring->capacity)
            return UNUSUAL;
        if (LIKELY((header & KIND_BITS) == RECORD))
            return DONE;
        if ((header & KIND_BITS) != PADDING || (*pos + takes) & ring->mask)
            return UNUSUAL;
        *pos += takes;
    }
}

/* From outside of the section, so it may be stale, or no header at all: a guess of how
 * long the record at *pos is, for what is to be prepared. *pos moves on behind it. */
outcome_t ring_peek(const ring_t *ring, uint64_t *pos, uint64_t end, uint64_t *length)
{
    outcome_t outcome = find_record(ring, look_from_outside, pos, end, length);
    if (outcome != DONE)
        return outcome;
    *pos += TAKES(*length);
    return *length <= ring->inline_limit ? DONE : UNUSUAL;
}

/* Take as many records as are of the lengths prepared for, in one commit. DONE if any. */
outcome_t ring_get_many(ring_t *ring, const result_t *results, size_t count, size_t *done, uint64_t *seen)
{
    uint64_t read_pos = look(ring, READ_POS), pos = read_pos, end = look(ring, SEEN_WRITE_POS), length;
    outcome_t outcome = DONE;
    size_t index = 0;
    while (index < count) {
        if (pos == end) {
            uint64_t found = *seen;
            /* Only the first attempt asks for what is new: a returned lease is to be noticed. */
            outcome = index ? NOTHING : find_records(ring, pos, &found);
            if (outcome != DONE) {
                *seen = found;
                break;
            }
            end = *seen = found;
        }
        outcome = find_record(ring, look, &pos, end, &length);
        if (outcome == NOTHING)
            continue; /* padding alone: look once more */
        if (outcome == DONE && length != results[index].length)
            outcome = MISFIT;
        if (outcome != DONE)
            break;
        COPY("R0 copy", results[index].result, bytes_at(ring, pos), length);
        pos += TAKES(length);
        index++;
    }
    if (pos != read_pos && (outcome != UNUSUAL || index))
        STEP("R2 consume", store(ring, READ_POS, pos));
    *done = index;
    return index ? DONE : outcome;
}

/* Take the oldest record if it has *length bytes; MISFIT says in *length how many. */
outcome_t ring_get(ring_t *ring, unsigned char *result, uint64_t *length, uint64_t *seen)
{
    uint64_t read_pos = look(ring, READ_POS), pos = read_pos, end = look(ring, SEEN_WRITE_POS), found;
    if (read_pos == end) {
        outcome_t outcome = find_records(ring, read_pos, seen);
        if (outcome != DONE)
            return outcome;
        end = *seen;
    }
    outcome_t outcome = find_record(ring, look, &pos, end, &found);
    if (UNLIKELY(outcome != DONE)) {
        if (outcome == NOTHING) { /* padding alone */
            STEP("R2 consume", store(ring, READ_POS, pos));
            *seen = pos;
        }
        return outcome;
    }
    if (UNLIKELY(found != *length)) {
        *length = found;
        return MISFIT;
    }
    ring_consume(ring, pos, found, result);
    return DONE;
}

/* Read from the record at pos which block it names, if it names one. */
bool ring_names(const ring_t *ring, uint64_t pos, uint64_t *offset, uint64_t *generation)
{
    uint64_t at = word_at(ring, pos), header = look(ring, at);
    if ((header & (KIND_BITS | LENGTH_MASK)) != (BLOCK | 2 * 8) ||
        (pos & ring->mask) + TAKES(2 * 8) > ring->capacity)
        return false;
    *offset = look(ring, at + 1);
    *generation = look(ring, at + 2);
    return true;
}

/* Take the oldest record if it is in the block that was expected, for `owner`; else MISFIT. */
outcome_t ring_get_block(ring_t *ring, const block_t *block, uint64_t *seen)
{
    uint64_t read_pos = look(ring, READ_POS), pos = read_pos, end = look(ring, SEEN_WRITE_POS);
    uint64_t offset, generation, nbytes;
    if (read_pos == end) {
        outcome_t outcome = find_records(ring, read_pos, seen);
        if (outcome != DONE)
            return outcome;
        end = *seen;
    }
    if (find_record(ring, look, &pos, end, &nbytes) != UNUSUAL)
        return MISFIT;
    if (end - pos < TAKES(2 * 8) || end - pos > ring->capacity || pos & 7 ||
        !ring_names(ring, pos, &offset, &generation))
        return UNUSUAL;
    if (offset != block->offset || generation != block->generation)
        return MISFIT;
    outcome_t outcome;
    STEP("B2 retag", outcome = cells_pass_on(block->cells, offset, generation, KIND_RECORD, block->owner, &nbytes));
    if (outcome != DONE)
        return UNUSUAL;
    STEP("call", atomic_store_explicit(&block->shm_words[B_CALL], 0, memory_order_release));
    STEP("R2 consume", store(ring, READ_POS, pos + TAKES(2 * 8)));
    return DONE;
}
