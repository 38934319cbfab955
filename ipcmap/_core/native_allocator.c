/* native_allocator.c -- takes and frees the cells of an arena: the hot path of the allocator.
 *
 * The C twin of reference_allocator.py, on the same words in the same section. Shared
 * fields, with who changes them:
 *
 *   tag, length   of a cell        whoever has it, or takes it, in the section; a ring's
 *                                  block by the ring's own section (cells_pass_on)
 *   high water, cursor, used, used bytes, warm   of a class    in the section
 *   bytes in use, warm bytes, journal                          in the section
 *
 * Left to the reference engine, by UNUSUAL: a section that is not free within a moment
 * or is held by this thread, a journal that is not 0, the limit, a class without a cell
 * near the cursor or beyond the mark, damage; and all that takes long: giving memory
 * back, sweeping, counting anew.
 *
 * Sync points
 *   A1 take    release store of the tag, after the length and the mark
 *              reader: load of the tag, before the length
 *   A2 free    release store of the tag, after the last use of the bytes
 *              cells_take: load of the tag, before it takes the cell
 *   A4 retag   release store of the tag with another owner or kind; sweep: load of the tag
 *   (A3 retire is the reference engine's)
 *
 * If a process dies in the section before A1 or A2, nothing has happened; after it, the
 * journal names the class, whose counts are made anew by the next to enter. The same
 * way out is taken where the counts make no sense: the journal stays as it is.
 *
 * Every word is copied once and checked before it is used: whatever stands there, an
 * index is within its class. */
#include "native_allocator.h"

#include <errno.h>

#define SEARCH UINT64_C(64)        /* as reference_allocator has them */
#define WARM_SEARCH UINT64_C(1024)
#define GIVE_BACK (UINT64_C(1) << 20)

enum { TRIES = 24 }; /* as native_section.c: some microseconds */

static uint64_t word(const cells_t *cells, uint64_t index)
{
    return atomic_load_explicit(&cells->shm_words[index], memory_order_acquire);
}

static void store_word(cells_t *cells, uint64_t index, uint64_t value)
{
    atomic_store_explicit(&cells->shm_words[index], value, memory_order_release);
}

static inline void leave(cells_t *cells)
{
    STEP("X2 leave", pthread_mutex_unlock(cells->shm_section));
}

/* Enter the section, if it is free within a moment and nothing is to be repaired. */
static outcome_t enter(cells_t *cells)
{
    SYNC_POINT("X1 enter", "before");
    int answer = pthread_mutex_trylock(cells->shm_section);
    for (int tries = 0; UNLIKELY(answer == EBUSY) && tries < TRIES; tries++) {
        for (int pauses = 0; pauses <= tries; pauses++)
            relax();
        SYNC_POINT("X1 enter", "before");
        answer = pthread_mutex_trylock(cells->shm_section);
    }
    if (UNLIKELY(answer == EOWNERDEAD)) {
        STEP("X1 make consistent", answer = pthread_mutex_consistent(cells->shm_section));
        if (answer)
            leave(cells);
    }
    if (UNLIKELY(answer))
        return UNUSUAL;
    SYNC_POINT("X1 enter", "after");
    if (UNLIKELY(word(cells, JOURNAL))) {
        leave(cells);
        return UNUSUAL;
    }
    return DONE;
}

static bool is_damaged(const cells_t *cells, uint64_t tag)
{
    bool owned = tag & USED && !(tag & (WARM | ZERO_BIT)) && tag >> GENERATION_SHIFT;
    return tag & STATE && !(owned && (tag & OWNER) <= cells->max_processes);
}

/* Change the counts, and clear the journal: it stays where they make no sense. */
static void book(cells_t *cells, const class_t *class, int64_t blocks, int64_t nbytes, int64_t warm)
{
    uint64_t used = word(cells, class->line + CLASS_USED) + (uint64_t)blocks;
    uint64_t used_nbytes = word(cells, class->line + CLASS_USED_NBYTES) + (uint64_t)nbytes;
    uint64_t in_use = word(cells, BYTES_IN_USE) + (uint64_t)nbytes;
    uint64_t cells_warm = word(cells, class->line + CLASS_WARM) + (uint64_t)warm;
    uint64_t warm_bytes = word(cells, WARM_BYTES) + (uint64_t)warm * class->cell_nbytes;
    if (UNLIKELY(used > class->capacity || used_nbytes > in_use || in_use > LARGEST ||
                 cells_warm > class->capacity || warm_bytes > LARGEST))
        return;
    STEP("used", store_word(cells, class->line + CLASS_USED, used));
    STEP("used bytes", store_word(cells, class->line + CLASS_USED_NBYTES, used_nbytes));
    STEP("bytes in use", store_word(cells, BYTES_IN_USE, in_use));
    if (warm) {
        STEP("warm", store_word(cells, class->line + CLASS_WARM, cells_warm));
        STEP("warm bytes", store_word(cells, WARM_BYTES, warm_bytes));
    }
    STEP("clear journal", store_word(cells, JOURNAL, 0));
}

/* Find a free cell: a warm one, one near the cursor, or a fresh one. */
static outcome_t free_cell(cells_t *cells, const class_t *class, uint64_t *index)
{
    uint64_t high = word(cells, class->line + CLASS_HIGH_WATER);
    if (high > class->capacity)
        return UNUSUAL;
    if (word(cells, class->line + CLASS_USED) < high) {
        uint64_t start = word(cells, class->line + CLASS_CURSOR);
        start = start < high ? start : 0;
        if (word(cells, class->line + CLASS_WARM)) {
            uint64_t at = start, most = high < WARM_SEARCH ? high : WARM_SEARCH;
            for (uint64_t step = 0; step < most; step++, at = at + 1 < high ? at + 1 : 0) {
                if ((word(cells, class->tags + at) & (STATE | WARM)) == WARM) { /* A2 free */
                    *index = at;
                    return DONE;
                }
            }
        }
        uint64_t stop = start + SEARCH < high ? start + SEARCH : high;
        for (uint64_t at = start; at < stop; at++) {
            if (!(word(cells, class->tags + at) & STATE)) { /* A2 free */
                *index = at;
                return DONE;
            }
        }
        STEP("cursor", store_word(cells, class->line + CLASS_CURSOR, stop));
    }
    if (high == class->capacity || word(cells, class->tags + high) & STATE)
        return UNUSUAL;
    STEP("high water", store_word(cells, class->line + CLASS_HIGH_WATER, high + 1));
    *index = high;
    return DONE;
}

outcome_t cells_take(cells_t *cells, uint64_t nbytes, uint64_t kind, uint64_t owner, place_t *taken)
{
    uint64_t charge = nbytes < SMALLEST_CELL ? SMALLEST_CELL : nbytes;
    uint64_t bits = 64 - (uint64_t)__builtin_clzll(charge - 1), number = bits - 6;
    if (nbytes > LARGEST || number >= cells->count || kind >= KINDS || owner > OWNER)
        return UNUSUAL;
    const class_t *class = &cells->classes[number];
    if (enter(cells) != DONE)
        return UNUSUAL;
    uint64_t in_use = word(cells, BYTES_IN_USE), index;
    if (in_use > cells->limit || charge > cells->limit - in_use ||
        free_cell(cells, class, &index) != DONE) {
        leave(cells);
        return UNUSUAL;
    }
    uint64_t tag = word(cells, class->tags + index);
    uint64_t generation = ((tag >> GENERATION_SHIFT) + 1) & UINT32_MAX;
    generation = generation ? generation : 1;
    uint64_t new = generation << GENERATION_SHIFT | kind << KIND_SHIFT | USED | owner;
    STEP("length", store_word(cells, class->lengths + index, nbytes));
    STEP("journal", store_word(cells, JOURNAL, number + 1));
    STEP("A1 take", store_word(cells, class->tags + index, new));
    STEP("cursor", store_word(cells, class->line + CLASS_CURSOR, index + 1));
    book(cells, class, 1, (int64_t)charge, tag & WARM ? -1 : 0);
    leave(cells);
    *taken = (place_t){class, index, new};
    return DONE;
}

/* Find the cell that begins at an offset, whatever its tag is. */
bool cells_locate(const cells_t *cells, uint64_t offset, place_t *found)
{
    size_t low = 0, high = cells->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cells->classes[middle].first_cell <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low)
        return false;
    const class_t *class = &cells->classes[low - 1];
    uint64_t inside = offset - class->first_cell;
    found->class = class;
    found->index = inside >> __builtin_ctzll(class->cell_nbytes);
    return !(inside & (class->cell_nbytes - 1)) && found->index < class->capacity;
}

/* Find the cell of a good handle, with its tag as it is. */
outcome_t cells_find(const cells_t *cells, uint64_t offset, uint64_t generation, uint64_t kind, place_t *found)
{
    if (!cells_locate(cells, offset, found) || generation > UINT32_MAX || kind >= KINDS)
        return UNUSUAL;
    found->tag = word(cells, found->class->tags + found->index); /* A1 take, A3 retire */
    uint64_t expected = generation << GENERATION_SHIFT | kind << KIND_SHIFT | USED;
    return (found->tag & ~OWNER) == expected && !is_damaged(cells, found->tag) ? DONE : UNUSUAL;
}

outcome_t cells_free(cells_t *cells, const place_t *place)
{
    const class_t *class = place->class;
    uint64_t at = class->tags + place->index, warm = class->cell_nbytes >= GIVE_BACK ? WARM : 0;
    if (enter(cells) != DONE)
        return UNUSUAL;
    if (word(cells, at) != place->tag) {
        leave(cells);
        return UNUSUAL;
    }
    uint64_t nbytes = word(cells, class->lengths + place->index);
    nbytes = nbytes < class->cell_nbytes ? nbytes : class->cell_nbytes;
    nbytes = nbytes < SMALLEST_CELL ? SMALLEST_CELL : nbytes;
    STEP("journal", store_word(cells, JOURNAL, (uint64_t)(class - cells->classes) + 1));
    STEP("A2 free", store_word(cells, at, (place->tag & ~(STATE | WARM)) | warm));
    STEP("cursor", store_word(cells, class->line + CLASS_CURSOR, place->index));
    book(cells, class, -1, -(int64_t)nbytes, warm ? 1 : 0);
    leave(cells);
    return DONE;
}

outcome_t cells_retag(cells_t *cells, const place_t *place, uint64_t kind, uint64_t owner)
{
    uint64_t at = place->class->tags + place->index;
    if (kind >= KINDS || owner > OWNER || enter(cells) != DONE)
        return UNUSUAL;
    bool same = word(cells, at) == place->tag;
    if (same) {
        uint64_t generation = place->tag >> GENERATION_SHIFT << GENERATION_SHIFT;
        STEP("A4 retag", store_word(cells, at, generation | kind << KIND_SHIFT | USED | owner));
    }
    leave(cells);
    return same ? DONE : UNUSUAL;
}

/* Retag a block that a ring has: without the section, for the ring's own guards the tag. */
outcome_t cells_pass_on(cells_t *cells, uint64_t offset, uint64_t generation, uint64_t kind,
                        uint64_t owner, uint64_t *nbytes)
{
    place_t found;
    if (!cells_locate(cells, offset, &found) || kind >= KINDS || owner > OWNER)
        return UNUSUAL;
    uint64_t at = found.class->tags + found.index, tag = word(cells, at);
    uint64_t was = tag >> KIND_SHIFT & (KINDS - 1);
    *nbytes = word(cells, found.class->lengths + found.index);
    if (is_damaged(cells, tag) || (tag & (USED | RETIRED)) != USED ||
        tag >> GENERATION_SHIFT != generation || was < FIRST_OF_RING || was > LAST_OF_RING ||
        *nbytes < SMALLEST_CELL || *nbytes > found.class->cell_nbytes)
        return UNUSUAL;
    uint64_t new = generation << GENERATION_SHIFT | kind << KIND_SHIFT | USED | owner;
    STEP("A4 retag", store_word(cells, at, new));
    return DONE;
}

/* Whether more is warm than may be; to be asked outside of the section, as a hint. */
bool cells_excess(const cells_t *cells)
{
    uint64_t warm = word(cells, WARM_BYTES), in_use = word(cells, BYTES_IN_USE);
    uint64_t left = cells->limit > in_use ? cells->limit - in_use : 0;
    return warm > cells->keep || warm > left;
}
